"""Overrides with several values, expanded into the overrides of single cells."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import Override

from dks.config.compose import SHORT_NAMES
from dks.config.errors import RequestError
from dks.config.identity import EXECUTION_ONLY


@dataclass(frozen=True)
class Point:
    """One cell of a grid, as overrides."""

    overrides: tuple[str, ...]  # all of them, in the order given
    labels: dict[str, str]  # swept key, as typed -> its value here


@dataclass(frozen=True)
class Grid:
    """The product of all swept values."""

    axes: tuple[str, ...]  # swept keys, in the order typed
    points: tuple[Point, ...]
    name: str  # made from the axes and from what is fixed: the same request has the same name
    title: str = ""  # of a named sweep


def expand(overrides: Sequence[Override]) -> Grid:
    """All combinations of the swept values. A key given twice counts where it stands last.

    Raises:
        RequestError: a sweep over a continuous interval, or one without values.
    """
    values: dict[str, list[str]] = {}
    axes: list[str] = []
    for override in overrides:
        key = override.get_key_element()
        values.pop(key, None)
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise RequestError(f"{override.input_line}: name the values, for example {key}=1,2,3 or {key}=range(1,4)")
            values[key] = list(dict.fromkeys(override.sweep_string_iterator()))
            if not values[key]:
                raise RequestError(f"{override.input_line}: there is nothing to sweep over")
            axes.append(key)
        else:
            values[key] = [override.get_value_element_as_str()]
    axes = [key for key in dict.fromkeys(axes) if len(values[key]) > 1]
    points = tuple(
        Point(
            overrides=tuple(f"{key}={value}" for key, value in zip(values, combination, strict=True)),
            labels={key: value for key, value in zip(values, combination, strict=True) if key in axes},
        )
        for combination in itertools.product(*values.values())
    )
    fixed = [f"{SHORT_NAMES.get(key, key)}={items[0]}" for key, items in values.items() if key not in axes]
    return Grid(tuple(axes), points, _name(axes, fixed))


def _name(axes: Sequence[str], fixed: Sequence[str]) -> str:
    """For example `aux-strategy`, and `aux-strategy-3f9a21` where other values than the defaults are fixed."""
    swept = [axis for axis in axes if axis != "seed"] or list(axes)
    parts = [re.sub(r"[^A-Za-z0-9_.]+", "_", axis) for axis in swept]
    that_matter = sorted(item for item in fixed if not _execution_only(item.partition("=")[0]))
    if that_matter:
        parts.append(hashlib.sha256("\n".join(that_matter).encode()).hexdigest()[:6])
    return "-".join(parts)


def _execution_only(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in EXECUTION_ONLY)
