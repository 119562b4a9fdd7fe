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
from shlex import quote
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, OverrideType, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from dks.config.errors import RequestError, one_line, short
from dks.config.files import choices, declarations, groups
from dks.config.names import SHORT_NAMES
from dks.config.ranges import MOST_CELLS, whole_numbers, written_out
from dks.config.registry import catalogue
from dks.config.schema import Config


@dataclass(frozen=True)
class Composed:
    """A configuration, and the choices it was composed from (group -> name, as in Hydra)."""

    config: Config
    choices: dict[str, str | None]
    interpolated: bool = False  # some value was written as a reference to others, ${...}


MANY = 100  # values of a range, which Hydra then counts by itself
DEEPEST = 20  # brackets within brackets in one override
OWN_CHOICES = (
    "choices of your own are files conf/GROUP/NAME.yaml beside ours, or in a folder "
    "that DKS_EXTENSIONS names; drop it"
)
# Keys of Hydra that mean nothing here, for every run is planned, and its folder is named after its
# cell -> the value that they have, and why they can have no other.
FIXED: dict[str, tuple[object, str]] = {
    "hydra.mode": ("MULTIRUN", "a single run is planned as a sweep is; drop it"),
    "hydra.run.dir": ("${runs_dir}", "runs are kept in runs_dir; set that"),
    "hydra.sweep.dir": ("${runs_dir}", "runs are kept in runs_dir; set that"),
    "hydra.sweep.subdir": (
        "${hydra.job.num}",
        "the folder of a run is named after its cell; drop it",
    ),
    "hydra.job.chdir": (False, "runs begin in the folder in which the command was typed; drop it"),
    "hydra.job.env_set": (
        {},
        "set the variables of the command itself, as in NAME=VALUE dks train",
    ),
    "hydra.output_subdir": (
        ".hydra",
        "what is kept of a run is in the folder of its cell; drop it",
    ),
    "hydra.searchpath": ([], OWN_CHOICES),
}

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
        raise RequestError(*(f"{group}=null: {_one_choice(group)}" for group in empty))
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
    """One line for a user from an error of Hydra or OmegaConf.

    What is wrong, and the choices where there are some.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _no_choice(error)
    if (several := _first(r"^Ambiguous value for argument '(.*?)'", text)) is not None:
        return f"{short(several)}: a configuration has one value for each key; give one"
    if (file := _first(r"^In '([^']*)': Overriding hydra.searchpath", text)) is not None:
        return f"{short(file)}.yaml: hydra.searchpath: {OWN_CHOICES}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        if not isinstance(error.__cause__, OmegaConfBaseException):
            return one_line(text)
        return explain(error.__cause__)
    if (
        isinstance(error.__context__, OmegaConfBaseException)
        and (file := _first(r"^In '([^']*)':", text)) is not None
    ):
        return f"{short(file)}.yaml: {explain(error.__context__)}"
    if (
        isinstance(error, ConfigCompositionException)
        and (group := _first(r"Could not override '([^']*)'", text)) is not None
    ):
        if (file := _first(r"^In '([^']*)':", text)) is not None:
            long = SHORT_NAMES.get(group)
            hint = (
                f"write override /{long}"
                if long
                else "the groups behind its own in conf/config.yaml are settled by then"
            )
            if "@" in group:  # it would be a group inside of its own
                group, hint = group.partition("@")[0], "write # @package _global_ in its first line"
            return f"{short(file)}.yaml: it cannot override {short(group)}; {hint}"
        if group in groups():
            return (
                f"{group}: the configuration has no choice of it; add one with +{group}=NAME, "
                f"of {', '.join(choices(group))}"
            )
        return f"{short(group)}: no such key; groups are {', '.join(groups())}"
    if isinstance(error, OverrideParseException):
        return f"{short(error.override)} cannot be read: {_syntax(text)}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{short(mark.name)}, line {mark.line + 1}: {one_line(str(error.problem))}"
    if isinstance(error, OmegaConfBaseException):
        key = str(
            getattr(error, "full_key", None) or getattr(error, "key", None) or "configuration"
        )
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
    r"Value '(?P<value>.*)' of type '\w+' could not be converted to " r"Integer": "must be a whole "
    "number",
    r"Value '(?P<value>.*)' of type '\w+' could not be converted to Float": "must be a number",
    r"Value '(?P<value>.*)' is not a valid bool": "must be true or false",
    r"Invalid value '(?P<value>.*)', expected one of "
    r"\[(?P<choices>.*)\]": "no such choice; choose from {choices}",
    r"field '.*' is not Optional()": "it needs a value",
    r"Invalid value assigned: (?P<value>\w+) is not a ListConfig, list "
    r"or tuple": "must be a list, for example {key}=[...]",
    r"Cannot assign (?P<value>\w+) to ": "must hold keys of its own, each with a value",
    r"Cannot convert '(?P<value>.*)' to string": "must be a text",
}


def _refused(key: str, error: OmegaConfBaseException) -> str:
    """What is wrong with a key or with its value."""
    # a value can have lines of its own
    message = re.split(r"\n\s*full_key:", error.msg or str(error))[0]
    owner = error.parent_node
    if "not in" in message and isinstance(owner, DictConfig):
        if key.startswith("hydra.sweeper."):
            return f"{key}: {_SWEEPS}"
        if key in groups():
            return (
                f"{key}: no such key; files of conf/{key} have # @package _global_ in their "
                f"first line"
            )
        known = {str(name) for name in owner if not str(name).startswith("_")} - {"hydra"}
        # the top level, where groups can be chosen by their short names, too
        if "backbone" in known:
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
            return (
                f"{key}={value}: {said}"
                if wanted.startswith(("no such", "it "))
                else f"{key}={value} {said}"
            )
    return f"{key}: {one_line(message)}"


def _reference(message: str) -> str | None:
    """The value as it was written where it refers to another one.

    What that one holds is nobody's business.
    """
    return _first(r"(?s)While dereferencing interpolation '(.*?)':", message)


def _value(error: OmegaConfBaseException, said: str | None) -> object:
    """The value that was refused; OmegaConf itself says only the type of some."""
    return said if error.value is None or OmegaConf.is_config(error.value) else error.value


def _syntax(text: str) -> str:
    """What Hydra's grammar says, less its list of tokens and its link."""
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and not line.startswith(("Error parsing override", "See http"))
    ]
    said = one_line(re.split(r" expecting | See http", " ".join(lines))[0], 200)
    said = re.sub(
        r"^LexerNoViableAltException: .*|^token recognition error at: .*",
        "a character has no meaning there",
        said,
    )
    return f"{said}; write KEY=VALUE or KEY=VALUE,VALUE, and quote what is special: \"KEY='VALUE'\""


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
        problems.append(f"hydra/launcher=null: {_one_choice('hydra/launcher')}")
    sweeper = node.runtime.choices["hydra/sweeper"]
    if sweeper != SWEEPER:
        problems.append(f"hydra/sweeper={short(sweeper)}: {_ONE_SWEEPER}")
    elif more := sorted(
        {*map(str, node.sweeper)}
        - {*ConfigStore.instance().load(f"hydra/sweeper/{SWEEPER}.yaml").node}
    ):
        problems += [f"hydra.sweeper.{short(key)}: {_SWEEPS}" for key in more]
    if problems:
        raise RequestError(*problems)


SWEEPER = "dks"
_ONE_SWEEPER = "sweeps are planned in one way only; drop it"
_SWEEPS = (
    "no such key; a sweep is typed, as in -m seed=1..5, or is a file of its own, which dks "
    "sweep run NAME takes"
)


def checked(lines: Iterable[str], several: bool = True) -> list[str]:
    """The overrides, each read by itself.

    What is wrong in one is said with its name, before Hydra looks at all of them. Ranges of whole
    numbers, such as seed=1..5, are as Hydra has them.

    Args:
        several: a key may have several values, which makes a sweep.

    Raises:
        RequestError: one is not written as Hydra's grammar has it, gives a group something else
            than a choice, or means nothing here.
    """
    parser, problems, read = OverridesParser.create(), list[str](), list[str]()
    known = {*groups(), *(group for group, _ in catalogue().choices)}
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
        values = value.list if isinstance(value, ChoiceSweep) else [value]
        is_group = key in known or key.startswith("hydra/")
        numbers = [whole_numbers(each) for each in values if type(each) is str and not is_group]
        ranges = [each for each in numbers if each is not None]
        fixed = next((name for name in FIXED if f"{key}.".startswith(f"{name}.")), None)
        if not key:
            problems.append(f"{short(line)} has no key; write KEY=VALUE")
        elif (
            is_group and override.type is not OverrideType.DEL and not all(map(_is_choice, values))
        ):
            said = _one_choice(key)
            said += (
                " ('off' in quotes, for in YAML it is false)"
                if False in values and "off" in said
                else ""
            )
            problems.append(f"{short(line)}: {said}")
        elif fixed is not None:
            problems.append(f"{short(line)}: {FIXED[fixed][1]}")
        elif key == "hydra/sweeper" and values != [SWEEPER]:
            problems.append(f"{short(line)}: {_ONE_SWEEPER}")
        elif not several and (ranges or override.is_sweep_override()):
            command = f"python train.py -m {quote(short(line))}"
            problems.append(
                f"{short(line)}: several values make a sweep, which needs -m: {command}"
            )
        elif not all(ranges):
            problems.append(
                f"{short(line)} is no range; write the first and the last whole number, as in 1..5"
            )
        elif sum(map(len, ranges)) > MOST_CELLS:
            problems.append(
                f"{short(line)} has more than {MOST_CELLS:,} values; a sweep has so many cells "
                f"at most"
            )
        elif ranges and isinstance(value, str) and len(ranges[0]) > MANY:
            # written out it would take long to parse
            read.append(f"{line.partition('=')[0]}=range({ranges[0].start},{ranges[0].stop})")
        else:
            read.append(written_out(line) if ranges else line)
    if problems:
        raise RequestError(*problems)
    return read


def _one_choice(group: str) -> str:
    """What is said of something else than a choice of a group, of ours or of Hydra's."""
    names = choices(group)
    if group == "hydra/launcher":
        Plugins.instance()  # registers them
        names = sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list(group))
    return (
        f"{group} takes one choice, by its "
        f"name{'; choose from ' if names else ''}{', '.join(names)}"
    )


def _is_choice(value: object) -> bool:
    """Could it be the name of one? Those of many, with an asterisk, become names later."""
    return isinstance(value, str | QuotedString | Glob)


def _depth(line: str) -> int:
    """How deep its brackets are nested."""
    deepest = depth = 0
    for char in line:
        depth += (char in "[{(") - (char in "]})")
        deepest = max(deepest, depth)
    return deepest


def explain_request(error: Exception) -> tuple[str, ...]:
    """The lines for a user if the error says that his request was wrong.

    None if it is an error of the program.
    """
    if isinstance(error, RequestError):
        return error.problems
    frames = traceback.extract_tb(error.__traceback__)
    # Some odd overrides make Hydra raise plain ValueErrors while it reads them.
    in_hydra = bool(frames) and f"{os.sep}hydra{os.sep}" in frames[-1].filename
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (f"{short(Path(str(error.filename)).name)} is too long for the name of a file",)
    return (explain(error),) if isinstance(error, HYDRA_ERRORS) or in_hydra else ()


HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None
