"""A composed configuration to a valid one.

Values that depend on the data are filled in, and everything is looked at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from functools import cache, reduce
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf

from dks.config.checks import config_problems, distillation_problems
from dks.config.compose import Composed
from dks.config.errors import RequestError, short
from dks.config.files import choice_file, choices
from dks.config.identity import canonical, canonical_json, flatten
from dks.config.methods import PAPERS, method_of
from dks.config.names import METHOD_GROUPS, is_cell_id, long_name
from dks.config.registry import KINDS, find, refuse_own
from dks.config.schema import (
    Compute,
    Config,
    Data,
    DesignKind,
    NoiseKind,
    Strategy,
    TeacherKind,
    TrackingKind,
)
from dks.training.last_batch import lone_image_problems

T = TypeVar("T")


class Resolver:
    """`resolve` for the many configurations of one plan.

    Their data, devices, networks and teachers are few, so each is looked at once. What it remembers
    is what the files said when it looked: use one for one plan.

    Args:
        absent_ok: go on where data is not on this machine but known without it (CIFAR, ImageNet);
            `absent` then says what is missing, a line each. The configurations are the very ones
            that a machine with the files would make.

    `notes` is what a person should know of the data that was looked at, a line each.
    """

    def __init__(self, absent_ok: bool = False) -> None:
        self.absent_ok = absent_ok
        self.absent: list[str] = []
        self.notes: list[str] = []
        self._data: dict[str, Data | RequestError] = {}
        self._sizes: dict[str, tuple[tuple[int, int] | None, tuple[int, int] | None]] = {}
        self._devices: dict[str, tuple[str, ...]] = {}
        self._teachers: dict[str, str | RequestError | None] = {}
        self._presets: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}

    def __call__(self, composed: Composed) -> Config:
        """The configuration with every value that depends on the data filled in, checked as a
        whole, in its canonical form.

        Raises:
            RequestError: with one line for every problem found.
        """
        config, contradictions = composed.config, list(self._method_problems(composed))
        settled = list(_settle(config))
        if settled:
            raise RequestError(*settled)
        if config.tracking.kind is TrackingKind.server:
            config.tracking.uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        problems = [
            *contradictions,
            *config_problems(config),
            *self._device_problems(config.device),
        ]
        problems += self._compiler_problems(config.compute)
        try:
            config.data = self._described(config.data)
        except RequestError as error:
            problems.extend(error.problems)
        if (
            not problems
            and config.label_noise.kind is not NoiseKind.none
            and config.data.num_classes == 1
        ):
            problems.append(
                f"label_noise={config.label_noise.kind.value} needs a wrong class, and "
                f"{config.data.name} has only one"
            )
        if not problems:
            problems.extend(_network_problems(config))
            problems.extend(self._teacher_problems(config))
        if not problems:
            problems.extend(self._batch_problems(config))
        if problems:
            raise RequestError(*problems)
        return canonical(config)

    def _method_problems(self, composed: Composed) -> Iterator[str]:
        """Tables call a cell by its preset.

        One that the paper names has to be that method, any other as its file says.
        """
        preset, trained = composed.choices.get("method"), method_of(composed.config)
        if preset in PAPERS and preset != trained:
            groups = ", ".join(f"{group}={composed.choices[group]}" for group in METHOD_GROUPS)
            yield (
                f"method={preset} contradicts {groups}, which is {trained}; drop "
                f"method={preset} or the choice against it"
            )
        if preset is None or preset in PAPERS:
            return
        if preset not in self._presets:
            self._presets[preset] = _set_by(preset)
        chosen, values = self._presets[preset]
        held: dict[str, Any] = {group: composed.choices.get(group) for group in chosen}
        held |= {key: reduce(_part, key.split("."), composed.config) for key in values}
        for key, value in {**chosen, **values}.items():
            if canonical_json(held[key]) != canonical_json(value):
                found = short(_plain(held[key]))
                yield (
                    f"method={preset} contradicts {key}={found}, for its file has "
                    f"{short(value)}; drop one of them"
                )

    def _described(self, data: Data) -> Data:
        from dks.data import describe

        key = repr(data)
        if key not in self._data:
            absent: list[str] = []
            try:
                self._data[key] = describe(data, absent if self.absent_ok else None, self.notes)
            except RequestError as error:
                self._data[key] = error
            self.absent = list(dict.fromkeys([*self.absent, *absent]))
        return _found(self._data[key])

    def _batch_problems(self, config: Config) -> Iterator[str]:
        """What is wrong with the last batch, where it is known before a run how many images there
        are, and of which size.
        """
        from dks.data.sizes import image_size, images

        key = repr(config.data)
        if key not in self._sizes:
            self._sizes[key] = images(config.data), image_size(config.data)
        count, size = self._sizes[key]
        if count is not None and size is not None:
            yield from lone_image_problems(
                config, count[0], int(os.environ.get("WORLD_SIZE", "1")), size
            )

    def _device_problems(self, device: str) -> tuple[str, ...]:
        if device not in self._devices:
            problems = tuple(_device_problems(device))
            # the machine that runs it may have one
            if self.absent_ok and problems and _is_device(device):
                self.absent = [*self.absent, *problems]
                problems = ()
            self._devices[device] = problems
        return self._devices[device]

    def _compiler_problems(self, compute: Compute) -> tuple[str, ...]:
        wanted = (os.environ.get("CXX"), "g++", "clang++", "c++")
        if not compute.compile or any(shutil.which(name) for name in wanted if name):
            return ()
        problem = (
            "compute.compile=true needs a C++ compiler, and none is found; install g++, "
            "set CXX, or drop it"
        )
        if not self.absent_ok:
            return (problem,)
        # the machine that runs it may have one
        self.absent = list(dict.fromkeys([*self.absent, problem]))
        return ()

    def _teacher_problems(self, config: Config) -> Iterator[str]:
        """What is wrong with the teacher, if there is to be one.

        Notes the content of its file in the configuration.
        """
        from dks.data.sizes import image_size

        kd = config.kd_teacher
        yield from distillation_problems(config)
        if kd.kind is TeacherKind.none:
            return
        key = repr(
            (
                kd.kind,
                kd.backbone,
                kd.path,
                kd.cell,
                kd.mean,
                kd.std,
                config.runs_dir,
                config.data.num_classes,
            )
        )
        if key not in self._teachers:
            try:
                self._teachers[key] = _teacher_fingerprint(config)
            except RequestError as error:
                self._teachers[key] = error
        if kd.image_size is not None and image_size(config.data) == (kd.image_size, kd.image_size):
            kd.image_size = None  # the same experiment in its one spelling
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
    """Give extensions their versions and the defaults of their options.

    What is wrong with them, a line each.
    """
    for kind, own in _own_names().items():
        part, key = KINDS[kind].split(".")
        node = getattr(config, part)
        name, given = getattr(node, key), node.options
        try:
            if name in own:
                refuse_own(kind, name)
                if given:
                    yield (
                        f"{part}.options={dict(given)} are for extensions; {part}.{key}={name} "
                        f"has none, drop them"
                    )
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


def _part(node: Any, name: str) -> Any:
    return node.get(name) if isinstance(node, dict) else getattr(node, name, None)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _set_by(preset: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Group -> choice, and dotted key -> value, of what the file of a preset sets, and those that
    it is made from.
    """
    tree = cast(
        "dict[str, Any]", OmegaConf.to_container(OmegaConf.load(choice_file("method", preset)))
    )
    chosen, values = dict[str, str](), dict[str, Any]()
    entries = tree.pop("defaults", [])
    for entry in entries:
        if isinstance(entry, str) and (name := entry.removeprefix("/method/")) in choices("method"):
            for known, more in zip((chosen, values), _set_by(name), strict=True):
                known |= more
    for group, choice in (
        item for entry in entries if isinstance(entry, dict) for item in entry.items()
    ):
        chosen[long_name(group.removeprefix("override ").lstrip("/"))] = choice
    values |= flatten(tree)
    groups = {group: choice for group, choice in chosen.items() if not group.startswith("hydra")}
    return groups, {
        key: value
        for key, value in values.items()
        if not key.startswith("hydra.") and "${" not in str(value)
    }


def _device_problems(device: str) -> Iterator[str]:
    if device == "auto":
        return
    import torch

    if not _is_device(device):
        yield f"device={device}: choose auto, cpu, cuda or cuda:N"
    elif torch.device(device).type == "cuda" and not torch.cuda.is_available():
        yield f"device={device}: no CUDA device is usable here; choose device=cpu or device=auto"
    elif (
        torch.device(device).type == "cuda"
        and (torch.device(device).index or 0) >= torch.cuda.device_count()
    ):
        yield (
            f"device={device}: this machine has {torch.cuda.device_count()} CUDA device(s), "
            f"counted from 0"
        )


def _is_device(device: str) -> bool:
    import torch

    try:
        return torch.device(device).type in ("cpu", "cuda")
    except RuntimeError:
        return False


def _teacher_fingerprint(config: Config) -> str | None:
    """The content of the teacher's file, once the teacher was checked; None if it is no file.

    Raises:
        RequestError: there is no such teacher, or it does not fit the data.
    """
    from dks.models.weights import fingerprint
    from dks.objectives.teacher import check_teacher

    kd = config.kd_teacher
    if kd.kind is TeacherKind.checkpoint:
        if (kd.path is None) == (kd.cell is None):
            raise RequestError(
                "teacher=checkpoint needs kd_teacher.cell=CELL_ID, or kd_teacher.path=FILE with "
                "kd_teacher.backbone=NAME"
            )
        if kd.cell is not None and not is_cell_id(kd.cell):
            raise RequestError(
                f"kd_teacher.cell={short(kd.cell)} is no id of a cell; they are the names of the "
                f"folders in {config.runs_dir}"
            )
        if kd.backbone is not None and kd.backbone not in (known := choices("backbone")):
            raise RequestError(
                f"kd_teacher.backbone={short(kd.backbone)}: no such choice; choose from "
                f"{', '.join(known)}"
            )
        if kd.path is not None and kd.backbone is None:
            raise RequestError(
                f"kd_teacher.path={kd.path} needs kd_teacher.backbone, the network it holds, for "
                f"example resnet50"
            )
    check_teacher(config)
    return None if kd.path is None else fingerprint(kd.path)


# Sweeps repeat few networks over many cells, so each is built once.
_built: dict[str, str | None] = {}


def _network_problems(config: Config) -> Iterator[str]:
    """What the builders say of this network.

    It is built on the meta device, which allocates nothing.
    """
    import torch

    from dks.models import build_network

    key = repr((config.backbone, config.aux_design, config.aux_positions, config.data.num_classes))
    if key not in _built:
        try:
            with torch.device("meta"):
                # drawing weights on meta takes a second of imports
                build_network(config, initialise=False)
            _built[key] = None
        except RequestError as error:
            _built[key] = str(error)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            # what torch says of sizes
            _built[key] = f"a network of these sizes cannot be built: {str(error).splitlines()[0]}"
    if problem := _built[key]:
        yield problem
