"""From command-line overrides to one typed configuration, through Hydra."""

from __future__ import annotations

import difflib
import errno
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dks.config.catalogue import catalogue
from dks.config.errors import RequestError, one_line, short
from dks.config.files import choices, declarations, groups
from dks.config.names import SHORT_NAMES
from dks.config.schema import Config


@dataclass(frozen=True)
class Composed:
    """A configuration and the choices it was composed from (group -> name, as Hydra recorded them)."""

    config: Config
    choices: dict[str, str | None]
    interpolated: bool = False  # some value was written as a reference to others, ${...}


DEEPEST = 20  # brackets within brackets in one override
# Keys of Hydra that mean nothing here, for every run is planned, and its folder is named after its cell.
NOT_OURS = {
    "hydra.mode": "a single run is planned as a sweep is; drop it",
    "hydra.run.dir": "runs are kept in runs_dir; set that",
    "hydra.sweep.dir": "runs are kept in runs_dir; set that",
    "hydra.sweep.subdir": "the folder of a run is named after its cell; drop it",
}

Compose = Callable[[Sequence[str]], Composed]  # from the overrides of one cell


class UnsettledError(RequestError):
    """Wrong, but one more value could set it right: some value is missing, or refers to others that do not fit."""


def register_schema() -> None:
    """Make the typed schema known to Hydra as `schema`, the first entry of the primary config."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    # Hydra copies the whole store for each composition and each group it lists, in 20 ms, and again what it reads there.
    vars(store)["__deepcopy__"] = lambda memo: store


def compose_here(overrides: Sequence[str]) -> Composed:
    """One composition by Hydra, outside of its command line.

    Raises:
        RequestError: as `from_hydra`, and where an override is wrong.
    """
    register_schema()
    try:
        with initialize_config_dir(str(declarations("conf")), version_base="1.3"):
            return from_hydra(compose("config", list(overrides), return_hydra_config=True))
    except HYDRA_ERRORS as error:
        raise RequestError(explain(error)) from error


def from_hydra(composed: DictConfig) -> Composed:
    """The typed configuration inside what Hydra composed, with its `hydra` node.

    Raises:
        RequestError: a short and a long name disagree, or a key is unknown or of the wrong type; UnsettledError.
    """
    everything = cast("dict[str, str | None]", OmegaConf.to_container(composed.hydra.runtime.choices))
    chosen = {group: choice for group, choice in everything.items() if not group.startswith("hydra/")}
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


def explain(error: BaseException) -> str:
    """One line for a user from an error of Hydra or OmegaConf: what is wrong, and the choices where there are some."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _no_choice(error)
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        if not isinstance(error.__cause__, OmegaConfBaseException):
            return one_line(text)
        return explain(error.__cause__)
    if isinstance(error, ConfigCompositionException) and (group := _first(r"Could not override '([^']*)'", text)) is not None:
        return f"{short(group)}: no such key; groups are {', '.join(groups())}"
    if isinstance(error, OverrideParseException):
        return f"{short(error.override)} cannot be read: {_syntax(text)}"
    if isinstance(error, OmegaConfBaseException):
        key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "configuration")
        return _refused(short(key), error)
    return one_line(text)


def _no_choice(error: MissingConfigException) -> str:
    """A file of a group that is not there."""
    wanted = error.missing_cfg_file or ""
    group, _, name = wanted.rpartition("/")
    if not group:
        return f"--config-name={short(wanted)}: there is no such file in conf; drop it"
    known = choices(group) or sorted(set(error.options or ()))
    unlisted = "".join(f" ({problem})" for problem in catalogue().problems)
    return f"{group}={short(name)}: no such choice; choose from {', '.join(known)}{unlisted}"


_WANTED = {  # what OmegaConf says of a value -> what is wanted
    r"Value '(?P<value>.*)' of type '\w+' could not be converted to Integer": "must be a whole number",
    r"Value '(?P<value>.*)' of type '\w+' could not be converted to Float": "must be a number",
    r"Value '(?P<value>.*)' is not a valid bool": "must be true or false",
    r"Invalid value '(?P<value>.*)', expected one of \[(?P<choices>.*)\]": "no such choice; choose from {choices}",
    r"field '.*' is not Optional()": "it needs a value",
    r"Invalid value assigned: (?P<value>\w+) is not a ListConfig, list or tuple": "must be a list, for example {key}=[...]",
    r"Cannot assign (?P<value>\w+) to ": "must hold keys of its own, each with a value",
    r"Cannot convert '(?P<value>.*)' to string": "must be a text",
}


def _refused(key: str, error: OmegaConfBaseException) -> str:
    """What is wrong with a key or with its value."""
    message = re.split(r"\n\s*full_key:", error.msg or str(error))[0]  # a value can have lines of its own
    owner = error.parent_node
    if "not in" in message and isinstance(owner, DictConfig):
        known = {str(name) for name in owner} - {"hydra"}
        if "backbone" in known:  # the top level, where groups can be chosen by their short names, too
            known |= {"method", *SHORT_NAMES}
        close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{key}: no such key; {hint}keys here are {', '.join(sorted(known))}"
    for pattern, wanted in _WANTED.items():
        if found := re.search(pattern, message, re.DOTALL):
            named = found.groupdict()
            refused = _reference(message) or _value(error, named.get("value"))
            value = "null" if refused is None else short(refused)
            said = wanted.format(key=key, choices=named.get("choices"))
            return f"{key}={value}: {said}" if wanted.startswith(("no such", "it ")) else f"{key}={value} {said}"
    return f"{key}: {one_line(message)}"


def _reference(message: str) -> str | None:
    """The value as it was written where it refers to another one: what that one holds is nobody's business."""
    return _first(r"(?s)While dereferencing interpolation '(.*?)':", message)


def _value(error: OmegaConfBaseException, said: str | None) -> object:
    """The value that was refused; OmegaConf itself says only the type of some."""
    return said if error.value is None or OmegaConf.is_config(error.value) else error.value


def _syntax(text: str) -> str:
    """What Hydra's grammar says, less its list of tokens and its link."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("Error parsing override", "See http"))]
    said = one_line(re.split(r" expecting | See http", " ".join(lines))[0], 200)
    said = re.sub(r"^LexerNoViableAltException: .*|^token recognition error at: .*", "a character has no meaning there", said)
    return f"{said}; write KEY=VALUE or KEY=VALUE,VALUE, and quote what is special: \"KEY='VALUE'\""


def check_overrides(lines: Iterable[str]) -> None:
    """Read each override by itself: what is wrong in one is said with its name, before Hydra looks at all of them.

    Raises:
        RequestError: one is not written as Hydra's grammar has it, or gives a group several choices at once.
    """
    parser, problems, known = OverridesParser.create(), list[str](), groups()
    for line in lines:
        if _depth(line) > DEEPEST:
            problems.append(f"{short(line)}: brackets may be nested {DEEPEST} deep at most")
            continue
        try:
            override = parser.parse_override(line)
        except (HydraException, ValueError, RecursionError) as error:
            problems.append(f"{short(line)} cannot be read: {_syntax(str(error))}")
            continue
        key, value = override.key_or_group, override._value
        if not key:
            problems.append(f"{short(line)} has no key; write KEY=VALUE")
        elif key in known and isinstance(value, list):
            problems.append(f"{short(line)}: {key} takes one choice, not a list; choose from {', '.join(choices(key))}")
        elif key in NOT_OURS:
            problems.append(f"{short(line)}: {NOT_OURS[key]}")
    if problems:
        raise RequestError(*problems)


def _depth(line: str) -> int:
    """How deep its brackets are nested."""
    deepest = depth = 0
    for char in line:
        depth += (char in "[{(") - (char in "]})")
        deepest = max(deepest, depth)
    return deepest


def explain_request(error: Exception) -> tuple[str, ...]:
    """The lines for a user if the error says that his request was wrong; none if it is an error of the program."""
    if isinstance(error, RequestError):
        return error.problems
    frames = traceback.extract_tb(error.__traceback__)
    # Some odd overrides make Hydra raise plain ValueErrors while it reads them.
    in_hydra = bool(frames) and f"{os.sep}hydra{os.sep}" in frames[-1].filename
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (f"{short(Path(str(error.filename)).name)} is too long for the name of a file",)
    return (explain(error),) if isinstance(error, HYDRA_ERRORS) or in_hydra else ()


HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None
