"""What tables call a configuration: the paper's name for what it trains, and how it computes."""

from __future__ import annotations

import dataclasses

from dks.config.identity import is_execution_only
from dks.config.schema import (
    AuxDesign,
    AuxPositions,
    Compute,
    Config,
    DesignKind,
    KdTeacher,
    LossTerms,
    MatchingStrategy,
    Strategy,
    TeacherKind,
)

# The presets of `conf/method/` whose names are the paper's: each is what `method_of` makes of it.
PAPERS = frozenset({"baseline", "ds", "dks", "single", "kd_c1", "kd_c1_ds", "kd_c2c3_ds"})


def method_of(config: Config) -> str:
    """The method's name in the paper's tables.

    `baseline` (no branches), `ds` (branches, no matching), `dks` (branches and matching), `single`
    (one branch's path alone, Table 5). With a teacher (Table 6) it is named by the classifiers that
    are taught: `kd_c1` (the plain network), `kd_c1_ds`, `kd_c2c3_ds`, ...
    """
    if config.aux_design.kind == DesignKind.none:
        method = "baseline"
    elif config.aux_positions.alone:
        method = "single"
    else:
        method = "ds" if config.matching_strategy.name == Strategy.none else "dks"
    if config.kd_teacher.kind is TeacherKind.none:
        return method
    taught = f"kd_{''.join(sorted(config.kd_teacher.students))}"
    return taught if method == "baseline" else f"{taught}_{method}"


def classifiers_of(config: Config) -> list[str]:
    """The classifiers that are trained, from deep to shallow.

    A branch that is trained alone has its own name.
    """
    return (
        sorted(config.aux_positions.at)
        if config.aux_positions.alone
        else ["c1", *sorted(config.aux_positions.at)]
    )


def ds_of(config: Config) -> Config | None:
    """The same network and branches deeply supervised, without matching and teacher.

    None where that is not another one.
    """
    plain = (
        config.matching_strategy.name == Strategy.none
        and config.kd_teacher.kind is TeacherKind.none
    )
    if plain or config.aux_positions.alone or config.aux_design.kind == DesignKind.none:
        return None
    # the weight and the form of matching mean nothing without it
    loss = LossTerms(alpha=config.loss.alpha)
    return dataclasses.replace(
        config, matching_strategy=MatchingStrategy(), kd_teacher=KdTeacher(), loss=loss
    )


def computed_with(config: Config) -> str:
    """What can change a result and is not as in `compute=standard`, for example "precision=bf16
    tf32=true"; "" for nothing.
    """
    given, standard = vars(config.compute), vars(Compute())
    changed = [
        key
        for key in given
        if given[key] != standard[key] and not is_execution_only(f"compute.{key}")
    ]
    return " ".join(
        f"{key}={str(getattr(given[key], 'value', given[key])).lower()}" for key in changed
    )


def baseline_of(config: Config) -> Config:
    """The plain network under the same conditions.

    The same in everything but branches, matching and distillation.
    """
    return dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, branches={}),
        aux_design=AuxDesign(),
        aux_positions=AuxPositions(),
        matching_strategy=MatchingStrategy(),
        kd_teacher=KdTeacher(),
        loss=LossTerms(),
    )
