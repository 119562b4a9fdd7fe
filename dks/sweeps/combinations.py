"""The cells of a grid of a sweep file.

Combinations of its values, with overrides in their place, and what tells them apart.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from dks.config.names import long_name

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


@dataclass(frozen=True)
class Product:
    """One grid of a file: every combination of its dimensions that no exclude matches."""

    dimensions: tuple[Dimension, ...]
    excludes: tuple[dict[str, frozenset[str]], ...]  # long name of a key -> values
    choose: Choose | None


@dataclass(frozen=True)
class Cell:
    """One combination of a product."""

    grid: int  # number of the product in its file, from 1
    settings: Settings
    choose: Choose | None  # its final runs wait for this choice

    @cached_property
    def meaning(self) -> frozenset[tuple[str, str]]:
        """The same for settings that are the same, however they are spelled."""
        return frozenset((name, plain(value)) for name, (_, value) in self.settings.items())

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(f"{key}={value}" for key, value in self.settings.values())

    def __str__(self) -> str:
        return " ".join(self.overrides)

    def value(self, axis: str) -> str:
        return self.settings.get(long_name(axis), ("", "-"))[1]

    def labels(self, axes: Iterable[str]) -> dict[str, str]:
        return {axis: self.value(axis) for axis in axes}

    def place(self, axes: Iterable[str]) -> tuple[str, ...]:
        """Where it stands in a table, and the seed."""
        return tuple(plain(self.value(axis)) for axis in (*axes, "seed"))


@dataclass(frozen=True)
class Override:
    """What is to hold for every cell, whatever the file says."""

    key: str  # as typed
    values: tuple[str, ...]
    typed: str  # all of it

    @property
    def name(self) -> str:
        return long_name(self.key)

    @property
    def dimension(self) -> Dimension:
        return tuple({self.name: (self.key, value)} for value in self.values)

    @property
    def canonical(self) -> str:
        return f"{self.name}={','.join(sorted(map(plain, self.values)))}"


def cells_of(
    number: int,
    product: Product,
    base: Settings,
    given: Sequence[Override],
    is_taught: Callable[[Settings], bool],
) -> Iterator[Cell]:
    """The combinations of one product, in order, with overrides in the place of its own values.

    Args:
        is_taught: has a cell a teacher? Those of overrides and of choices are for such cells alone.
    """
    choose = choose_of(product, given)
    # Several values for a key that is chosen are its candidates: the cell itself does not have it.
    applied = [each for each in given if choose is None or each.name != long_name(choose.key)]
    others = [override for override in applied if not _is_teachers(override.name)]
    dimensions, base = _without_groups(
        product.dimensions, base, [override.name for override in others]
    )
    for override in others:
        dimensions = _replaced(dimensions, override)
    teachers = [override.dimension for override in applied if _is_teachers(override.name)]
    own, candidates = product.choose, _candidates(product, given)
    chooses_teacher = own is not None and _is_teachers(long_name(own.key))
    for combination in itertools.product(*dimensions):
        settings = dict(base)
        for part in combination:
            settings.update(part)
        asked = [settings] if teachers or chooses_teacher else []
        if own is not None and chooses_teacher:  # it may be the teacher itself
            asked += [{**settings, long_name(own.key): (own.key, value)} for value in candidates]
        taught = any(map(is_taught, asked))
        chosen = choose if taught or not chooses_teacher else None
        for more in itertools.product(*teachers) if taught else [()]:
            whole = dict(settings)
            for part in more:
                whole.update(part)
            if not any(matches(whole, exclude) for exclude in product.excludes):
                yield Cell(number, whole, chosen)


def choose_of(product: Product, given: Sequence[Override]) -> Choose | None:
    """What is still to be chosen.

    One value given for it settles it, several replace its candidates.
    """
    candidates = _candidates(product, given)
    return (
        replace(product.choose, candidates=candidates)
        if product.choose is not None and len(candidates) > 1
        else None
    )


def _candidates(product: Product, given: Sequence[Override]) -> tuple[str, ...]:
    """The values of the key that is chosen; none where nothing is."""
    choose = product.choose
    if choose is None:
        return ()
    return next(
        (each.values for each in given if each.name == long_name(choose.key)), choose.candidates
    )


def _without_groups(
    dimensions: Iterable[Dimension], base: Settings, groups: Sequence[str]
) -> tuple[list[Dimension], Settings]:
    """Without the file's values inside groups that are overridden.

    `data.augmentation` belongs to the file's own `data`.
    """
    prefixes = tuple(f"{group}." for group in groups)

    def kept(settings: Settings) -> Settings:
        return {name: value for name, value in settings.items() if not name.startswith(prefixes)}

    left: list[Dimension] = []
    for dimension in dimensions:
        parts = [kept(part) for part in dimension]
        if parts != list(dimension):
            parts = [
                part for number, part in enumerate(parts) if part and part not in parts[:number]
            ]
        if parts:
            left.append(tuple(parts))
    return left, kept(base)


def _replaced(dimensions: list[Dimension], override: Override) -> list[Dimension]:
    """The dimensions with the values of an override in the place of the key's own, or behind them
    all.
    """
    found: list[Dimension] = []
    done = False
    for dimension in dimensions:
        if override.name not in dimension[0]:
            found.append(dimension)
            continue
        done = True
        if len(dimension[0]) > 1:  # zipped: the others still change together
            rest = [
                {name: value for name, value in part.items() if name != override.name}
                for part in dimension
            ]
            found.append(
                tuple(part for number, part in enumerate(rest) if part not in rest[:number])
            )
        found.append(override.dimension)
    return found if done else [*found, override.dimension]


def _is_teachers(name: str) -> bool:
    return name == "kd_teacher" or name.startswith("kd_teacher.")


def matches(settings: Settings, exclude: dict[str, frozenset[str]]) -> bool:
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


def differing(cells: Sequence[Cell]) -> dict[str, str]:
    """Long name -> first spelling of the keys whose values differ.

    To lack a key counts as a value of its own.
    """
    spelled: dict[str, str] = {}
    for cell in cells:
        for name, (key, _) in cell.settings.items():
            spelled.setdefault(name, key.lstrip("+"))
    return {
        name: key
        for name, key in spelled.items()
        if len({plain(cell.value(name)) for cell in cells}) > 1
    }


def axes_of(
    cells: Sequence[Cell],
    rows: tuple[str, ...] | None,
    columns: tuple[str, ...] | None,
    settled: Iterable[str] = (),
) -> tuple[str, ...]:
    """The keys that labels need: rows, columns and the seed if it is swept.

    Without a table all keys whose values differ.

    Args:
        settled: keys with one value given for them; a cell that lacks such a key does not make it
            an axis.
    """
    swept = differing(cells)
    if rows is None:
        named_values = {
            name: {cell.value(name) for cell in cells if name in cell.settings} for name in settled
        }
        return tuple(key for name, key in swept.items() if len(named_values.get(name, ())) != 1)
    return (*rows, *(columns or ()), *(["seed"] if "seed" in swept else []))


def crowded(cells: Sequence[Cell], axes: Sequence[str]) -> list[list[Cell]]:
    """Different cells with the same seed in the same place of a table."""
    places: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        places[cell.place(axes)].append(cell)
    return [crowd for crowd in places.values() if len(crowd) > 1]
