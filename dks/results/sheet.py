"""A table as strings: the one formatter.

Renderers lay these out and escape them, and change no digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from dks.results import computed
from dks.results.computed import MARK
from dks.results.model import Comparison, Epoch, Label, Number, Over, Place, Table, TableCell
from dks.results.statistics import CONFIDENCE, LEVEL
from dks.runs.states import State

DIGITS = 2  # after the decimal point, as in the paper
FEW = 5  # the paper's number of runs; fewer are said
OVER = {Over.baseline: "baseline", Over.ds: "DS", Over.alone: "alone"}


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


def sheets(table: Table) -> list[Sheet]:
    """The table, and its tests where configurations have runs enough to be compared."""
    return [main(table), *([_tests(table)] if table.tested else [])]


@dataclass(frozen=True)
class _Column:
    """A column of figures within a column of the table."""

    title: str
    cell: Callable[[TableCell, Place], SheetCell]


def main(table: Table) -> Sheet:
    """The table without its tests."""
    blocks = {column: _block(table, column) for column in table.columns}
    rows = []
    for row in table.rows:
        cells = []
        for column in table.columns:
            found = table.cells.get((row, column))
            if found is None or (row, column) in table.aside:
                cells += [SheetCell("")] * len(blocks[column])
            else:
                cells += [each.cell(found, (row, column)) for each in blocks[column]]
        rows.append(SheetRow(row, tuple(cells)))
    return Sheet(
        caption(table), table.row_axes, _head(table, blocks), tuple(rows), tuple(_notes(table))
    )


def _block(table: Table, column: Label) -> list[_Column]:
    """The columns of figures for one column of the table."""
    cells = [
        cell
        for (_, its), cell in table.cells.items()
        if its == column and (_, its) not in table.aside
    ]
    error = (
        "/".join(metric.label for metric in table.metrics) if len(table.metrics) > 1 else "error"
    )
    block = [_Column(error, lambda cell, place: _error(cell, place, table))]
    for over in table.gains:
        if any(over in number.gains for cell in cells for number in cell.numbers):
            block.append(_Column(_gain_title(table, over), partial(_gain, over=over, table=table)))
    if any(number.paper is not None for cell in cells for number in cell.numbers):
        block.append(_Column("paper", _paper))
        for over in table.gains:
            if any(_paper_gains(cell, over) for cell in cells):
                title = f"paper's {_gain_title(table, over)}"
                block.append(_Column(title, partial(_paper_gain, over=over)))
        block.append(_Column("difference", _difference))
    if table.has_paper:
        block.append(_Column("n", _n))
    return block


def _gain_title(table: Table, over: Over) -> str:
    return "gain" if len(table.gains) == 1 else f"gain over {OVER[over]}"


def _head(table: Table, blocks: dict[Label, list[_Column]]) -> tuple[tuple[Heading, ...], ...]:
    """A line for every axis of the columns, then one for the columns of figures, unless each column
    has the error alone.
    """
    lines = []
    for level, axis in enumerate(table.column_axes):
        line: list[tuple[Label, Heading]] = []
        for column in table.columns:
            above, width = column[: level + 1], len(blocks[column])
            if line and line[-1][0] == above:
                line[-1] = above, Heading(line[-1][1].text, line[-1][1].span + width)
            else:
                line.append((above, Heading(f"{axis}={column[level]}", width)))
        lines.append(tuple(heading for _, heading in line))
    if not lines or any(len(block) > 1 for block in blocks.values()):
        alone = len(table.metrics) == 1 and not table.column_axes
        titles = [each.title for column in table.columns for each in blocks[column]]
        lines.append(
            tuple(Heading("error (%)" if alone and title == "error" else title) for title in titles)
        )
    return tuple(lines)


def error_text(cell: TableCell) -> str:
    """`mean(std)`, of two metrics with a slash, a dash for one that is not there, a mark if it is
    of several codes; empty without runs.
    """
    return (
        "" if not cell.n else "/".join(_mean_text(number) for number in cell.numbers) + _mark(cell)
    )


def _mark(*cells: TableCell) -> str:
    """At what was computed from the runs of these."""
    return MARK if len({code for cell in cells for code in cell.codes}) > 1 else ""


def _mean_text(number: Number) -> str:
    if number.mean is None:
        return "-"
    return fixed(number.mean) + (f"({fixed(number.sd)})" if number.sd is not None else "")


def fixed(value: float, signed: bool = False) -> str:
    """With DIGITS after the point, and no minus before a zero."""
    text = f"{value:+.{DIGITS}f}" if signed else f"{value:.{DIGITS}f}"
    return text.replace("-", "+" if signed else "") if not text.strip("+-0.") else text


def _error(cell: TableCell, place: Place, table: Table) -> SheetCell:
    """Never a mean that hides a failed run: what is missing stands beside it."""
    parts = [error_text(cell)] if cell.n else []
    if cell.n and not table.has_paper:
        if cell.n < cell.wanted:
            parts.append(f"n={cell.n} of {cell.wanted},")
        elif cell.n < FEW and len(table.runs_counted) > 1:
            parts.append(f"n={cell.n}")
    missing = [
        state if cell.wanted == 1 else f"{count} {state}" for state, count in cell.states.items()
    ]
    missing += [
        reason if cell.wanted == 1 else f"{count} {reason}"
        for reason, count in cell.left_out.items()
    ]
    if missing:
        parts.append(", ".join(missing))
    tone = (
        "failed"
        if State.failed.value in cell.states or cell.left_out
        else "open"
        if cell.states
        else ""
    )
    return SheetCell(" ".join(parts), cell.numbers[0].mean, place, cell.is_best, tone)


def _gain(cell: TableCell, place: Place, over: Over, table: Table) -> SheetCell:
    gains = [number.gains.get(over) for number in cell.numbers]
    text = "/".join(fixed(gain) for gain in gains if gain is not None)
    other = table.compared_with.get((place, over))
    return SheetCell(
        text + _mark(cell, table.cells[other]) if text and other else text, gains[0], place
    )


def _paper(cell: TableCell, place: Place) -> SheetCell:
    papers = [number.paper for number in cell.numbers if number.paper is not None]
    text = "/".join(paper.mean + (f"({paper.sd})" if paper.sd else "") for paper in papers)
    return SheetCell(text, float(papers[0].mean) if papers else None, place)


def _paper_gains(cell: TableCell, over: Over) -> list[str]:
    papers = [number.paper for number in cell.numbers if number.paper is not None]
    return [paper.gain for paper in papers if paper.gain and paper.gain_over == over.value]


def _paper_gain(cell: TableCell, place: Place, over: Over) -> SheetCell:
    gains = _paper_gains(cell, over)
    return SheetCell("/".join(gains), float(gains[0]) if gains else None, place)


def _difference(cell: TableCell, place: Place) -> SheetCell:
    differences = [number.difference for number in cell.numbers if number.difference is not None]
    text = "/".join(fixed(each, signed=True) for each in differences)
    return SheetCell(text, differences[0] if differences else None, place)


def _n(cell: TableCell, place: Place) -> SheetCell:
    return SheetCell(
        str(cell.n) if cell.is_whole else f"{cell.n} of {cell.wanted}", float(cell.n), place
    )


def caption(table: Table) -> str:
    """What the numbers are."""
    runs, few = table.runs_counted, ""
    if len(runs) == 1 and 0 < runs[0] < FEW:
        few = f", n = {runs[0]}" + (
            " (a single seed, no standard deviation)" if runs[0] == 1 else " seeds"
        )
    what = (
        "mean(std) over seeds"
        if any(cell.wanted > 1 for cell in table.cells.values())
        else "one run a cell"
    )
    metrics = "/".join(metric.label for metric in table.metrics)
    epoch = f"{table.epoch.value} epoch{table.whose}"
    epoch += (
        ", chosen by the test error itself and so optimistic" if table.epoch is Epoch.best else ""
    )
    text = f"{table.title}: {metrics} test error in %, {epoch}, {what}{few}"
    shown = [
        over
        for over in table.gains
        if any(over in number.gains for cell in table.cells.values() for number in cell.numbers)
    ]
    names = {
        Over.baseline: "the baseline",
        Over.ds: "DS",
        Over.alone: "the same classifier trained alone",
    }
    if shown:
        text += f"; gain over {' and '.join(names[over] for over in shown)}"
    return text + ("; difference: ours less the paper's" if table.has_paper else "")


def _notes(table: Table) -> Iterator[str]:
    for place in table.aside:
        cell, text = table.cells[place], " ".join((*place[0], *place[1]))
        parts = [_error(cell, place, table).text]
        if paper := _paper(cell, place).text:
            parts += [f"n = {_n(cell, place).text}", f"paper {paper}"]
            parts += (
                [f"difference {difference}"]
                if (difference := _difference(cell, place).text)
                else []
            )
        yield f"{text}: {', '.join(parts)}"
    open_states = {
        state: count for state, count in table.states.items() if state != State.done.value
    }
    if open_states and sum(table.states.values()) > 1:
        told = ", ".join(f"{count} {state}" for state, count in open_states.items())
        yield f"of {sum(table.states.values())} runs {told}"
    for reason, count in table.left_out.items():
        yield f"left out: {count} finished {'run' if count == 1 else 'runs'} ({reason})"
    yield from _repetitions(table)
    yield from computed.notes(table)
    yield from _printed(table)
    yield from _differences(table)
    yield from table.decided
    yield from table.undecided
    yield from filter(None, [table.changed, table.earlier])


def _repetitions(table: Table) -> Iterator[str]:
    """Rows that the same runs fill."""
    axes = (*table.row_axes, *table.column_axes)
    for first in dict.fromkeys(table.same.values()):
        places = [first, *(place for place, other in table.same.items() if other == first)]
        named = (zip(axes, (*row, *column), strict=True) for row, column in places)
        told = " and ".join(
            " ".join(f"{axis}={value}" for axis, value in labels) for labels in named
        )
        yield f"the same configuration, trained once: {told}"


def _names(places: Sequence[Place]) -> str:
    return ", ".join(" ".join((*row, *column)) for row, column in places)


def _printed(table: Table) -> Iterator[str]:
    """Where the paper has the numbers that stand beside ours.

    Of most of them, then of the others.
    """
    places: dict[str, list[Place]] = {}
    for place, cell in table.cells.items():
        if (
            paper := next(
                (number.paper for number in cell.numbers if number.paper is not None), None
            )
        ) is not None:
            places.setdefault(paper.where, []).append(place)
    if places:
        most, *others = sorted(places, key=lambda where: -len(places[where]))
        yield "; ".join(
            [
                f"the paper's numbers: {most}",
                *(f"of {_names(places[where])}: {where}" for where in others),
            ]
        )


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
    both = (
        table.cells[place] for place in (each.place, table.compared_with[each.place, each.over])
    )
    verdict = "evidence" if each.p_holm < LEVEL else "no evidence"
    g = "" if found.g is None else fixed(found.g)
    cells: Sequence[tuple[str, float | None]] = (
        (OVER[each.over], None),
        (fixed(found.mean) + _mark(*both), found.mean),
        (f"{fixed(found.low)} to {fixed(found.high)}", found.low),
        (_p(found.p), found.p),
        (_p(each.p_holm), each.p_holm),
        (g, found.g),
        (f"{each.n}, {each.n_other}", float(each.n)),
        (verdict, None),
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
