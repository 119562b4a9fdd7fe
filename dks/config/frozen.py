"""The text of `config.yaml`, written and read.

OmegaConf takes some twenty milliseconds for a configuration, in each direction. The cells of a
sweep share most of their parts, so each part, one key of the top level with all that stands below
it, is written and read once in a process.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import re
from functools import cache
from typing import Any, cast, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, YAMLError

from dks.config.compose import config_from
from dks.config.schema import Config

LONGEST = 1_000_000  # characters; a configuration has some thousand
_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# the whole value; it reads nothing else, and does not grow
_REFERENCE = re.compile(r"(?<=: )\$\{[\w.]+\}$", re.MULTILINE)
_PART = re.compile(r"^(?=\w)", re.MULTILINE)
# the name of a part and what it shows of itself -> its text
_texts: dict[tuple[str, str], str] = {}
_values: dict[str, tuple[str, Any]] = {}  # the text of a part -> its name and its value


def to_yaml(config: Config) -> str:
    """Every field, in the order of the schema."""
    return "".join(_text(name, getattr(config, name)) for name in _FIELDS)


def from_yaml(text: str) -> Config:
    """The configuration that a text holds; its parts are its own.

    Raises:
        RequestError: a key is unknown, missing or of the wrong type.
        YAMLError, ValueError, OSError: this is no YAML, or no mapping; or it holds what the text of
            a configuration never does.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} characters")
    if "${" in _REFERENCE.sub("", text):
        raise ValueError("it has ${...} in it that is more than the name of another key")
    if "*" in text and any(
        isinstance(event, AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)
    ):
        raise ValueError("it has YAML aliases")
    try:
        parts = [_value(part) for part in _PART.split(text) if part]
    except (OmegaConfBaseException, YAMLError, ValueError):
        # the whole may have a meaning, or says what is wrong with it
        parts = []
    if [name for name, _ in parts] != list(_FIELDS):
        return config_from(OmegaConf.load(io.StringIO(text)))
    return Config(**{name: copy.deepcopy(value) for name, value in parts})


def _text(name: str, value: Any) -> str:
    key = name, repr(value)
    if key not in _texts:
        part = OmegaConf.structured(value) if dataclasses.is_dataclass(value) else value
        _texts[key] = OmegaConf.to_yaml(OmegaConf.create({name: part}))
    return _texts[key]


def _value(text: str) -> tuple[str, Any]:
    """The name of the part that this text is, and its value.

    Raises:
        OmegaConfBaseException, YAMLError, ValueError: it is none.
    """
    if text not in _values:
        found = OmegaConf.create(text)
        (name,) = found
        typed = OmegaConf.merge(_schema_of(str(name)), found)
        _values[text] = str(name), getattr(OmegaConf.to_object(typed), str(name))
    return _values[text]


@cache
def _schema_of(name: str) -> DictConfig:
    """The schema of one part.

    Raises:
        ValueError: there is no such part.
    """
    if name not in _FIELDS:
        raise ValueError(name)
    part = dataclasses.make_dataclass(
        "Part", [(name, get_type_hints(Config)[name], copy.copy(_FIELDS[name]))]
    )
    return cast(DictConfig, OmegaConf.structured(part))
