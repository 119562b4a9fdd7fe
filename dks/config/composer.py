"""Composing the many cells of a sweep.

Through Hydra once for every combination of choices, not once for every cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, TypeVar, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dks.config.compose import Compose, Composed, UnsettledError
from dks.config.errors import RequestError
from dks.config.files import groups
from dks.config.schema import Config

T = TypeVar("T")


class _Kind(Enum):
    """What one override asks for."""

    choice = "choice"  # a file of a group: Hydra composes
    value = "value"  # a plain value for a key of the schema: set on what was composed
    # a plain value for a key that is not in the schema, or one that it refuses: Hydra says why
    wrong = "wrong"
    other = "other"  # anything else: Hydra composes the whole cell


@dataclasses.dataclass(frozen=True)
class _Reading:
    kind: _Kind
    path: tuple[str, ...] = ()  # of a value: the fields that lead to it
    value: Any = None  # of a value: as the schema has it


class Composer:
    """Equal to the function `compose` that it is given, for the overrides of one cell after
    another, but fast.

    Hydra takes a tenth of a second for a cell, and the cells of a sweep differ mostly in plain
    values such as `seed=3`. So each combination of choices is composed once, each plain value is
    converted once by OmegaConf against the schema, and a cell is a copy with its values set. That
    is what Hydra does, too: it sets values last, wherever they stand. An override of any other kind
    (`+`, `~`, `hydra.`, a package, a value that refers to others, a dict) sends its cell to Hydra
    as a whole.

    The configurations share lists and dicts, which nobody may change in place; their dataclasses
    are each cell's own. What the composer remembers holds as long as the files in `conf/` do: use
    one for one plan.

    Args:
        compose: one composition through Hydra.
    """

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self._parser = OverridesParser.create()
        self._schema = OmegaConf.structured(Config)  # where values are converted
        OmegaConf.set_struct(self._schema, True)
        self._leaves, self._groups = frozenset(_leaves(Config)), frozenset(groups())
        self._parts = {leaf.rpartition(".")[0] for leaf in self._leaves}
        self._readings: dict[str, _Reading] = {}
        self._bases: dict[tuple[str, ...], Composed | RequestError | None] = {}

    def __call__(self, overrides: Sequence[str]) -> Composed:
        """What `compose` makes of these overrides.

        Raises:
            RequestError: as `compose`, in the same words.
        """
        readings = [self._read(line) for line in overrides]
        if any(reading.kind is _Kind.other for reading in readings):
            return self._compose(overrides)
        choices = tuple(
            line
            for line, reading in zip(overrides, readings, strict=True)
            if reading.kind is _Kind.choice
        )
        for line, reading in zip(overrides, readings, strict=True):
            if reading.kind is _Kind.wrong:
                # raises, as for every other cell with these choices and this value
                self._base((*choices, line))
                return self._compose(overrides)
        base = self._base(choices)
        if base is None:
            return self._compose(overrides)
        config = _twin(base.config)
        for name, part in vars(base.config).items():
            if dataclasses.is_dataclass(part):
                setattr(config, name, _twin(part))
        for reading in readings:
            if reading.kind is _Kind.value:
                *parents, last = reading.path
                node: Any = config
                for name in parents:
                    node = getattr(node, name)
                setattr(node, last, reading.value)
        return Composed(config, dict(base.choices))

    def _base(self, overrides: tuple[str, ...]) -> Composed | None:
        """What Hydra makes of overrides that many cells share.

        None where the values of a cell could change the rest of it.

        Raises:
            RequestError: Hydra's, which every cell with these overrides has.
        """
        if overrides not in self._bases:
            try:
                composed = self._compose(overrides)
                self._bases[overrides] = None if composed.interpolated else composed
            except UnsettledError:
                self._bases[overrides] = None
            except RequestError as error:
                self._bases[overrides] = error
        base = self._bases[overrides]
        if isinstance(base, RequestError):
            raise RequestError(*base.problems)
        return base

    def _read(self, line: str) -> _Reading:
        if line not in self._readings:
            try:
                self._readings[line] = self._reading(self._parser.parse_override(line))
            except (HydraException, ValueError):
                # Hydra says what is wrong with it when it composes
                self._readings[line] = _Reading(_Kind.other)
        return self._readings[line]

    def _reading(self, override: Override) -> _Reading:
        key, value = override.key_or_group, override.value()
        plain = (
            override.type is OverrideType.CHANGE
            and override.value_type is ValueType.ELEMENT
            and override.package is None
        )
        if plain and key in self._groups and isinstance(value, str):
            return _Reading(_Kind.choice)
        part, _, name = key.rpartition(".")
        if (
            not plain
            or not _is_literal(value)
            or part not in self._parts
            or key in self._parts
            or not name.isidentifier()
        ):
            return _Reading(_Kind.other)
        if key not in self._leaves:
            return _Reading(_Kind.wrong)
        try:
            OmegaConf.update(self._schema, key, value)
            converted = OmegaConf.select(self._schema, key)
        except OmegaConfBaseException:
            return _Reading(_Kind.wrong)
        if OmegaConf.is_config(converted):
            converted = OmegaConf.to_container(converted)
        return _Reading(_Kind.value, tuple(key.split(".")), converted)


def _leaves(schema: type, prefix: str = "") -> Iterator[str]:
    """The keys that take one value or a list; those of a dict are not fixed by the schema."""
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _leaves(hint, f"{prefix}{name}.")
        elif get_origin(hint) is not dict:
            yield f"{prefix}{name}"


def _is_literal(value: object) -> bool:
    """Does it mean the same whatever the rest of the configuration is? `${...}` refers to it, `???`
    is the lack of a value.
    """
    if isinstance(value, list):
        return all(not isinstance(item, list) and _is_literal(item) for item in value)
    if isinstance(value, str):
        return "$" not in value and "???" not in value
    return value is None or isinstance(value, bool | int | float)


def _twin(part: T) -> T:
    """As `copy.copy`, for a dataclass, and much faster."""
    twin = object.__new__(type(part))
    vars(twin).update(vars(part))
    return twin
