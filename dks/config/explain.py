"""What Hydra and OmegaConf say of a wrong request, in one line for a user.

All of their wordings that this package knows stand here.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import traceback
from pathlib import Path

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
from dks.config.files import choices, groups
from dks.config.names import SHORT_NAMES
from dks.config.registry import catalogue

HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
OWN_CHOICES = (
    "choices of your own are files conf/GROUP/NAME.yaml beside ours, or in a folder "
    "that DKS_EXTENSIONS names; drop it"
)
NO_SWEEP_KEY = (
    "no such key; a sweep is typed, as in -m seed=1..5, or is a file of its own, which dks "
    "sweep run NAME takes"
)


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
        return f"{short(error.override)} cannot be read: {syntax(text)}"
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
            return f"{key}: {NO_SWEEP_KEY}"
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


def syntax(text: str) -> str:
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


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None
