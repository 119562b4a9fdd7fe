"""The points of a grid: combinations of its values, with overrides in their place, and what tells
them apart.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from dks.config.errors import RequestError
from dks.config.names import long_name
from dks.config.ranges import MOST_CELLS

HOLDOUT = "data.holdout"

# long name of a key -> the key as spelled, and its value as an override has it
Settings = dict[str, tuple[str, str]]
# one after another: the values of a key, or of several that change together
Dimension = tuple[Settings, ...]


@dataclass(frozen=True)
class Choose:
    """A key whose value is chosen on held-out training images."""

    key: str
    candidates: tuple[str, ...]
    holdout: int  # training images

    @property
    def name(self) -> str:
        """The long name of the key."""
        return long_name(self.key)


@dataclass(frozen=True)
class Point:
    """One combination of values, as overrides in the order given, before it is composed."""

    overrides: tuple[str, ...]
    labels: dict[str, str] = field(default_factory=dict)  # axis -> its value, "-" where it has none
    choose: Choose | None = None  # its final runs wait for this choice

    @cached_property
    def settings(self) -> Settings:
        """Its values by the long names of their keys."""
        pairs = (override.partition("=") for override in self.overrides)
        return {long_name(key): (key, value) for key, _, value in pairs}

    @cached_property
    def meaning(self) -> frozenset[tuple[str, str]]:
        """The same for settings that are the same, however they are spelled."""
        return frozenset((name, plain(value)) for name, (_, value) in self.settings.items())

    def __str__(self) -> str:
        return " ".join(self.overrides)

    def value(self, axis: str) -> str:
        """Its value of this key, in whatever spelling."""
        return self.settings.get(long_name(axis), ("", "-"))[1]

    def labelled(self, axes: Iterable[str]) -> Point:
        """The same with labels for these axes."""
        return replace(self, labels={axis: self.value(axis) for axis in axes})

    def with_values(self, *overrides: str, **labels: str) -> Point:
        """The same with more values, and nothing left to be chosen."""
        return Point((*self.overrides, *overrides), self.labels | labels)


@dataclass(frozen=True)
class Product:
    """One grid of a file: every combination of its dimensions that no exclude matches."""

    dimensions: tuple[Dimension, ...]
    excludes: tuple[dict[str, frozenset[str]], ...]  # long name of a key -> values
    choose: Choose | None


@dataclass(frozen=True)
class Override:
    """What is to hold for every cell, whatever the file says."""

    key: str  # as typed
    values: tuple[str, ...]
    typed: str  # all of it

    @property
    def name(self) -> str:
        """The long name of the key."""
        return long_name(self.key)

    @property
    def dimension(self) -> Dimension:
        """Its values, one after another."""
        return tuple({self.name: (self.key, value)} for value in self.values)

    @property
    def canonical(self) -> str:
        """The same for overrides that mean the same."""
        return f"{self.name}={','.join(sorted(map(plain, self.values)))}"


def points_of(
    product: Product,
    base: Settings,
    given: Sequence[Override] = (),
    is_taught: Callable[[Settings], bool] = lambda settings: True,
) -> Iterator[Point]:
    """The combinations of one product, in order, with overrides in the place of its own values.

    Args:
        is_taught: has a cell a teacher? Those of overrides and of choices are for such cells alone.
            Without overrides this does not matter: it shows when the cell is composed.
    """
    choose = choose_of(product, given)
    # Several values for a key that is chosen are its candidates: the cell itself does not have it.
    applied = [each for each in given if choose is None or each.name != choose.name]
    others = [override for override in applied if not _is_teachers(override.name)]
    dimensions, base = _without_groups(
        product.dimensions, base, tuple(f"{override.name}." for override in others)
    )
    for override in others:
        dimensions = _replaced(dimensions, override)
    teachers = [override.dimension for override in applied if _is_teachers(override.name)]
    own, candidates = product.choose, _candidates(product, given)
    chooses_teacher = own is not None and _is_teachers(own.name)
    for combination in itertools.product(*dimensions):
        settings = _joined(base, *combination)
        asked = [settings] if teachers or chooses_teacher else []
        if own is not None and chooses_teacher:  # it may be the teacher itself
            asked += [{**settings, own.name: (own.key, value)} for value in candidates]
        taught = any(map(is_taught, asked))
        chosen = choose if taught or not chooses_teacher else None
        for more in itertools.product(*teachers) if taught else [()]:
            whole = _joined(settings, *more)
            if not any(matches(whole, exclude) for exclude in product.excludes):
                overrides = tuple(f"{key}={value}" for key, value in whole.values())
                yield Point(overrides, choose=chosen)


def _joined(*parts: Settings) -> Settings:
    return {name: value for part in parts for name, value in part.items()}


def choose_of(product: Product, given: Sequence[Override]) -> Choose | None:
    """What is still to be chosen.

    One value given for it settles it, several replace its candidates.
    """
    candidates = _candidates(product, given)
    if product.choose is None or len(candidates) < 2:
        return None
    return replace(product.choose, candidates=candidates)


def _candidates(product: Product, given: Sequence[Override]) -> tuple[str, ...]:
    """The values of the key that is chosen; none where nothing is."""
    choose = product.choose
    if choose is None:
        return ()
    return next((each.values for each in given if each.name == choose.name), choose.candidates)


def _without_groups(
    dimensions: Iterable[Dimension], base: Settings, prefixes: tuple[str, ...]
) -> tuple[list[Dimension], Settings]:
    """Without the file's values inside groups that are overridden.

    `data.augmentation` belongs to the file's own `data`.
    """

    def kept(settings: Settings) -> Settings:
        return {name: value for name, value in settings.items() if not name.startswith(prefixes)}

    left: list[Dimension] = []
    for dimension in dimensions:
        parts = tuple(map(kept, dimension))
        if parts != dimension:
            parts = _different(filter(None, parts))
        if parts:
            left.append(parts)
    return left, kept(base)


def _different(parts: Iterable[Settings]) -> Dimension:
    return tuple({tuple(part.items()): part for part in parts}.values())


def _replaced(dimensions: list[Dimension], override: Override) -> list[Dimension]:
    """With the values of an override in the place of the key's own, or behind them all."""
    found: list[Dimension] = []
    for dimension in dimensions:
        if override.name not in dimension[0]:
            found.append(dimension)
            continue
        if len(dimension[0]) > 1:  # zipped: the others still change together
            found.append(
                _different(
                    {name: value for name, value in part.items() if name != override.name}
                    for part in dimension
                )
            )
        found.append(override.dimension)
    return found if override.dimension in found else [*found, override.dimension]


def _is_teachers(name: str) -> bool:
    return name == "kd_teacher" or name.startswith("kd_teacher.")


def matches(settings: Settings, exclude: Mapping[str, frozenset[str]]) -> bool:
    """Does each key of the exclude have one of its values there?"""
    return all(
        name in settings and plain(settings[name][1]) in values for name, values in exclude.items()
    )


@cache
def plain(text: str) -> str:
    """The same for values that mean the same: 0 for 0.0."""
    try:
        return str(int(text))
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def words(labels: Mapping[str, str]) -> str:
    """Labels as a person reads them."""
    return " ".join(f"{key}={value}" for key, value in labels.items())


def check_size(what: str, numbers: Iterable[int]) -> None:
    """Raises a RequestError if values of these numbers make more than `MOST_CELLS` cells."""
    if (cells := math.prod(numbers)) > MOST_CELLS:
        raise RequestError(f"{what} makes {cells:,} cells; a sweep has {MOST_CELLS:,} at most")


def differing(points: Sequence[Point]) -> dict[str, str]:
    """Long name -> first spelling of the keys whose values differ.

    To lack a key counts as a value of its own.
    """
    spelled: dict[str, str] = {}
    for point in points:
        for name, (key, _) in point.settings.items():
            spelled.setdefault(name, key.lstrip("+"))
    return {
        name: key
        for name, key in spelled.items()
        if len({plain(point.value(name)) for point in points}) > 1
    }


def axes_of(
    points: Sequence[Point],
    rows: tuple[str, ...] | None,
    columns: tuple[str, ...] | None,
    settled: Iterable[str] = (),
) -> tuple[str, ...]:
    """The keys that labels need: rows, columns and the seed if it is swept.

    Without a table all keys whose values differ.

    Args:
        settled: keys with one value given for them; a point that lacks such a key does not make it
            an axis.
    """
    swept = differing(points)
    if rows is not None:
        return (*rows, *(columns or ()), *(["seed"] if "seed" in swept else []))
    named = {
        name: {point.value(name) for point in points if name in point.settings} for name in settled
    }
    return tuple(key for name, key in swept.items() if len(named.get(name, ())) != 1)


def crowded(points: Sequence[Point], axes: Sequence[str]) -> list[list[Point]]:
    """Different points with the same seed in the same place of a table."""
    places: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for point in points:
        places[tuple(plain(point.value(axis)) for axis in (*axes, "seed"))].append(point)
    return [crowd for crowd in places.values() if len(crowd) > 1]
