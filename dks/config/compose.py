"""From command-line overrides to one typed configuration, through Hydra."""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dks.config.errors import RequestError
from dks.config.extensions import catalogue
from dks.config.files import choices, declarations
from dks.config.names import SHORT_NAMES
from dks.config.schema import Config


@dataclass(frozen=True)
class Composed:
    """A configuration and the choices it was composed from (group -> name, as Hydra recorded them)."""

    config: Config
    choices: dict[str, str | None]
    interpolated: bool = False  # some value was written as a reference to others, ${...}


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
        typed = OmegaConf.merge(_schema(), values)
        return cast(Config, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        raise RequestError(explain(error)) from error


@cache
def _schema() -> DictConfig:
    """The schema as OmegaConf has it; never changed, for `merge` copies it."""
    return cast(DictConfig, OmegaConf.structured(Config))


def explain(error: BaseException) -> str:
    """One line for a user from an error of Hydra or OmegaConf: what is wrong, and the choices where there are some."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        wanted = _first(r"Could not find '([^']+)'", text)
        if wanted and "/" in wanted:
            group, _, name = wanted.rpartition("/")
            unlisted = "".join(f" ({problem})" for problem in catalogue().problems)
            return f"{group}={name}: no such choice; choose from {', '.join(choices(group))}{unlisted}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return explain(error.__cause__) if isinstance(error.__cause__, OmegaConfBaseException) else _one_line(text)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {_one_line(text)}"
    if isinstance(error, OmegaConfBaseException):
        key = getattr(error, "full_key", None) or "configuration"
        message = _one_line((getattr(error, "msg", None) or text).split("\n")[0])
        owner = getattr(error, "parent_node", None)
        if "not in" in message and isinstance(owner, DictConfig):
            known = {str(name) for name in owner} - {"hydra"}
            if "backbone" in known:  # the top level, where groups can be chosen by their short names, too
                known |= {"method", *SHORT_NAMES}
            close = difflib.get_close_matches(str(key).rpartition(".")[2], known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            return f"{key}: no such key; {hint}keys here are {', '.join(sorted(known))}"
        return f"{key}: {message}"
    return _one_line(text)


def explain_request(error: Exception) -> tuple[str, ...]:
    """The lines for a user if the error says that his request was wrong; none if it is an error of the program."""
    if isinstance(error, RequestError):
        return error.problems
    frames = traceback.extract_tb(error.__traceback__)
    # Some odd overrides make Hydra raise plain ValueErrors while it reads them.
    in_hydra = bool(frames) and f"{os.sep}hydra{os.sep}" in frames[-1].filename
    return (explain(error),) if isinstance(error, HYDRA_ERRORS) or in_hydra else ()


HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None
