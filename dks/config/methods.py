"""The paper's name for what a configuration trains."""

from __future__ import annotations

import dataclasses

from dks.config.schema import (
    AuxDesign,
    AuxPositions,
    Config,
    DesignKind,
    KdTeacher,
    LossWeights,
    MatchingStrategy,
    Strategy,
)


def method_of(config: Config) -> str:
    """`baseline` (no branches), `ds` (branches, no matching) or `dks` (branches and matching)."""
    if config.aux_design.kind is DesignKind.none:
        return "baseline"
    return "ds" if config.matching_strategy.name is Strategy.none else "dks"


def baseline_of(config: Config) -> Config:
    """The plain network under the same conditions: the same in everything but branches, matching and distillation."""
    return dataclasses.replace(
        config,
        aux_design=AuxDesign(),
        aux_positions=AuxPositions(),
        matching_strategy=MatchingStrategy(),
        kd_teacher=KdTeacher(),
        loss=LossWeights(),
    )
