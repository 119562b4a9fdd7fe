"""Cross-field checks, all made before anything runs. Each problem is one line: what is wrong, and what would be right."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

from dks.config.compose import Composed
from dks.config.errors import RequestError, one_line, short
from dks.config.extensions import KINDS, find, refuse_own
from dks.config.files import choices
from dks.config.identity import canonical
from dks.config.methods import method_of
from dks.config.names import METHOD_GROUPS, is_cell_id, is_sweep_name
from dks.config.schema import (
    Augmentation,
    AuxDesign,
    Backbone,
    Compute,
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

T = TypeVar("T")


class Resolver:
    """`resolve` for the many configurations of one plan.

    Their data, devices, networks and teachers are few, so each is looked at once. What it remembers is what the files said when
    it looked: use one for one plan.

    Args:
        absent_ok: go on where data is not on this machine but known without it (CIFAR, ImageNet); `absent` then says what is
            missing, a line each. The configurations are the very ones that a machine with the files would make.
    """

    def __init__(self, absent_ok: bool = False) -> None:
        self.absent_ok = absent_ok
        self.absent: list[str] = []
        self._data: dict[str, Data | RequestError] = {}
        self._devices: dict[str, tuple[str, ...]] = {}
        self._teachers: dict[str, str | RequestError | None] = {}

    def __call__(self, composed: Composed) -> Config:
        """The configuration with every value that depends on the data filled in, checked as a whole, in its canonical form.

        Raises:
            RequestError: with one line for every problem found.
        """
        config = composed.config
        settled = list(_settle(config))
        if settled:
            raise RequestError(*settled)
        if config.tracking.kind is TrackingKind.server:
            config.tracking.uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        problems = [*_method_problems(composed), *_config_problems(config), *self._device_problems(config.device)]
        problems += self._compiler_problems(config.compute)
        try:
            data = self._described(config.data)
            config.data = dataclasses.replace(
                config.data, num_classes=data.num_classes, name=data.name, fingerprint=data.fingerprint
            )
        except RequestError as error:
            problems.extend(error.problems)
        if not problems:
            problems.extend(_network_problems(config))
            problems.extend(self._teacher_problems(config))
        if problems:
            raise RequestError(*problems)
        return canonical(config)

    def _described(self, data: Data) -> Data:
        from dks.data import describe

        key = repr(data)
        if key not in self._data:
            absent: list[str] = []
            try:
                self._data[key] = describe(data, absent if self.absent_ok else None)
            except RequestError as error:
                self._data[key] = error
            self.absent = list(dict.fromkeys([*self.absent, *absent]))
        return _found(self._data[key])

    def _device_problems(self, device: str) -> tuple[str, ...]:
        if device not in self._devices:
            problems = tuple(_device_problems(device))
            if self.absent_ok and problems and _is_device(device):  # the machine that runs it may have one
                self.absent = [*self.absent, *problems]
                problems = ()
            self._devices[device] = problems
        return self._devices[device]

    def _compiler_problems(self, compute: Compute) -> tuple[str, ...]:
        wanted = (os.environ.get("CXX"), "g++", "clang++", "c++")
        if not compute.compile or any(shutil.which(name) for name in wanted if name):
            return ()
        problem = "compute.compile=true needs a C++ compiler, and none is found; install g++, set CXX, or drop it"
        if not self.absent_ok:
            return (problem,)
        self.absent = list(dict.fromkeys([*self.absent, problem]))  # the machine that runs it may have one
        return ()

    def _teacher_problems(self, config: Config) -> Iterator[str]:
        """What is wrong with the teacher, if there is to be one; notes the content of its file in the configuration."""
        kd = config.kd_teacher
        yield from _distillation_problems(config)
        if kd.kind is TeacherKind.none:
            return
        key = repr((kd.kind, kd.backbone, kd.path, kd.cell, config.runs_dir, config.data.num_classes))
        if key not in self._teachers:
            try:
                self._teachers[key] = _teacher_fingerprint(config)
            except RequestError as error:
                self._teachers[key] = error
        try:
            kd.fingerprint = _found(self._teachers[key])
        except RequestError as error:
            yield from error.problems


def resolve(composed: Composed) -> Config:
    """One configuration, as `Resolver` resolves it.

    Raises:
        RequestError: with one line for every problem found.
    """
    return Resolver()(composed)


@cache
def _own_names() -> dict[str, frozenset[str]]:
    """Kind of extension -> the names that are ours."""
    from dks.data.registry import SOURCES
    from dks.models.registry import FAMILIES

    own: dict[str, Iterable[str]] = {
        "backbone": FAMILIES,
        "aux_design": DesignKind,
        "matching_strategy": Strategy,
        "data": SOURCES,
    }
    return {kind: frozenset(str(name) for name in names) for kind, names in own.items()}


def _settle(config: Config) -> Iterator[str]:
    """Give extensions their versions and the defaults of their options; what is wrong with them, a line each."""
    for kind, own in _own_names().items():
        part, key = KINDS[kind].split(".")
        node = getattr(config, part)
        name, given = getattr(node, key), node.options
        try:
            if name in own:
                refuse_own(kind, name)
                if given:
                    yield f"{part}.options={dict(given)} are for extensions; {part}.{key}={name} has none, drop them"
                continue
            extension = find(kind, name, own)
            node.options = extension.component.filled_in(given)
            setattr(node, key, extension.reference)
        except RequestError as error:
            yield from error.problems


def _found(remembered: T | RequestError) -> T:
    if isinstance(remembered, RequestError):
        raise RequestError(*remembered.problems)
    return remembered


def _method_problems(composed: Composed) -> Iterator[str]:
    preset, trained = composed.choices.get("method"), method_of(composed.config)
    if preset is not None and preset != trained:
        groups = ", ".join(f"{group}={composed.choices[group]}" for group in METHOD_GROUPS)
        yield f"method={preset} contradicts {groups}, which is {trained}; drop method={preset} or the choice against it"


def _config_problems(config: Config) -> Iterator[str]:
    design, positions, strategy = config.aux_design, config.aux_positions.at, config.matching_strategy.name
    if strategy != Strategy.none and design.kind == DesignKind.none:
        yield (
            f"matching_strategy={strategy} has no auxiliary classifier to match, for aux_design is none; "
            "choose an aux_design (ours, narrow, ...) or matching_strategy=none"
        )
    elif design.kind == DesignKind.none and positions:
        yield (
            f"aux_positions={''.join(positions)} without branches, for aux_design is none; "
            "choose an aux_design (ours, narrow, ...) or aux_positions=none"
        )
    elif design.kind != DesignKind.none and not positions:
        yield "aux_positions=none leaves no place for the branches; choose aux_positions=c2c3, or aux_design=none"
    elif config.aux_positions.alone and len(positions) != 1:
        yield f"the path through one branch alone needs one position, not {positions}; choose positions=c2 or positions=c3"
    elif config.aux_positions.alone and strategy != Strategy.none:
        yield f"matching_strategy={strategy} has nothing to match on a single path; choose matching_strategy=none"
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
        yield f"data.pad={config.data.pad} must be below data.image_size={side} with recipe.pad_mode=reflect"
    for name, weight in (("alpha", config.loss.alpha), ("beta", config.loss.beta)):
        if not (math.isfinite(weight) and weight >= 0):
            yield f"loss.{name}={weight} must be a finite number of at least 0"
    noise = config.label_noise
    if not 0 <= noise.ratio < 1:
        yield f"label_noise.ratio={noise.ratio} must be at least 0 and below 1"
    elif (noise.kind is NoiseKind.none) != (noise.ratio == 0):
        yield f"label_noise.ratio={noise.ratio} contradicts label_noise={noise.kind.value}; noise needs both or neither"
    if not 0 <= config.seed < 2**63:
        yield f"seed={config.seed} must be at least 0 and below 2^63"
    if config.sweep is not None and not is_sweep_name(config.sweep):
        yield f"sweep={short(config.sweep)} must be letters, digits, dots, dashes and underscores, for it names a folder"
    yield from tracking_problems(config.tracking)


# Key -> the least and the most it can be, and what more is to be said of it. What lies beyond is a slip of the finger: it would
# overflow, or take all memory or years, only after the run has begun.
_RANGES = {
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
    "recipe.batch_size": (1, 1_000_000, ""),
    "recipe.epochs": (1, 1_000_000, ""),
    "threads": (1, 4096, ", or null for all cores"),
    "tracking.drain_seconds": (0, 86_400, ", a day"),
}


def _range_problems(config: Config) -> Iterator[str]:
    for key, (least, most, more) in _RANGES.items():
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
    for key, most in (("depth", 2000), ("width", 100), ("growth", 1000)):  # the families say what the least is
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
            yield f"{key}={short(name)} has a character in it that cannot be seen; give another name"


def tracking_problems(tracking: Tracking) -> Iterator[str]:
    """What is wrong with where runs are to be tracked, a line each."""
    uri = tracking.uri or ""
    shown = without_password(uri)
    if tracking.kind is TrackingKind.off:
        return
    if tracking.kind is TrackingKind.server:
        if not uri:
            yield "tracking.uri is empty; give https://HOST there or in MLFLOW_TRACKING_URI, or choose tracking=off"
        elif not re.match(r"https?://[^/]", uri):
            yield f"tracking.uri={shown} names no server; give https://HOST, or choose tracking=local"
    elif not uri:
        yield "tracking.uri is empty; name a store, for example sqlite:///mlflow.db, or choose tracking=off"
    elif uri.startswith(("http://", "https://")):
        yield f"tracking.uri={shown} is a server; choose tracking=server"
    elif not re.match(r"(sqlite:///|postgresql(\+\w+)?://|mysql(\+\w+)?://).", uri):
        yield f"tracking.uri={shown} names no store; give sqlite:///FILE or postgresql://HOST/DATABASE"
    if has_password(uri):
        where = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if "http" in uri else "PGPASSWORD or a .pgpass file"
        yield f"tracking.uri={shown} has a password in it, which would stand in every record; take it out and set {where}"


# Field of a backbone -> the family it belongs to. Elsewhere it would change nothing but the cell's identity.
_FAMILY_FIELDS = {"width": "wrn", "dropout": "wrn", "growth": "densenet"}


def _family_problems(backbone: Backbone) -> Iterator[str]:
    if not 0 <= backbone.dropout < 1:
        yield f"backbone.dropout={backbone.dropout} must be at least 0 and below 1"
    for key, family in _FAMILY_FIELDS.items():
        if getattr(backbone, key) and backbone.family != family:
            yield f"backbone.{key}={getattr(backbone, key)} is for the family {family}, this one is {backbone.family}; drop it"


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
        yield "recipe.nesterov=true needs momentum; set recipe.momentum above 0, or recipe.nesterov=false"
    if not (math.isfinite(recipe.weight_decay) and recipe.weight_decay >= 0):
        yield f"recipe.weight_decay={recipe.weight_decay} must be a finite number of at least 0"
    if not 0 <= recipe.warmup_epochs < max(recipe.epochs, 1):
        yield f"recipe.warmup_epochs={recipe.warmup_epochs} must be at least 0 and below recipe.epochs={recipe.epochs}"
    yield from _channel_problems("recipe", recipe.mean, recipe.std)
    marks = recipe.milestones
    if any(not math.isfinite(mark) or mark <= 0 or (mark >= 1 and mark != int(mark)) for mark in marks):
        yield f"recipe.milestones={marks} must be fractions in (0, 1) of all epochs, or whole epochs of at least 1"
    elif len({mark < 1 for mark in marks}) > 1 or sorted(set(marks)) != marks:
        yield f"recipe.milestones={marks} must rise, and be all fractions or all whole epochs"


def _data_problems(data: Data) -> Iterator[str]:
    if data.augmentation is not Augmentation.pad_crop:
        if data.source not in ("imagefolder", "imagenet"):
            yield f"data.augmentation={data.augmentation.value} needs data=imagefolder; data.source={data.source} has pad_crop"
        if data.image_size is None or data.image_size > data.resize:
            yield f"data.image_size={data.image_size} must be given, and at most data.resize={data.resize}"
        if data.mean is None or data.std is None:
            yield "data.mean and data.std must be given where images are not kept in memory"
    if not (math.isfinite(data.cache_gib) and data.cache_gib >= 0):
        yield f"data.cache_gib={data.cache_gib} must be a finite number of at least 0, in GiB; 0 keeps no decoded images"
    yield from _channel_problems("data", data.mean, data.std)


def _channel_problems(where: str, mean: list[float] | None, std: list[float] | None) -> Iterator[str]:
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and (len(values) != 3 or not all(math.isfinite(v) for v in values)):
            yield f"{where}.{key}={values} must be three finite numbers, one for each channel"
    if std is not None and any(v <= 0 for v in std):
        yield f"{where}.std={std} must be above 0"


def _device_problems(device: str) -> Iterator[str]:
    import torch

    if device == "auto":
        return
    if not _is_device(device):
        yield f"device={device}: choose auto, cpu, cuda or cuda:N"
    elif torch.device(device).type == "cuda" and not torch.cuda.is_available():
        yield f"device={device}: no CUDA device is usable here; choose device=cpu or device=auto"
    elif torch.device(device).type == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        yield f"device={device}: this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0"


def _is_device(device: str) -> bool:
    import torch

    try:
        return torch.device(device).type in ("cpu", "cuda")
    except RuntimeError:
        return False


def _distillation_problems(config: Config) -> Iterator[str]:
    kd = config.kd_teacher
    if kd.kind is TeacherKind.none:
        if kd.students:
            yield f"kd_teacher.students={kd.students} have no teacher; choose teacher=checkpoint or teacher=resnet50"
        return
    classifiers = ["c1", *([] if config.aux_positions.alone else sorted(config.aux_positions.at))]
    if not kd.students or len(set(kd.students)) < len(kd.students) or not set(kd.students) <= set(classifiers):
        yield f"kd_teacher.students={kd.students} must name classifiers of this network, each once: {', '.join(classifiers)}"
    for key in ("temperature", "weight"):
        value = getattr(kd, key)
        if not (math.isfinite(value) and value > 0):
            yield f"kd_teacher.{key}={value} must be a finite number above 0"


def _teacher_fingerprint(config: Config) -> str | None:
    """The content of the teacher's file, once the teacher was checked; None if it is no file.

    Raises:
        RequestError: there is no such teacher, or it does not fit the data.
    """
    from dks.teacher import check_teacher
    from dks.weights import fingerprint

    kd = config.kd_teacher
    if kd.kind is TeacherKind.checkpoint:
        if (kd.path is None) == (kd.cell is None):
            raise RequestError(
                "teacher=checkpoint needs kd_teacher.cell=CELL_ID, or kd_teacher.path=FILE with kd_teacher.backbone=NAME"
            )
        if kd.cell is not None and not is_cell_id(kd.cell):
            raise RequestError(
                f"kd_teacher.cell={short(kd.cell)} is no id of a cell; they are the names of the folders in {config.runs_dir}"
            )
        if kd.backbone is not None and kd.backbone not in (known := choices("backbone")):
            raise RequestError(f"kd_teacher.backbone={short(kd.backbone)}: no such choice; choose from {', '.join(known)}")
        if kd.path is not None and kd.backbone is None:
            raise RequestError(
                f"kd_teacher.path={kd.path} needs kd_teacher.backbone, the network it holds, for example resnet50"
            )
    check_teacher(config)
    return None if kd.path is None else fingerprint(kd.path)


# Sweeps repeat few networks over many cells, so each is built once.
_built: dict[str, str | None] = {}


def _network_problems(config: Config) -> Iterator[str]:
    """What the builders say of this network: it is built on the meta device, which allocates nothing."""
    import torch

    from dks.models import build_network

    key = repr((config.backbone, config.aux_design, config.aux_positions, config.data.num_classes))
    if key not in _built:
        try:
            with torch.device("meta"):
                build_network(config, initialise=False)  # drawing weights on meta takes a second of imports
            _built[key] = None
        except RequestError as error:
            _built[key] = str(error)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # what torch says of sizes
            _built[key] = f"a network of these sizes cannot be built: {str(error).splitlines()[0]}"
    if problem := _built[key]:
        yield problem
