"""The identity of a cell: what makes two runs the same experiment.

`cell_id` is the first 12 hex digits of the SHA-256 of a configuration's canonical JSON: the whole
resolved configuration less the keys that cannot change a result, plus a schema version. Nothing
here reads a file, a clock or the environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

from dks.config.schema import (
    Augmentation,
    AuxDesign,
    Backbone,
    Branch,
    Config,
    Data,
    DesignKind,
    KdTeacher,
    LossTerms,
    MatchingStrategy,
    PadMode,
    Recipe,
    Schedule,
    Strategy,
    TeacherKind,
)

# Raise it when the same configuration starts to compute something else: old results are then never
#     taken for new ones.
SCHEMA_VERSION = 2

# Keys that cannot change a result. `device` and `threads` change its last bits and are recorded
# with every run instead; what files under `data.root` hold, and which columns of them are read, is
# in `data.fingerprint`.
EXECUTION_ONLY = frozenset(
    {
        "backbone.activation_checkpointing",
        "compute.cuda_graphs",
        "data.cache_gib",
        "data.download",
        "data.image_column",
        "data.label_column",
        "data.name",
        "data.root",
        "data.workers",
        "device",
        "eval_batch_size",
        "kd_teacher.path",
        "results_dir",
        "runs_dir",
        "sweep",
        "threads",
        "tracking",
    }
)

# Keys that came later and are empty in whatever needs them not: left out of the identity then, so
#     that no older cell changes.
LEFT_OUT_WHEN_EMPTY = frozenset(
    {
        "aux_design.options",
        "backbone.options",
        "data.options",
        "kd_teacher.image_size",
        "kd_teacher.mean",
        "kd_teacher.std",
        "matching_strategy.options",
    }
)


def is_execution_only(key: str) -> bool:
    """Is this dotted key, or the part of the configuration that it belongs to, without influence on
    a result?
    """
    return any(key == name or key.startswith(f"{name}.") for name in EXECUTION_ONLY)


def cell_id(config: Config) -> str:
    """12 hex digits that name the cell of a resolved configuration."""
    return _digest(_written(config))


def config_id(config: Config) -> str:
    """As `cell_id`, the same for every seed: what repetitions of one experiment share."""
    shared = _written(config)
    del shared["seed"]
    return _digest(shared)


def canonical_json(value: Any) -> str:
    """JSON in one spelling.

    Sorted keys, no spaces, a whole number always as an integer (1.0 and 1 are the same). A
    dataclass is written as the object of its fields.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return _JSON.encode(_plain(value))


def canonical(config: Config) -> Config:
    """The same experiment in its one spelling.

    What its other choices make meaningless has its default.

    A sweep over `aux_design.hidden` has the same cell for every value where the branches have no
    hidden layer. Only what the code that trains never reads is touched, or reads to the same
    effect, and the configuration must have passed its checks; its own parts are left alone. Numbers
    that come out the same by chance, such as a batch larger than the training set, are not looked
    for.
    """
    default = LossTerms()
    # one classifier
    alone = config.aux_positions.alone or config.aux_design.kind == DesignKind.none
    matched = config.matching_strategy.name != Strategy.none and config.loss.beta > 0
    loss = (
        default
        if alone
        else config.loss
        if matched
        else LossTerms(config.loss.alpha, default.beta, default.form)
    )
    data, recipe = _canonical_images(_canonical_data(config.data), config.recipe)
    return dataclasses.replace(
        config,
        backbone=_canonical_backbone(config),
        aux_design=_canonical_design(config),
        aux_positions=dataclasses.replace(config.aux_positions, at=sorted(config.aux_positions.at)),
        matching_strategy=config.matching_strategy if matched else MatchingStrategy(),
        loss=loss,
        kd_teacher=_canonical_teacher(config.kd_teacher, config),
        data=data,
        recipe=_canonical_recipe(recipe),
    )


def drops(recipe: Recipe) -> list[int]:
    """The whole epochs after which the learning rate of the step schedule drops.

    One that is there twice drops it twice.

    A fraction of all epochs counts from the first whole epoch at or behind it: 0.28 of 25 is 7,
    though floating-point numbers make 7.000000000000001 of it.
    """
    return [
        max(1, math.ceil(mark * recipe.epochs - 1e-6)) if mark < 1 else int(mark)
        for mark in recipe.milestones
    ]


def _canonical_backbone(config: Config) -> Backbone:
    """Without the branches that are not built.

    Of those that are no stages of the backbone's own blocks the places are kept. An extension has
    no depth, and one that makes branches may look at all of them.
    """
    backbone, design = config.backbone, config.aux_design.kind
    depth = 0 if "@" in backbone.family else backbone.depth
    if "@" in design:
        return dataclasses.replace(backbone, depth=depth)
    built = {
        name: branch
        for name, branch in backbone.branches.items()
        if name in config.aux_positions.at
    }
    branches = built if design == DesignKind.blocks else {name: Branch() for name in built}
    return dataclasses.replace(backbone, depth=depth, branches=branches)


def _canonical_design(config: Config) -> AuxDesign:
    design = config.aux_design
    if design.kind == DesignKind.blocks:
        built = (config.backbone.branches[name] for name in config.aux_positions.at)
        longest = max((stage.blocks for branch in built for stage in branch.stages), default=0)
        limit = (
            None if design.max_blocks is None or design.max_blocks >= longest else design.max_blocks
        )
        return AuxDesign(design.kind, width=design.width, max_blocks=limit)
    if design.kind == DesignKind.fc:
        return AuxDesign(
            design.kind, pool=design.pool, conv_channels=design.conv_channels, hidden=design.hidden
        )
    return AuxDesign(design.kind, options=design.options)


def _canonical_teacher(kd: KdTeacher, config: Config) -> KdTeacher:
    if kd.kind is TeacherKind.none:
        return KdTeacher()
    kd = dataclasses.replace(kd, students=sorted(kd.students))
    if kd.kind is TeacherKind.torchvision:
        kd = dataclasses.replace(kd, path=None, cell=None, fingerprint=None)
    elif kd.cell is not None:  # the run knows its own network
        kd = dataclasses.replace(kd, backbone=None)
    mean, std = config.recipe.mean or config.data.mean, config.recipe.std or config.data.std
    kd = dataclasses.replace(
        kd, mean=None if kd.mean == mean else kd.mean, std=None if kd.std == std else kd.std
    )
    return dataclasses.replace(kd, scale_by_t2=True) if kd.temperature == 1 else kd


def _canonical_data(data: Data) -> Data:
    default = Data()
    # it is not ImageNet, but some folder
    if data.source == "imagenet" and data.fingerprint is not None:
        data = dataclasses.replace(data, source="imagefolder")
    if data.source != "synthetic":
        data = dataclasses.replace(data, train_images=None, test_images=None)
    if data.augmentation is Augmentation.pad_crop:
        return dataclasses.replace(data, resize=default.resize)
    return dataclasses.replace(data, pad=default.pad)


def _canonical_images(data: Data, recipe: Recipe) -> tuple[Data, Recipe]:
    """By what images are normalised, in one place, and what lies around them, where they are
    padded.
    """
    data = dataclasses.replace(data, mean=recipe.mean or data.mean, std=recipe.std or data.std)
    is_padded = data.augmentation is Augmentation.pad_crop and data.pad > 0
    return data, dataclasses.replace(
        recipe, mean=None, std=None, pad_mode=recipe.pad_mode if is_padded else PadMode.zero
    )


def _canonical_recipe(recipe: Recipe) -> Recipe:
    """The milestones are whole epochs at which something changes."""
    epochs, warmup = recipe.epochs, recipe.warmup_epochs
    marks = (
        [mark for mark in drops(recipe) if mark < epochs]
        if recipe.schedule is Schedule.step
        else []
    )
    reset = recipe.reset_momentum and recipe.momentum > 0 and bool(marks)
    if not reset:  # a drop in the warm-up is seen behind it, and a factor of 1 is none
        marks = [] if recipe.gamma == 1 else [max(mark, warmup) for mark in marks]
    # the cosine of one epoch does not fall
    schedule = Schedule.step if epochs - warmup == 1 else recipe.schedule
    return dataclasses.replace(
        recipe,
        schedule=schedule,
        # to rise in one epoch is to be there
        warmup_epochs=0 if warmup == 1 and schedule is Schedule.step else warmup,
        milestones=list(map(float, marks)),
        gamma=recipe.gamma if marks else 1.0,
        reset_momentum=reset,
    )


def _written(config: Config) -> dict[str, str]:
    """Top-level key -> its canonical JSON, less the keys that cannot change a result."""
    values, (leaves, parts) = vars(config), _kept(Config, "")
    written = {name: canonical_json(values[name]) for name in leaves}
    for name in parts:
        written[name] = _written_part(name, values[name])
    written["schema_version"] = canonical_json(SCHEMA_VERSION)
    return written


# The cells of a sweep share most of their parts, so the JSON of each is kept under what the part
# shows of itself.
_known_parts: dict[tuple[str, str], str] = {}


def _written_part(name: str, part: Any) -> str:
    key = name, repr(part)
    if key not in _known_parts:
        _known_parts[key] = canonical_json(_tree(part, f"{name}."))
    return _known_parts[key]


def _tree(part: Any, prefix: str) -> dict[str, Any]:
    """A dataclass as a dict, less the keys that cannot change a result.

    `prefix` is its path and a dot.
    """
    values, (leaves, parts) = vars(part), _kept(part.__class__, prefix)
    kept = {
        name: values[name]
        for name in leaves
        if values[name] or f"{prefix}{name}" not in LEFT_OUT_WHEN_EMPTY
    }
    return kept | {name: _tree(values[name], f"{prefix}{name}.") for name in parts}


@cache
def _kept(schema: type, prefix: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fields that can change a result: those with a value, and those that are dataclasses."""
    names = [
        field.name
        for field in dataclasses.fields(schema)
        if f"{prefix}{field.name}" not in EXECUTION_ONLY
    ]
    parts = [name for name in names if dataclasses.is_dataclass(get_type_hints(schema)[name])]
    return tuple(name for name in names if name not in parts), tuple(parts)


def _digest(written: dict[str, str]) -> str:
    whole = ",".join(f'"{name}":{written[name]}' for name in sorted(written))
    return hashlib.sha256(f"{{{whole}}}".encode()).hexdigest()[:12]


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_AS_THEY_ARE = frozenset({bool, int, str})


def _plain(value: Any) -> Any:
    if value is None or type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return _plain(vars(value))
    return value


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of what can change a result, as MLflow's params.

    Enums by their values.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in EXECUTION_ONLY:
            continue
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = getattr(value, "value", value)
    return flat
