"""From a named sweep and the overrides of a request to its cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser import types
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config.compose import Compose, checked, compose_here
from dks.config.composer import Composer
from dks.config.errors import RequestError
from dks.config.names import long_name
from dks.config.schema import TeacherKind
from dks.sweeps.combinations import (
    HOLDOUT,
    Cell,
    Override,
    Product,
    Settings,
    axes_of,
    cells_of,
    choose_of,
    crowded,
    differing,
)
from dks.sweeps.files import NamedSweep
from dks.sweeps.grid import Choice, Grid, Point, named, that_matter, typed, values_of


def grid_of(
    sweep: NamedSweep,
    overrides: Sequence[str],
    parser: OverridesParser,
    compose: Compose | None = None,
) -> Grid:
    """The cells of a sweep.

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
    given = _given(parser.parse_overrides(checked(overrides)))
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
                self._known[overrides] = (
                    self._compose(overrides).config.kd_teacher.kind is not TeacherKind.none
                )
            except RequestError:  # whoever plans the cell says what is wrong with it
                self._known[overrides] = True
        return self._known[overrides]


def _given(parsed: Iterable[types.Override]) -> tuple[Override, ...]:
    """Of a key given twice the last, as Hydra has it."""
    last: dict[str, Override] = {}
    for override in parsed:
        key = override.get_key_element()
        last.pop(key, None)
        last[key] = Override(key, tuple(values_of(override)), typed(override))
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
    """Name and title of a sweep with overrides, how to ask for it again, and no cells yet."""
    matter = [each for each in given if that_matter([each.canonical])]
    canonical = that_matter(each.canonical for each in matter)
    title = (
        f"{sweep.title} with {' '.join(each.typed for each in matter)}" if matter else sweep.title
    )
    request = tuple(each.typed for each in given)
    return Grid(
        (),
        (),
        named(sweep.name, canonical),
        title,
        fixed=canonical,
        named=sweep.name,
        request=request,
    )


def _grid(
    sweep: NamedSweep,
    given: tuple[Override, ...],
    choosing: bool,
    is_taught: Callable[[Settings], bool],
) -> tuple[Grid, set[Override]]:
    """A sweep with grids, and the overrides that reach a cell of it. `choosing`.

    Here or beside it something is chosen.
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
    union: dict[Any, Cell] = {}
    for number, product in enumerate(sweep.grids, 1):
        own = [*cells_of(number, product, sweep.base, applied, is_taught)]
        for cell in own:
            union.setdefault((cell.choose, cell.meaning), cell)
        if product.choose is not None and not any(cell.choose for cell in own):
            _refuse_idle(sweep, number, product, is_taught)
    # an equal cell does not need its own value
    waiting = {cell.meaning for cell in union.values() if cell.choose}
    cells = [cell for cell in union.values() if cell.choose or cell.meaning not in waiting]
    if not cells:
        asked = " ".join(each.typed for each in given)
        raise RequestError(
            f"{asked} leaves no cell of {sweep.name}, for its file excludes them all"
        )
    settled = {each.name for each in applied if len(each.values) == 1}
    rows = None if sweep.rows is None else _rows(sweep.rows, sweep.columns or (), cells)
    axes = axes_of(cells, rows, sweep.columns, settled)
    for one, other, *_ in crowded(cells, axes):
        raise RequestError(
            f"{sweep.name}: {one} and {other} would fill the same place of the table; drop one "
            f"of the overrides"
        )
    reached = {each for each in applied if any(_reaches(each, cell) for cell in cells)}
    if held is not None and any(cell.choose for cell in cells):
        reached.add(held)
    points = tuple(
        Point(cell.overrides, cell.labels(axes)) for cell in cells if cell.choose is None
    )
    seeds: dict[Any, list[Cell]] = defaultdict(list)  # cells that differ in nothing but the seed
    for cell in cells:
        if cell.choose is not None:
            seeds[
                cell.choose, frozenset(item for item in cell.meaning if item[0] != "seed")
            ].append(cell)
    choices = tuple(
        _choice(runs, axes, None if held is None else held.values[0]) for runs in seeds.values()
    )
    headed = _headed(sweep, [each for each in given if each in reached])
    return replace(
        headed, axes=axes, points=points, rows=rows, columns=sweep.columns, choices=choices
    ), reached


def _refuse_idle(
    sweep: NamedSweep, number: int, product: Product, is_taught: Callable[[Settings], bool]
) -> None:
    """Overrides may leave a choice without cells; a file that does so means something else.

    Raises:
        RequestError: the choice of its grid is for no cell.
    """
    assert product.choose is not None
    if not any(cell.choose for cell in cells_of(number, product, sweep.base, (), is_taught)):
        raise RequestError(
            f"{sweep.name}.yaml: grid {number}: choose: {product.choose.key} is chosen for cells "
            f"with a teacher, and none has "
            "one; choose a method kd_... or a kd_teacher"
        )


def _reaches(override: Override, cell: Cell) -> bool:
    if cell.choose is not None and long_name(cell.choose.key) == override.name:
        return True
    return cell.settings.get(override.name, ("", None))[1] in override.values


def _rows(
    rows: tuple[str, ...], columns: tuple[str, ...], cells: Sequence[Cell]
) -> tuple[str, ...]:
    """The axes of the rows, with keys that overrides sweep, or that alone tell cells apart when
    another one is fixed.
    """
    more: dict[str, str] = {}
    for crowd in crowded(cells, (*rows, *columns)):
        more |= differing(crowd)
    return (*rows, *more.values())


def _choice(cells: Sequence[Cell], axes: Sequence[str], holdout: str | None) -> Choice:
    """A choice for cells that differ in nothing but the seed."""
    choose = cells[0].choose
    assert choose is not None
    held = f"{HOLDOUT}={choose.holdout if holdout is None else holdout}"
    candidates = {
        value: tuple(
            Point(
                (*cell.overrides, held, f"{choose.key}={value}"),
                {**cell.labels(axes), choose.key: value},
            )
            for cell in cells
        )
        for value in choose.candidates
    }
    place = cells[0].labels(axis for axis in axes if axis != "seed")
    return Choice(
        choose.key,
        place,
        candidates,
        tuple(Point(cell.overrides, cell.labels(axes)) for cell in cells),
    )
