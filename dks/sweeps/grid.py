"""Overrides with several values, expanded into the overrides of single cells, and what a whole
sweep of them is.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dks.config.errors import RequestError, short
from dks.config.identity import is_execution_only
from dks.config.names import long_name
from dks.config.ranges import MOST_CELLS
from dks.sweeps.combinations import plain

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclass(frozen=True)
class Point:
    """One cell of a grid, as overrides."""

    overrides: tuple[str, ...]  # all of them, in the order given
    labels: dict[str, str]  # axis -> its value here, "-" where the cell does not name it


@dataclass(frozen=True)
class Choice:
    """A value chosen by the error on held-out training images, before the final runs on the whole
    training set.
    """

    key: str  # for example kd_teacher.temperature
    # the place in the table that the final runs fill: axis, never the seed -> its value
    labels: dict[str, str]
    # value -> the runs that try it, one a seed, with `data.holdout`
    candidates: dict[str, tuple[Point, ...]]
    undecided: tuple[Point, ...]  # the final runs, one a seed, without a value for `key`

    def final(self, value: str) -> tuple[Point, ...]:
        """The runs that fill the table, with the chosen value and without held-out images."""
        return tuple(
            replace(point, overrides=(*point.overrides, f"{self.key}={value}"))
            for point in self.undecided
        )


@dataclass(frozen=True)
class Grid:
    """The cells of one table, as overrides; or several tables, then in `parts`."""

    # the keys of the labels: those swept, as typed; or rows, columns and, if it is swept, the seed
    axes: tuple[str, ...]
    points: tuple[Point, ...]
    # made from the axes and from all values that matter: the same request has the same name,
    #     another one another
    name: str
    title: str = ""  # of a named sweep
    rows: tuple[str, ...] | None = None  # axes of the table's rows, if the sweep says which
    columns: tuple[str, ...] | None = None  # axes of the table's columns, if the sweep says which
    # cells that are known when a value has been chosen; not among the points
    choices: tuple[Choice, ...] = ()
    # of a union of sweeps: each of them; there are no points beside them
    parts: tuple[Grid, ...] = ()
    # overrides of a named sweep that can change a result, sorted and in one spelling
    fixed: tuple[str, ...] = ()
    named: str | None = None  # the file in `sweeps/` that it is made from
    # overrides as typed that reach it: with `named`, the way to ask for it again
    request: tuple[str, ...] = ()


def expand(overrides: Sequence[Override]) -> Grid:
    """All combinations of the swept values. A key given twice counts where it stands last.

    Raises:
        RequestError: a sweep over a continuous interval, one without values, one of a key in two
            spellings, or one of more than `MOST_CELLS`.
    """
    values: dict[str, list[str]] = {}
    axes: list[str] = []
    for override in overrides:
        key = override.get_key_element()
        values.pop(key, None)
        values[key] = values_of(override)
        if override.is_sweep_override():
            axes.append(key)
    spelled: dict[str, str] = {}
    for key, items in values.items():
        if (other := spelled.setdefault(long_name(key), key)) != key and max(
            len(items), len(values[other])
        ) > 1:
            raise RequestError(f"{other} and {key} are the same key; give one of them")
    axes = [key for key in dict.fromkeys(axes) if len(values[key]) > 1]
    check_size(
        " ".join(f"{key}={short(','.join(values[key]))}" for key in axes), map(len, values.values())
    )
    points = tuple(
        Point(
            overrides=tuple(
                f"{key}={value}" for key, value in zip(values, combination, strict=True)
            ),
            labels={
                key: value for key, value in zip(values, combination, strict=True) if key in axes
            },
        )
        for combination in itertools.product(*values.values())
    )
    given = [
        f"{long_name(key)}={','.join(sorted(map(plain, items)))}" for key, items in values.items()
    ]
    swept = [axis for axis in axes if axis != "seed"] or axes
    stem = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", axis) for axis in swept)
    if len(stem) > 100:  # a folder is named so
        stem = f"{stem[:90]}-{hashlib.sha256(stem.encode()).hexdigest()[:6]}"
    return Grid(
        tuple(axes), points, named(stem, that_matter(given)), request=tuple(map(typed, overrides))
    )


def check_size(what: str, numbers: Iterable[int]) -> None:
    """Raises:
    RequestError: the product of these numbers of values has more than `MOST_CELLS`.
    """
    if (cells := math.prod(numbers)) > MOST_CELLS:
        raise RequestError(f"{what} makes {cells:,} cells; a sweep has {MOST_CELLS:,} at most")


def typed(override: Override) -> str:
    """An override as it was typed."""
    assert override.input_line is not None, "Hydra's parser notes it"
    return override.input_line


def values_of(override: Override) -> list[str]:
    """The values of one override, as they stand behind `key=`.

    Raises:
        RequestError: a continuous interval, no value at all, or more than `MOST_CELLS`.
    """
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        key = override.get_key_element()
        raise RequestError(
            f"{override.input_line}: name the values, for example {key}=1,2,3 or {key}=range(1,4)"
        )
    try:
        # Counted first: the values of shuffle(range(...)) are all made at once.
        whole = override.value()
        many = isinstance(whole, RangeSweep) and any(
            True for _ in itertools.islice(whole.range(), MOST_CELLS, None)
        )
        values = [] if many else list(override.sweep_string_iterator())
    except (ValueError, ArithmeticError, HydraException) as error:
        raise RequestError(f"{short(override.input_line)}: {error}") from error
    if many:
        raise RequestError(
            f"{short(override.input_line)} has more than {MOST_CELLS:,} values; a sweep has so "
            f"many cells at most"
        )
    if not values:
        raise RequestError(f"{override.input_line}: there is nothing to sweep over")
    if len(set(values)) < len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise RequestError(
            f"{short(override.input_line)} has {short(twice)} twice; give each value once"
        )
    return values


def that_matter(overrides: Iterable[str]) -> tuple[str, ...]:
    """Those of the overrides that can change a result, sorted. Their keys are long names."""
    return tuple(
        sorted(item for item in overrides if not is_execution_only(item.partition("=")[0]))
    )


def named(stem: str, given: Sequence[str]) -> str:
    """For example `table3`, and `table3-3f9a21` where values are given for some keys."""
    whole = "\n".join(given)
    return "-".join(filter(None, (stem, whole and hashlib.sha256(whole.encode()).hexdigest()[:6])))
