"""What can be said of a configuration's values alone, without looking at data, devices or files.

Generators of lines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from dks.config.errors import one_line, short
from dks.config.names import is_sweep_name
from dks.config.schema import (
    Augmentation,
    AuxDesign,
    Backbone,
    Config,
    Data,
    DesignKind,
    NoiseKind,
    PadMode,
    Recipe,
    Strategy,
    TeacherKind,
    Tracking,
    TrackingKind,
)
from dks.config.secrets import has_password, without_password


def config_problems(config: Config) -> Iterator[str]:
    """What is wrong with a configuration but for its teacher, a line each."""
    design = config.aux_design
    positions = config.aux_positions.at
    strategy = config.matching_strategy.name
    if strategy != Strategy.none and design.kind == DesignKind.none:
        yield (
            f"matching_strategy={strategy} has no auxiliary classifier to match, for aux_design "
            f"is none; "
            "choose an aux_design (ours, narrow, ...) or matching_strategy=none"
        )
    elif design.kind == DesignKind.none and positions:
        yield (
            f"aux_positions={''.join(positions)} without branches, for aux_design is none; "
            "choose an aux_design (ours, narrow, ...) or aux_positions=none"
        )
    elif design.kind != DesignKind.none and not positions:
        yield (
            "aux_positions=none leaves no place for the branches; choose aux_positions=c2c3, "
            "or aux_design=none"
        )
    elif config.aux_positions.alone and len(positions) != 1:
        yield (
            f"the path through one branch alone needs one position, not {positions}; choose "
            f"positions=c2 or positions=c3"
        )
    elif config.aux_positions.alone and strategy != Strategy.none:
        yield (
            f"matching_strategy={strategy} has nothing to match on a single path; choose "
            f"matching_strategy=none"
        )
    for position in positions:
        if position not in config.backbone.branches:
            known = ", ".join(sorted(config.backbone.branches))
            yield f"aux_positions: {position} is not a place in this backbone; it has {known}"
    if len(set(positions)) < len(positions):
        yield f"aux_positions.at={positions} names a classifier twice; name each once"
    yield from _range_problems(config)
    yield from _name_problems(config)
    yield from _family_problems(config.backbone)
    yield from _design_problems(design)
    yield from _recipe_problems(config.recipe)
    yield from _data_problems(config.data)
    side = config.data.image_size
    if config.recipe.pad_mode is PadMode.reflect and side is not None and config.data.pad >= side:
        yield (
            f"data.pad={config.data.pad} must be below data.image_size={side} with "
            f"recipe.pad_mode=reflect"
        )
    for name, weight in (("alpha", config.loss.alpha), ("beta", config.loss.beta)):
        if not (math.isfinite(weight) and weight >= 0):
            yield f"loss.{name}={weight} must be a finite number of at least 0"
    noise = config.label_noise
    if not 0 <= noise.ratio < 1:
        yield f"label_noise.ratio={noise.ratio} must be at least 0 and below 1"
    elif (noise.kind is NoiseKind.none) != (noise.ratio == 0):
        yield (
            f"label_noise.ratio={noise.ratio} contradicts label_noise={noise.kind.value}; "
            f"noise needs both or neither"
        )
    if not 0 <= config.seed < 2**63:
        yield f"seed={config.seed} must be at least 0 and below 2^63"
    if config.sweep is not None and not is_sweep_name(config.sweep):
        yield (
            f"sweep={short(config.sweep)} must be letters, digits, dots, dashes and "
            f"underscores, for it names a folder"
        )
    yield from tracking_problems(config.tracking)


# Key -> the least and the most it can be, and what more is to be said of it. What lies beyond is a
# slip of the finger: it would overflow, or take all memory or years, only after the run has begun.
RANGES = {
    "aux_design.conv_channels": (1, 100_000, ""),
    "aux_design.hidden": (1, 1_000_000, ""),
    "aux_design.max_blocks": (1, 1000, ""),
    "aux_design.pool": (1, 1000, ""),
    "data.holdout": (0, 100_000_000, ", the number of training images to keep out of training"),
    "data.image_size": (1, 10_000, ""),
    "data.num_classes": (1, 1_000_000, ""),
    "data.pad": (0, 1000, ""),
    "data.resize": (1, 10_000, ""),
    "data.test_images": (1, 10_000_000, ""),
    "data.train_images": (1, 10_000_000, ""),
    "data.workers": (0, 1024, ", or null for one a core"),
    "eval_batch_size": (1, 1_000_000, ""),
    "kd_teacher.image_size": (1, 10_000, ""),
    "recipe.batch_size": (1, 1_000_000, ""),
    "recipe.epochs": (1, 1_000_000, ""),
    "threads": (1, 4096, ", or null for all cores"),
    "tracking.drain_seconds": (0, 86_400, ", a day"),
}


def _range_problems(config: Config) -> Iterator[str]:
    for key, (least, most, more) in RANGES.items():
        part, _, name = key.rpartition(".")
        value = getattr(getattr(config, part) if part else config, name)
        if value is not None and not least <= value <= most:
            yield f"{key}={short(value)} must be at least {least} and at most {most}{more}"
    for name, branch in config.backbone.branches.items():
        for number, stage in enumerate(branch.stages):
            for key, most in (("blocks", 1000), ("width", 100_000)):
                if not 1 <= (value := getattr(stage, key)) <= most:
                    where = f"backbone.branches.{short(name)}.stages[{number}].{key}"
                    yield f"{where}={short(value)} must be at least 1 and at most {most}"
    # the families say what the least is
    for key, most in (("depth", 2000), ("width", 100), ("growth", 1000)):
        if (getattr(config.backbone, key) or 0) > most:
            yield f"backbone.{key}={short(getattr(config.backbone, key))} must be at most {most}"


def _name_problems(config: Config) -> Iterator[str]:
    """Names of folders, of files and of an experiment."""
    names = {
        "runs_dir": config.runs_dir,
        "results_dir": config.results_dir,
        "data.root": config.data.root,
        "kd_teacher.path": config.kd_teacher.path,
        "tracking.experiment": config.tracking.experiment,
    }
    for key, name in names.items():
        if name is not None and not name.strip():
            yield f"{key}={name} is empty; give a name"
        elif name is not None and one_line(name, len(name) + 1) != name:
            yield (
                f"{key}={short(name)} has a character in it that cannot be seen; give another name"
            )


def tracking_problems(tracking: Tracking) -> Iterator[str]:
    """What is wrong with where runs are to be tracked, a line each."""
    uri = tracking.uri or ""
    shown = without_password(uri)
    if tracking.kind is TrackingKind.off:
        return
    if tracking.kind is TrackingKind.server:
        if not uri:
            yield (
                "tracking.uri is empty; give https://HOST there or in MLFLOW_TRACKING_URI, or "
                "choose tracking=off"
            )
        elif not re.match(r"https?://[^/]", uri):
            yield (
                f"tracking.uri={shown} names no server; give https://HOST, or choose tracking=local"
            )
    elif not uri:
        yield (
            "tracking.uri is empty; name a store, for example sqlite:///mlflow.db, or choose "
            "tracking=off"
        )
    elif uri.startswith(("http://", "https://")):
        yield f"tracking.uri={shown} is a server; choose tracking=server"
    elif not re.match(r"(sqlite:///|postgresql(\+\w+)?://|mysql(\+\w+)?://).", uri):
        yield (
            f"tracking.uri={shown} names no store; give sqlite:///FILE or "
            f"postgresql://HOST/DATABASE"
        )
    if has_password(uri):
        where = (
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            if "http" in uri
            else "PGPASSWORD or a .pgpass file"
        )
        what = "has a password in it, or a token, which would stand in every record"
        yield f"tracking.uri={shown} {what}; take it out and set {where}"


# Field of a backbone -> the family it belongs to. Elsewhere it would change nothing but the cell's
# identity.
_FAMILY_FIELDS = {"width": "wrn", "dropout": "wrn", "growth": "densenet"}


def _family_problems(backbone: Backbone) -> Iterator[str]:
    if not 0 <= backbone.dropout < 1:
        yield f"backbone.dropout={backbone.dropout} must be at least 0 and below 1"
    for key, family in _FAMILY_FIELDS.items():
        if getattr(backbone, key) and backbone.family != family:
            yield (
                f"backbone.{key}={getattr(backbone, key)} is for the family {family}, this one "
                f"is {backbone.family}; drop it"
            )


def _design_problems(design: AuxDesign) -> Iterator[str]:
    if not 0 < design.width <= 100:
        yield f"aux_design.width={design.width} must be above 0 and at most 100"


def _recipe_problems(recipe: Recipe) -> Iterator[str]:
    for key in ("lr", "gamma"):
        value = getattr(recipe, key)
        if not (math.isfinite(value) and value > 0):
            yield f"recipe.{key}={value} must be a finite number above 0"
    if not 0 <= recipe.momentum < 1:
        yield f"recipe.momentum={recipe.momentum} must be at least 0 and below 1"
    if recipe.nesterov and recipe.momentum == 0:
        yield (
            "recipe.nesterov=true needs momentum; set recipe.momentum above 0, or "
            "recipe.nesterov=false"
        )
    if not (math.isfinite(recipe.weight_decay) and recipe.weight_decay >= 0):
        yield f"recipe.weight_decay={recipe.weight_decay} must be a finite number of at least 0"
    if not 0 <= recipe.warmup_epochs < max(recipe.epochs, 1):
        yield (
            f"recipe.warmup_epochs={recipe.warmup_epochs} must be at least 0 and below "
            f"recipe.epochs={recipe.epochs}"
        )
    yield from _channel_problems("recipe", recipe.mean, recipe.std)
    marks = recipe.milestones
    if any(
        not math.isfinite(mark) or mark <= 0 or (mark >= 1 and mark != int(mark)) for mark in marks
    ):
        yield (
            f"recipe.milestones={marks} must be fractions in (0, 1) of all epochs, or whole "
            f"epochs of at least 1"
        )
    elif len({mark < 1 for mark in marks}) > 1 or sorted(set(marks)) != marks:
        yield f"recipe.milestones={marks} must rise, and be all fractions or all whole epochs"


def _data_problems(data: Data) -> Iterator[str]:
    if data.augmentation is not Augmentation.pad_crop:
        if data.source not in ("imagefolder", "imagenet"):
            yield (
                f"data.augmentation={data.augmentation.value} needs data=imagefolder; "
                f"data.source={data.source} has pad_crop"
            )
        if data.image_size is None or data.image_size > data.resize:
            yield (
                f"data.image_size={data.image_size} must be given, and at most "
                f"data.resize={data.resize}"
            )
        if data.mean is None or data.std is None:
            yield "data.mean and data.std must be given where images are not kept in memory"
    if not (math.isfinite(data.cache_gib) and data.cache_gib >= 0):
        yield (
            f"data.cache_gib={data.cache_gib} must be a finite number of at least 0, in GiB; 0 "
            f"keeps no decoded images"
        )
    for key in ("image_column", "label_column"):
        if (name := getattr(data, key)) is not None and data.source != "parquet":
            yield (
                f"data.{key}={short(name)} is for data=parquet; data.source={data.source} has "
                f"no columns, drop it"
            )
    yield from _channel_problems("data", data.mean, data.std)


def _channel_problems(
    where: str, mean: list[float] | None, std: list[float] | None
) -> Iterator[str]:
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and (len(values) != 3 or not all(math.isfinite(v) for v in values)):
            yield f"{where}.{key}={values} must be three finite numbers, one for each channel"
    if std is not None and any(v <= 0 for v in std):
        yield f"{where}.std={std} must be above 0"


def distillation_problems(config: Config) -> Iterator[str]:
    """What is wrong with the numbers of distillation and with who is taught, a line each."""
    kd = config.kd_teacher
    if kd.kind is TeacherKind.none:
        if kd.students:
            yield (
                f"kd_teacher.students={kd.students} have no teacher; choose teacher=checkpoint "
                f"or teacher=resnet50"
            )
        return
    classifiers = ["c1", *([] if config.aux_positions.alone else sorted(config.aux_positions.at))]
    if (
        not kd.students
        or len(set(kd.students)) < len(kd.students)
        or not set(kd.students) <= set(classifiers)
    ):
        yield (
            f"kd_teacher.students={kd.students} must name classifiers of this network, each "
            f"once: {', '.join(classifiers)}"
        )
    own = [key for key in ("mean", "std", "image_size") if getattr(kd, key) is not None]
    if own and kd.path is None:
        yield (
            f"kd_teacher.{own[0]} is for a file (kd_teacher.path); a run and torchvision's "
            f"weights have their own, drop it"
        )
    yield from _channel_problems("kd_teacher", kd.mean, kd.std)
    for key in ("temperature", "weight"):
        value = getattr(kd, key)
        if not (math.isfinite(value) and value > 0):
            yield f"kd_teacher.{key}={value} must be a finite number above 0"
