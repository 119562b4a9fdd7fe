"""One override of the command line, or of a sweep: read, and what can be said of it alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from shlex import quote

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException

from dks.config.errors import RequestError, short
from dks.config.explain import OWN_CHOICES, syntax
from dks.config.files import choices, groups
from dks.config.ranges import MOST_CELLS, whole_numbers, written_out
from dks.config.registry import catalogue

MANY = 100  # values of a range, which Hydra then counts by itself
DEEPEST = 20  # brackets within brackets in one override
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

SWEEPER = "dks"
ONE_SWEEPER = "sweeps are planned in one way only; drop it"


@lru_cache(maxsize=1)
def _parser() -> OverridesParser:
    return OverridesParser.create()


@lru_cache(maxsize=MOST_CELLS)
def parse(line: str) -> Override:
    """One override, which nobody may change; each is read once in a process.

    Raises:
        RequestError: it is not written as Hydra's grammar has it.
    """
    if _depth(line) > DEEPEST:
        raise RequestError(f"{short(line)}: brackets may be nested {DEEPEST} deep at most")
    try:
        return _parser().parse_override(line)
    except (HydraException, ValueError, RecursionError) as error:
        raise RequestError(f"{short(line)} cannot be read: {syntax(str(error))}") from error


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
    problems, read = list[str](), list[str]()
    known = {*groups(), *(group for group, _ in catalogue().choices)}
    for line in lines:
        try:
            override = parse(line)
        except RequestError as error:
            problems += error.problems
            continue
        key, value = override.key_or_group, override.value()
        # a text as it is written, for in quotes it is no range
        written = line.partition("=")[2].strip() if isinstance(value, str) else value
        values = value.list if isinstance(value, ChoiceSweep) else [written]
        is_group = key in known or key.startswith("hydra/")
        numbers = [whole_numbers(each) for each in values if type(each) is str and not is_group]
        ranges = [each for each in numbers if each is not None]
        fixed = next((name for name in FIXED if f"{key}.".startswith(f"{name}.")), None)
        if not key:
            problems.append(f"{short(line)} has no key; write KEY=VALUE")
        elif (
            is_group and override.type is not OverrideType.DEL and not all(map(_is_choice, values))
        ):
            said = one_choice(key)
            said += (
                " ('off' in quotes, for in YAML it is false)"
                if False in values and "off" in said
                else ""
            )
            problems.append(f"{short(line)}: {said}")
        elif fixed is not None:
            problems.append(f"{short(line)}: {FIXED[fixed][1]}")
        elif key == "hydra/sweeper" and values != [SWEEPER]:
            problems.append(f"{short(line)}: {ONE_SWEEPER}")
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


def one_choice(group: str) -> str:
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
