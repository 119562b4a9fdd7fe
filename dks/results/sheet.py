"""A table as strings: the one formatter.

Renderers lay these out and escape them, and change no digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from dks.results import computed
from dks.results.computed import MARK
from dks.results.model import Comparison, Label, Place, Table, TableCell
from dks.results.shape import Epoch, Over
from dks.results.statistics import CONFIDENCE, LEVEL
from dks.runs.states import State
from dks.sweeps.paper import PaperNumber

DIGITS = 2  # after the decimal point, as in the paper
FEW = 5  # the paper's number of runs; fewer are said
OVER = {Over.baseline: "baseline", Over.ds: "DS", Over.alone: "alone"}
_OVER_IN_WORDS = {
    Over.baseline: "the baseline",
    Over.ds: "DS",
    Over.alone: "the same classifier trained alone",
}


@dataclass(frozen=True)
class Heading:
    """A head over one or more columns."""

    text: str
    span: int = 1  # columns


@dataclass(frozen=True)
class SheetCell:
    """One text of the body."""

    text: str
    value: float | None = None  # what it is sorted by; None: behind all others
    place: Place | None = None  # the cell of the table that it tells of
    bold: bool = False
    tone: str = ""  # "failed" or "open" where runs failed or are not done


@dataclass(frozen=True)
class SheetRow:
    """One line of the body."""

    labels: tuple[str, ...]
    cells: tuple[SheetCell, ...]


@dataclass(frozen=True)
class Sheet:
    """A head, a body and what is to be said about it."""

    caption: str
    label_heads: tuple[str, ...]  # over the labels of rows
    # lines of headings over the other columns, the last one a heading a column
    head: tuple[tuple[Heading, ...], ...]
    rows: tuple[SheetRow, ...]
    notes: tuple[str, ...] = ()


# What a cell has in a column of figures: the text, and what it is sorted by.
_Shown = tuple[str, float | None]
_Block = dict[str, Callable[[TableCell, Place], _Shown]]


def sheets(table: Table) -> list[Sheet]:
    """The table, and its tests where configurations have runs enough to be compared."""
    return [main(table), *([_tests(table)] if table.tested else [])]


def main(table: Table) -> Sheet:
    """The table without its tests."""
    blocks = {column: _block(table, column) for column in table.columns}
    rows = [
        SheetRow(
            row,
            tuple(
                cell
                for column, block in blocks.items()
                for cell in _row_cells(table, (row, column), block)
            ),
        )
        for row in table.rows
    ]
    head = _head(table, blocks)
    return Sheet(caption(table), table.row_axes, head, tuple(rows), tuple(_notes(table)))


def _block(table: Table, column: Label) -> _Block:
    """The columns of figures for one column of the table, by their titles."""
    cells = [
        cell
        for place, cell in table.cells.items()
        if place[1] == column and place not in table.aside
    ]
    numbers = [number for cell in cells for number in cell.numbers]
    metrics = "/".join(metric.label for metric in table.metrics)
    block: _Block = {
        metrics if len(table.metrics) > 1 else "error": lambda cell, place: (
            _error(cell, table),
            cell.numbers[0].mean,
        )
    }
    names = {
        over: "gain" if len(table.gains) == 1 else f"gain over {OVER[over]}" for over in table.gains
    }
    for over, name in names.items():
        if any(over in number.gains for number in numbers):
            block[name] = partial(_gain, table, over)
    if any(number.paper is not None for number in numbers):
        block["paper"] = lambda cell, place: _paper(cell)
        for over, name in names.items():
            if any(_paper_gain(over, cell)[0] for cell in cells):
                block[f"paper's {name}"] = partial(_paper_gain, over)
        block["difference"] = lambda cell, place: _difference(cell)
    if table.has_paper:
        block["n"] = lambda cell, place: (_n(cell), float(cell.n))
    return block


def _row_cells(table: Table, place: Place, block: _Block) -> Iterator[SheetCell]:
    cell = table.cells.get(place)
    if cell is None or place in table.aside:
        yield from [SheetCell("")] * len(block)
        return
    failed = State.failed.value in cell.states or cell.left_out
    tone = "failed" if failed else "open" if cell.states else ""
    for index, show in enumerate(block.values()):
        text, value = show(cell, place)
        yield (
            SheetCell(text, value, place)
            if index
            else SheetCell(text, value, place, cell.is_best, tone)
        )


def _head(table: Table, blocks: dict[Label, _Block]) -> tuple[tuple[Heading, ...], ...]:
    """A line for every axis of the columns, then one for the columns of figures, unless each column
    has the error alone.
    """
    lines = []
    for level, axis in enumerate(table.column_axes):
        groups = groupby(table.columns, lambda column: column[: level + 1])  # noqa: B023
        lines.append(
            tuple(
                Heading(f"{axis}={label[level]}", sum(len(blocks[column]) for column in columns))
                for label, columns in groups
            )
        )
    titles = [title for block in blocks.values() for title in block]
    if not lines or len(titles) > len(blocks):
        alone = len(table.metrics) == 1 and not table.column_axes
        lines.append(
            tuple(Heading("error (%)" if alone and title == "error" else title) for title in titles)
        )
    return tuple(lines)


def error_text(cell: TableCell) -> str:
    """`mean(std)`, of two metrics with a slash, a dash for one that is not there, a mark if it is
    of several codes; empty without runs.
    """
    if not cell.n:
        return ""
    texts = [
        "-" if number.mean is None else _with_sd(fixed(number.mean), number.sd)
        for number in cell.numbers
    ]
    return "/".join(texts) + _mark(cell)


def _with_sd(mean: str, sd: float | None) -> str:
    return mean if sd is None else f"{mean}({fixed(sd)})"


def _mark(*cells: TableCell) -> str:
    """At what was computed from the runs of these."""
    return MARK if len({code for cell in cells for code in cell.codes}) > 1 else ""


def fixed(value: float, signed: bool = False) -> str:
    """With DIGITS after the point, and no minus before a zero."""
    return f"{value:{'+' if signed else ''}z.{DIGITS}f}"


def _error(cell: TableCell, table: Table) -> str:
    """Never a mean that hides a failed run: what is missing stands beside it."""
    parts = [error_text(cell)] if cell.n else []
    if cell.n and not table.has_paper:
        if cell.n < cell.wanted:
            parts.append(f"n={cell.n} of {cell.wanted},")
        elif cell.n < FEW and len(table.runs_counted) > 1:
            parts.append(f"n={cell.n}")
    reasons = [*cell.states.items(), *cell.left_out.items()]
    if reasons:
        parts.append(
            ", ".join(
                reason if cell.wanted == 1 else f"{count} {reason}" for reason, count in reasons
            )
        )
    return " ".join(parts)


def _gain(table: Table, over: Over, cell: TableCell, place: Place) -> _Shown:
    gains = [number.gains.get(over) for number in cell.numbers]
    text = "/".join(fixed(gain) for gain in gains if gain is not None)
    other = table.compared_with.get((place, over))
    return text + _mark(cell, table.cells[other]) if text and other else text, gains[0]


def _papers(cell: TableCell) -> list[PaperNumber]:
    return [number.paper for number in cell.numbers if number.paper is not None]


def _paper(cell: TableCell) -> _Shown:
    papers = _papers(cell)
    text = "/".join(paper.mean + (f"({paper.sd})" if paper.sd else "") for paper in papers)
    return text, float(papers[0].mean) if papers else None


def _paper_gain(over: Over, cell: TableCell, place: Place | None = None) -> _Shown:
    gains = [each.gain for each in _papers(cell) if each.gain and each.gain_over == over.value]
    return "/".join(gains), float(gains[0]) if gains else None


def _difference(cell: TableCell) -> _Shown:
    found = [number.difference for number in cell.numbers if number.difference is not None]
    return "/".join(fixed(each, signed=True) for each in found), found[0] if found else None


def _n(cell: TableCell) -> str:
    return str(cell.n) if cell.is_whole else f"{cell.n} of {cell.wanted}"


def caption(table: Table) -> str:
    """What the numbers are."""
    runs, few = table.runs_counted, ""
    if len(runs) == 1 and 0 < runs[0] < FEW:
        single = " (a single seed, no standard deviation)"
        few = f", n = {runs[0]}{single if runs[0] == 1 else ' seeds'}"
    several = any(cell.wanted > 1 for cell in table.cells.values())
    what = "mean(std) over seeds" if several else "one run a cell"
    metrics = "/".join(metric.label for metric in table.metrics)
    epoch = f"{table.epoch.value} epoch{table.whose}"
    if table.epoch is Epoch.best:
        epoch += ", chosen by the test error itself and so optimistic"
    numbers = [number for cell in table.cells.values() for number in cell.numbers]
    shown = [
        _OVER_IN_WORDS[over]
        for over in table.gains
        if any(over in number.gains for number in numbers)
    ]
    text = f"{table.title}: {metrics} test error in %, {epoch}, {what}{few}"
    text += f"; gain over {' and '.join(shown)}" if shown else ""
    return text + ("; difference: ours less the paper's" if table.has_paper else "")


def _notes(table: Table) -> Iterator[str]:
    for place in table.aside:
        cell = table.cells[place]
        parts = [_error(cell, table)]
        if paper := _paper(cell)[0]:
            difference = _difference(cell)[0]
            parts += [f"n = {_n(cell)}", f"paper {paper}"]
            parts += [f"difference {difference}"] if difference else []
        yield f"{_names([place])}: {', '.join(parts)}"
    total = sum(table.states.values())
    told = [
        f"{count} {state}" for state, count in table.states.items() if state != State.done.value
    ]
    if told and total > 1:
        yield f"of {total} runs {', '.join(told)}"
    for reason, count in table.left_out.items():
        yield f"left out: {count} finished {'run' if count == 1 else 'runs'} ({reason})"
    axes = (*table.row_axes, *table.column_axes)
    for first in dict.fromkeys(table.same.values()):  # rows that the same runs fill
        places = [first, *(place for place, other in table.same.items() if other == first)]
        named = [" ".join(map("=".join, zip(axes, (*row, *to), strict=True))) for row, to in places]
        yield f"the same configuration, trained once: {' and '.join(named)}"
    yield from computed.notes(table)
    yield from _printed(table)
    yield from _differences(table)
    yield from table.decided
    yield from table.undecided
    yield from filter(None, [table.changed, table.earlier])


def _names(places: Iterable[Place]) -> str:
    return ", ".join(" ".join((*row, *column)) for row, column in places)


def _printed(table: Table) -> Iterator[str]:
    """Where the paper has the numbers that stand beside ours.

    Of most of them, then of the others.
    """
    places: dict[str, list[Place]] = {}
    for place, cell in table.cells.items():
        for paper in _papers(cell)[:1]:
            places.setdefault(paper.where, []).append(place)
    if places:
        most, *others = sorted(places, key=lambda where: -len(places[where]))
        rest = [f"of {_names(places[where])}: {where}" for where in others]
        yield "; ".join([f"the paper's numbers: {most}", *rest])


def _differences(table: Table) -> Iterator[str]:
    """Where a sweep that is called after a table of the paper's has another setting."""
    by_lines: dict[tuple[str, ...], list[Place]] = {}
    for place, cell in table.cells.items():
        if cell.differs:
            by_lines.setdefault(cell.differs, []).append(place)
    everywhere = [
        line
        for line in next(iter(by_lines), ())
        if all(line in cell.differs for cell in table.cells.values())
    ]
    if everywhere:
        so = "" if table.has_paper else ", so its numbers are not shown"
        yield f"not the paper's setting{so}: {'; '.join(everywhere)}"
    for lines, places in by_lines.items():
        if rest := [line for line in lines if line not in everywhere]:
            yield f"not the paper's setting in {_names(places)}: {'; '.join(rest)}"


def _tests(table: Table) -> Sheet:
    """The comparisons."""
    percent = f"{CONFIDENCE:.0%}".replace("%", " %")
    head = ("over", "gain", f"{percent} interval", "p", "p (Holm)", "Hedges g", "n", "result")
    count = len(table.comparisons)
    return Sheet(
        caption=f"{table.title}: gains in {table.metrics[0].label} error, Welch's t test, "
        f"p corrected by Holm for {count} {'test' if count == 1 else 'tests'}",
        label_heads=(*table.row_axes, *table.column_axes),
        head=(tuple(map(Heading, head)),),
        rows=tuple(_test(each, table) for each in table.comparisons),
        notes=(
            f"evidence: p (Holm) below {LEVEL}; no evidence is not evidence of no effect, least "
            f"of all with few seeds",
        ),
    )


def _test(each: Comparison, table: Table) -> SheetRow:
    found = each.difference
    mark = _mark(table.cells[each.place], table.cells[table.compared_with[each.place, each.over]])
    cells: Sequence[_Shown] = (
        (OVER[each.over], None),
        (fixed(found.mean) + mark, found.mean),
        (f"{fixed(found.low)} to {fixed(found.high)}", found.low),
        (_p(found.p), found.p),
        (_p(each.p_holm), each.p_holm),
        ("" if found.g is None else fixed(found.g), found.g),
        (f"{each.n}, {each.n_other}", float(each.n)),
        ("evidence" if each.p_holm < LEVEL else "no evidence", None),
    )
    return SheetRow(
        (*each.place[0], *each.place[1]),
        tuple(
            SheetCell(text, None if value is None or math.isnan(value) else value, each.place)
            for text, value in cells
        ),
    )


def _p(p: float) -> str:
    return "undefined" if math.isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}"
