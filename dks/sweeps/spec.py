"""From what is asked for, overrides as typed or a named sweep with overrides, to points."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser import types
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dks.config.compose import Compose, Composer, compose_here
from dks.config.errors import RequestError, short
from dks.config.identity import is_execution_only
from dks.config.names import long_name
from dks.config.overrides import checked
from dks.config.ranges import MOST_CELLS
from dks.config.schema import TeacherKind
from dks.sweeps.files import NamedSweep
from dks.sweeps.points import (
    HOLDOUT,
    Override,
    Point,
    Product,
    Settings,
    axes_of,
    check_size,
    choose_of,
    crowded,
    differing,
    plain,
    points_of,
)


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
        return tuple(point.with_values(f"{self.key}={value}") for point in self.undecided)


@dataclass(frozen=True)
class Grid:
    """The points of one table; or several tables, then in `parts`."""

    # the keys of the labels: those swept, as typed; or rows, columns and, if it is swept, the seed
    axes: tuple[str, ...]
    points: tuple[Point, ...]
    # made from the axes and from all values that matter: the same request has the same name,
    # another one another
    name: str
    title: str = ""  # of a named sweep
    rows: tuple[str, ...] | None = None  # axes of the table's rows, if the sweep says which
    columns: tuple[str, ...] | None = None
    # cells that are known when a value has been chosen; not among the points
    choices: tuple[Choice, ...] = ()
    # of a union of sweeps: each of them; there are no points beside them
    parts: tuple[Grid, ...] = ()
    # overrides as typed that reach it: with `named`, the way to ask for it again
    request: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # in `sweeps/`, that it is made from; the first is its own

    @property
    def named(self) -> str | None:
        """The file in `sweeps/` that it is made from; None: it was typed."""
        return self.files[0] if self.files else None

    @property
    def count(self) -> int:
        """How many cells it has, those that try hyper-parameters and those that use the chosen ones
        included.
        """
        choices = sum(
            sum(map(len, choice.candidates.values())) + len(choice.undecided)
            for choice in self.choices
        )
        return len(self.points) + choices + sum(part.count for part in self.parts)


def expand(overrides: Sequence[types.Override]) -> Grid:
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
            tuple(f"{key}={value}" for key, value in zip(values, combination, strict=True)),
            {key: value for key, value in zip(values, combination, strict=True) if key in axes},
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
    return Grid(tuple(axes), points, _named(stem, given), request=tuple(map(_typed, overrides)))


def grid_of(
    sweep: NamedSweep,
    overrides: Sequence[str],
    parser: OverridesParser | None = None,
    compose: Compose | None = None,
) -> Grid:
    """The points of a named sweep.

    `overrides` reach every cell, and one for a swept key replaces its values; but

    - the teacher's (`teacher=`, `kd_teacher.temperature=`, ...) reach only cells that have a
      teacher;
    - one value for a key that is to be chosen settles the choice, several are its candidates;
    - one for a group also drops the file's values inside it: with `data=digits`, its
      `data.augmentation` is gone;
    - `data.holdout=` is for the runs by which something is chosen, if there are any.

    Args:
        compose: tells what has a teacher, where that matters.

    Raises:
        RequestError: an override reaches no cell, contradicts another one, or leaves two cells for
            one place of the table.
    """
    given = _given((parser or OverridesParser.create()).parse_overrides(checked(overrides)))
    tables = list(_tables(sweep, given))
    choosing = any(choose_of(product, its) for table, its in tables for product in table.grids)
    is_taught = _Taught(compose or Composer(compose_here))
    grids: dict[str, Grid] = {}
    reached: set[Override] = set()
    for table, its in tables:
        grid, reaching = _grid(table, its, choosing, is_taught)
        grids[grid.name] = grid
        reached |= reaching
    if lost := [
        each.typed
        for each in dict.fromkeys(each for _, its in tables for each in its)
        if each not in reached
    ]:
        raise RequestError(
            f"{' '.join(lost)} reaches no cell of {sweep.name}, for none has a teacher; choose a "
            f"method kd_..."
        )
    if not sweep.include:
        (grid,) = grids.values()
        return grid
    # `sweep=` names the union alone: a part that is asked for again goes by its own name.
    naming = {each.typed for each in given if each.name == "sweep"}
    parts = (
        replace(part, request=tuple(item for item in part.request if item not in naming))
        for part in grids.values()
    )
    return replace(_headed(sweep, given), parts=tuple(parts))


class _Taught:
    """Has a cell a teacher? Its configuration is asked, for methods, experiments and single keys
    can give it one.
    """

    def __init__(self, compose: Compose) -> None:
        self._compose, self._known = compose, dict[tuple[str, ...], bool]()

    def __call__(self, settings: Settings) -> bool:
        overrides = tuple(
            f"{key}={value}" for name, (key, value) in settings.items() if name != "seed"
        )
        if overrides not in self._known:
            try:
                teacher = self._compose(overrides).config.kd_teacher
                self._known[overrides] = teacher.kind is not TeacherKind.none
            except RequestError:  # whoever plans the cell says what is wrong with it
                self._known[overrides] = True
        return self._known[overrides]


def _given(parsed: Iterable[types.Override]) -> tuple[Override, ...]:
    """Of a key given twice the last, as Hydra has it."""
    last: dict[str, Override] = {}
    for override in parsed:
        key = override.get_key_element()
        last.pop(key, None)
        last[key] = Override(key, tuple(values_of(override)), _typed(override))
    given: dict[str, Override] = {}
    for each in last.values():
        if (other := given.setdefault(each.name, each)).values != each.values:
            raise RequestError(f"{other.typed} and {each.typed} disagree; give one of them")
    return tuple(given.values())


def _tables(
    sweep: NamedSweep, given: tuple[Override, ...]
) -> Iterator[tuple[NamedSweep, tuple[Override, ...]]]:
    """The sweeps with grids in a union of unions, each with the overrides that are for it."""
    if not sweep.include:
        yield sweep, given
        return
    known = {each.name for each in given}
    own = (
        Override(key, (value,), f"{key}={value}")
        for name, (key, value) in sweep.base.items()
        if name not in known
    )
    everything = (*own, *given)
    for part in sweep.include:
        yield from _tables(part, everything)


def _headed(sweep: NamedSweep, given: Sequence[Override]) -> Grid:
    """Name and title of a sweep with overrides, how to ask for it again, and no points yet."""
    matter = [each for each in given if not is_execution_only(each.name)]
    title = " ".join([sweep.title, *(["with"] if matter else []), *(each.typed for each in matter)])
    return Grid(
        (),
        (),
        _named(sweep.name, [each.canonical for each in matter]),
        title,
        request=tuple(each.typed for each in given),
        files=sweep.files,
    )


def _grid(
    sweep: NamedSweep,
    given: tuple[Override, ...],
    choosing: bool,
    is_taught: Callable[[Settings], bool],
) -> tuple[Grid, set[Override]]:
    """A sweep with grids, and the overrides that reach a cell of it.

    Args:
        choosing: here or beside it something is chosen.
    """
    held = next((each for each in given if each.name == HOLDOUT), None) if choosing else None
    if held is not None and (
        len(held.values) > 1 or not held.values[0].isdecimal() or int(held.values[0]) < 1
    ):
        raise RequestError(
            f"{held.typed}: the runs by which something is chosen need one number of training "
            f"images, at least 1"
        )
    applied = tuple(each for each in given if each is not held)
    union: dict[Any, Point] = {}
    for number, product in enumerate(sweep.grids, 1):
        own = [*points_of(product, sweep.base, applied, is_taught)]
        for point in own:
            union.setdefault((point.choose, point.meaning), point)
        if product.choose is not None and not any(point.choose for point in own):
            _refuse_idle(sweep, number, product, is_taught)
    # an equal point does not need its own value
    waiting = {point.meaning for point in union.values() if point.choose}
    points = [point for point in union.values() if point.choose or point.meaning not in waiting]
    if not points:
        asked = " ".join(each.typed for each in given)
        raise RequestError(
            f"{asked} leaves no cell of {sweep.name}, for its file excludes them all"
        )
    settled = {each.name for each in applied if len(each.values) == 1}
    rows = None if sweep.rows is None else _rows(sweep.rows, sweep.columns or (), points)
    axes = axes_of(points, rows, sweep.columns, settled)
    for one, other, *_ in crowded(points, axes):
        raise RequestError(
            f"{sweep.name}: {one} and {other} would fill the same place of the table; drop one "
            f"of the overrides"
        )
    reached = {each for each in applied if any(_reaches(each, point) for point in points)}
    if held is not None and any(point.choose for point in points):
        reached.add(held)
    points = [point.labelled(axes) for point in points]
    seeds: dict[Any, list[Point]] = defaultdict(list)  # points that differ in the seed alone
    for point in points:
        if point.choose is not None:
            rest = frozenset(item for item in point.meaning if item[0] != "seed")
            seeds[point.choose, rest].append(point)
    choices = [_choice(runs, None if held is None else held.values[0]) for runs in seeds.values()]
    grid = replace(
        _headed(sweep, [each for each in given if each in reached]),
        axes=axes,
        points=tuple(point for point in points if point.choose is None),
        rows=rows,
        columns=sweep.columns,
        choices=tuple(choices),
    )
    return grid, reached


def _refuse_idle(
    sweep: NamedSweep, number: int, product: Product, is_taught: Callable[[Settings], bool]
) -> None:
    """Overrides may leave a choice without cells; a file that does so means something else.

    Raises:
        RequestError: the choice of its grid is for no cell.
    """
    assert product.choose is not None
    if not any(point.choose for point in points_of(product, sweep.base, (), is_taught)):
        raise RequestError(
            f"{sweep.name}.yaml: grid {number}: choose: {product.choose.key} is chosen for cells "
            f"with a teacher, and none has one; choose a method kd_... or a kd_teacher"
        )


def _reaches(override: Override, point: Point) -> bool:
    if point.choose is not None and point.choose.name == override.name:
        return True
    return point.settings.get(override.name, ("", None))[1] in override.values


def _rows(
    rows: tuple[str, ...], columns: tuple[str, ...], points: Sequence[Point]
) -> tuple[str, ...]:
    """The axes of the rows, with keys that overrides sweep, or that alone tell points apart when
    another one is fixed.
    """
    more: dict[str, str] = {}
    for crowd in crowded(points, (*rows, *columns)):
        more |= differing(crowd)
    return (*rows, *more.values())


def _choice(points: Sequence[Point], holdout: str | None) -> Choice:
    """A choice for points that differ in nothing but the seed."""
    choose = points[0].choose
    assert choose is not None
    held = f"{HOLDOUT}={choose.holdout if holdout is None else holdout}"
    return Choice(
        choose.key,
        {axis: value for axis, value in points[0].labels.items() if axis != "seed"},
        {
            value: tuple(
                point.with_values(held, f"{choose.key}={value}", **{choose.key: value})
                for point in points
            )
            for value in choose.candidates
        },
        tuple(point.with_values() for point in points),
    )


def _typed(override: types.Override) -> str:
    """An override as it was typed."""
    assert override.input_line is not None, "Hydra's parser notes it"
    return override.input_line


def values_of(override: types.Override) -> list[str]:
    """The values of one override, as they stand behind `key=`.

    Raises:
        RequestError: a continuous interval, no value at all, or more than `MOST_CELLS`.
    """
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    line = _typed(override)
    if not override.is_discrete_sweep():
        key = override.get_key_element()
        raise RequestError(f"{line}: name the values, for example {key}=1,2,3 or {key}=range(1,4)")
    try:
        # Counted first: the values of shuffle(range(...)) are all made at once.
        whole = override.value()
        many = isinstance(whole, types.RangeSweep) and any(
            True for _ in itertools.islice(whole.range(), MOST_CELLS, None)
        )
        values = [] if many else list(override.sweep_string_iterator())
    except (ValueError, ArithmeticError, HydraException) as error:
        raise RequestError(f"{short(line)}: {error}") from error
    if many:
        raise RequestError(
            f"{short(line)} has more than {MOST_CELLS:,} values; a sweep has so many cells at most"
        )
    if not values:
        raise RequestError(f"{line}: there is nothing to sweep over")
    if len(set(values)) < len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise RequestError(f"{short(line)} has {short(twice)} twice; give each value once")
    return values


def _named(stem: str, given: Iterable[str]) -> str:
    """For example `table3`, and `table3-3f9a21` where values are given for some keys that matter.

    Args:
        given: overrides, their keys as long names.
    """
    whole = "\n".join(
        sorted(item for item in given if not is_execution_only(item.partition("=")[0]))
    )
    return "-".join(filter(None, (stem, whole and hashlib.sha256(whole.encode()).hexdigest()[:6])))
