"""From command-line overrides to one typed configuration, through Hydra.

`parse` reads one override; `compose_here` composes one configuration, and a `Composer` the many
cells of a sweep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, cast, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dks.config.errors import RequestError, short
from dks.config.explain import HYDRA_ERRORS, NO_SWEEP_KEY, explain, explain_request
from dks.config.files import declarations, groups
from dks.config.names import SHORT_NAMES
from dks.config.overrides import FIXED, ONE_SWEEPER, SWEEPER, checked, one_choice, parse
from dks.config.registry import catalogue
from dks.config.schema import Config

T = TypeVar("T")


@dataclass(frozen=True)
class Composed:
    """A configuration, and the choices it was composed from (group -> name, as in Hydra)."""

    config: Config
    choices: dict[str, str | None]
    interpolated: bool = False  # some value was written as a reference to others, ${...}


Compose = Callable[[Sequence[str]], Composed]  # from the overrides of one cell


class UnsettledError(RequestError):
    """Wrong, but one more value could set it right.

    Some value is missing, or refers to others that do not fit.
    """


def register_schema() -> None:
    """Make the typed schema known to Hydra as `schema`, the first entry of the primary config."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    # Hydra copies the whole store for each composition and each group it lists, in 20 ms, and again
    # what it reads there.
    vars(store)["__deepcopy__"] = lambda memo: store


def compose_here(overrides: Sequence[str]) -> Composed:
    """One composition by Hydra, outside of its command line.

    Raises:
        RequestError: as `from_hydra`, and where an override is wrong.
    """
    register_schema()
    checked(overrides)  # Hydra does not say the name of every one that is wrong
    try:
        with initialize_config_dir(str(declarations("conf")), version_base="1.3"):
            return from_hydra(compose("config", list(overrides), return_hydra_config=True))
    except HYDRA_ERRORS as error:
        raise RequestError(explain(error)) from error


def from_hydra(composed: DictConfig) -> Composed:
    """The typed configuration inside what Hydra composed, with its `hydra` node.

    Raises:
        RequestError: a short and a long name disagree, a key is unknown or of the wrong type, or a
            file asks of Hydra what it cannot do here; UnsettledError.
    """
    check_hydra(composed.hydra)
    everything = cast(
        "dict[str, str | None]", OmegaConf.to_container(composed.hydra.runtime.choices)
    )
    chosen = {
        group: choice for group, choice in everything.items() if not group.startswith("hydra/")
    }
    if empty := [
        group for group, choice in chosen.items() if choice is None and group in _schema()
    ]:
        raise RequestError(*(f"{group}=null: {one_choice(group)}" for group in empty))
    keys = [str(key) for key in composed if key != "hydra"]
    values = OmegaConf.masked_copy(composed, keys)
    interpolated = "${" in str(OmegaConf.to_container(values))
    try:
        if interpolated:  # perhaps to what Hydra knows
            values = OmegaConf.create({key: composed[key] for key in keys})
        if missing := sorted(OmegaConf.missing_keys(values)):
            raise UnsettledError(*(f"{key} has no value; add {key}=VALUE" for key in missing))
        clashes = [
            f"{short}={chosen[short]} and {long}={chosen[long]} disagree; give one of them"
            for short, long in SHORT_NAMES.items()
            if chosen.get(short) is not None and chosen[short] != chosen[long]
        ]
        if clashes:
            raise RequestError(*clashes)
        for group, choice in chosen.items():
            if choice is not None:
                catalogue().refuse_twins(group, choice)
        return Composed(config_from(values), chosen, interpolated)
    except (OmegaConfBaseException, RequestError) as error:
        if interpolated:
            raise UnsettledError(*explain_request(error)) from error
        raise


def config_from(values: Any) -> Config:
    """A typed configuration from an OmegaConf node or a dict, as `config.yaml` of a run holds it.

    Raises:
        RequestError: a key is unknown, missing or of the wrong type.
    """
    try:
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(_schema(), values)))
    except OmegaConfBaseException as error:
        raise RequestError(explain(error)) from error
    if problems := list(_added(config, "")):
        raise RequestError(*problems)
    return config


def _added(part: Any, prefix: str) -> Iterator[str]:
    """Keys that a `+` has added to a part, where OmegaConf lets them pass."""
    known = [field.name for field in fields(part)]
    for name, value in vars(part).items():
        if name not in known:
            yield f"{prefix}{short(name)}: no such key; keys here are {', '.join(sorted(known))}"
        elif is_dataclass(value):
            yield from _added(value, f"{prefix}{name}.")


@cache
def _schema() -> DictConfig:
    """The schema as OmegaConf has it; never changed, for `merge` copies it."""
    return cast(DictConfig, OmegaConf.structured(Config))


def check_hydra(node: DictConfig) -> None:
    """Look at what files of the configuration, an experiment's for example, ask of Hydra.

    It is done or refused, never ignored.

    Args:
        node: `hydra` of what was composed.

    Raises:
        RequestError: there is something that Hydra cannot do here.
    """
    problems = []
    for key, (expected, why) in FIXED.items():
        *above, name = key.split(".")[1:]
        held = OmegaConf.masked_copy(node[above[0]] if above else node, name)
        # a reference as it is written
        value = cast("dict[str, Any]", OmegaConf.to_container(held))[name]
        value = getattr(value, "name", value)
        if value != expected:
            problems.append(f"{key}={short(value)}: {why}")
    if node.runtime.choices["hydra/launcher"] is None:
        problems.append(f"hydra/launcher=null: {one_choice('hydra/launcher')}")
    sweeper = node.runtime.choices["hydra/sweeper"]
    if sweeper != SWEEPER:
        problems.append(f"hydra/sweeper={short(sweeper)}: {ONE_SWEEPER}")
    elif more := sorted(
        {*map(str, node.sweeper)}
        - {*ConfigStore.instance().load(f"hydra/sweeper/{SWEEPER}.yaml").node}
    ):
        problems += [f"hydra.sweeper.{short(key)}: {NO_SWEEP_KEY}" for key in more]
    if problems:
        raise RequestError(*problems)


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
                self._readings[line] = self._reading(parse(line))
            except RequestError:  # `compose` says so
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
