"""A sheet in every format: one renderer each, which lays out and escapes, and changes no digit."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, fields
from html import escape as html_escape
from itertools import accumulate, pairwise, takewhile
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dks.config.errors import one_line, visible
from dks.machine.code import short
from dks.results.computed import notes
from dks.results.model import Comparison, Number, Place, Table
from dks.results.shape import Over
from dks.results.sheet import Heading, Sheet, SheetCell, SheetRow, main, sheets
from dks.sweeps.paper import PaperNumber

MANY = 60  # tests that a terminal still shows


def terminal(table: Table, console: Console) -> None:
    """Print it; the best cell is bold, and starred where there is no bold."""
    plain = console.color_system is None or console.no_color  # a dumb terminal has no bold, either
    many = len(table.tested) > MANY
    for sheet in [main(table)] if many else sheets(table):
        console.print(Text(visible(sheet.caption)), soft_wrap=True)
        view = RichTable(box=box.HEAVY_HEAD)
        for name in sheet.label_heads:
            view.add_column(Text(visible(name)), no_wrap=True)
        for name in _heads(sheet, "\n", repeated=False):
            view.add_column(Text(visible(name)), justify="right", no_wrap=True)
        for row, labels, begins in _grouped(sheet):
            if begins and len(sheet.label_heads) > 1:
                view.add_section()
            view.add_row(
                *(Text(visible(label)) for label in labels),
                *(_styled(cell, plain) for cell in row.cells),
            )
        console.print(view)
        for note in sheet.notes:
            console.print(Text(visible(note)), soft_wrap=True)
    if many:
        console.print(
            Text(f"{len(table.tested)} gains can be tested; every other format lists the tests"),
            soft_wrap=True,
        )


def _styled(cell: SheetCell, plain: bool) -> Text:
    if cell.bold:
        return Text(f"{cell.text}*" if plain else cell.text, style="bold")
    return Text(cell.text, style={"failed": "red", "open": "yellow"}.get(cell.tone, ""))


def _heads(sheet: Sheet, between: str, repeated: bool) -> list[str]:
    """One text a column: the lines of the head, one under the other.

    A head over several columns at each, or at the first.
    """
    lines = [
        [text for each in line for text in [each.text, *[each.text * repeated] * (each.span - 1)]]
        for line in sheet.head
    ]
    return [
        between.join(text for text in column if text or not repeated)
        for column in zip(*lines, strict=True)
    ]


def _grouped(sheet: Sheet) -> Iterator[tuple[SheetRow, tuple[str, ...], bool]]:
    """Each row, its labels without those that it shares with the row above, and whether its first
    label is a new one.
    """
    above: tuple[str, ...] | None = None
    for row in sheet.rows:
        pairs = zip(row.labels[:-1], above or (), strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        begins = above is not None and row.labels[:1] != above[:1]
        yield row, ("",) * shared + row.labels[shared:], begins
        above = row.labels


def markdown(table: Table) -> str:
    """GitHub's Markdown; the best cell is bold."""
    return "\n".join(_markdown(sheet) for sheet in sheets(table))


def _markdown(sheet: Sheet) -> str:
    names = [
        _markdown_escape(name) for name in (*sheet.label_heads, *_heads(sheet, " ", repeated=True))
    ]
    left = len(sheet.label_heads)
    lines = [_markdown_line(sheet.caption), "", f"| {' | '.join(names)} |"]
    lines.append(
        f"|{'|'.join(':---' if number < left else '---:' for number in range(len(names)))}|"
    )
    for row in sheet.rows:
        texts = [_markdown_escape(cell.text) for cell in row.cells]
        texts = [
            f"**{text}**" if cell.bold else text
            for text, cell in zip(texts, row.cells, strict=True)
        ]
        lines.append(f"| {' | '.join([*map(_markdown_escape, row.labels), *texts])} |")
    for note in sheet.notes:
        lines += ["", _markdown_line(note)]
    return "\n".join(lines) + "\n"


def _markdown_escape(text: str) -> str:
    """As text that is nothing else, such as a link or an image, and all of it in one line."""
    text = one_line(text, len(text) * 10)
    for mark in "\\`*_<>|$~[]&":
        text = text.replace(mark, f"\\{mark}")
    return text


def _markdown_line(text: str) -> str:
    """As a line of its own that is no heading and no item of a list."""
    return re.sub(r"^(\d*)([#+=.)-])", r"\1\\\2", _markdown_escape(text))


def latex(table: Table) -> str:
    """`table` environments for the booktabs package; the best cell is bold."""
    return "\n".join(_latex(sheet) for sheet in sheets(table))


def _latex(sheet: Sheet) -> str:
    left, width = len(sheet.label_heads), len(sheet.head[-1])
    lines = [
        r"\begin{table}",
        r"\centering",
        *([r"\small\setlength{\tabcolsep}{3pt}"] if left + width > WIDE else []),
        rf"\caption{{{_latex_escape(sheet.caption)}}}\smallskip",
        rf"\begin{{tabular}}{{{'l' * left}{'r' * width}}}",
        r"\toprule",
    ]
    for number, line in enumerate(sheet.head):
        last = number == len(sheet.head) - 1
        texts = [_latex_heading(heading) for heading in line]
        lines.append(
            " & ".join([*map(_latex_escape, sheet.label_heads if last else ("",) * left), *texts])
            + r" \\"
        )
        if not last:
            lines.append(" ".join(_rules(line, left + 1)))
    lines.append(r"\midrule")
    for row, labels, begins in _grouped(sheet):
        if begins and left > 1:
            lines.append(r"\addlinespace")
        texts = [
            rf"\textbf{{{text}}}" if cell.bold else text
            for cell in row.cells
            for text in [_latex_escape(cell.text)]
        ]
        lines.append(" & ".join([*map(_latex_escape, labels), *texts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for note in sheet.notes:
        lines.append(rf"\par\smallskip {{\footnotesize {_latex_escape(note)}}}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_heading(heading: Heading) -> str:
    text = _latex_escape(heading.text)
    return text if heading.span == 1 else rf"\multicolumn{{{heading.span}}}{{c}}{{{text}}}"


def _rules(line: tuple[Heading, ...], first: int) -> Iterator[str]:
    ends = accumulate((heading.span for heading in line), initial=first)
    return (rf"\cmidrule(lr){{{begin}-{end - 1}}}" for begin, end in pairwise(ends))


WIDE = 8  # columns that fit on a page as they are

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"\dag{}",
    # A bracket after "\\" would be taken for its optional argument.
    "[": "{[}",
    "]": "{]}",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}


def _latex_escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text, len(text) * 10))


def html(table: Table) -> str:
    """A fragment: a `figure` with a `table` in it for every sheet; the best cell is `strong`."""
    return "".join(_html(sheet) for sheet in sheets(table))


def _html(sheet: Sheet) -> str:
    lines = [
        '<figure class="dks-table">',
        f"<figcaption>{html_escape(sheet.caption)}</figcaption>",
        "<table>",
        "<thead>",
    ]
    for number, line in enumerate(sheet.head):
        heads = [
            f'<th rowspan="{len(sheet.head)}" scope="col">{html_escape(name)}</th>'
            for name in sheet.label_heads
            if not number
        ]
        heads += [
            f'<th colspan="{heading.span}" scope="colgroup">{html_escape(heading.text)}</th>'
            if heading.span > 1
            else f'<th scope="col">{html_escape(heading.text)}</th>'
            for heading in line
        ]
        lines.append(f"<tr>{''.join(heads)}</tr>")
    lines += ["</thead>", "<tbody>"]
    for row in sheet.rows:
        heads = [f'<th scope="row">{html_escape(label)}</th>' for label in row.labels]
        lines.append(f"<tr>{''.join([*heads, *map(_html_cell, row.cells)])}</tr>")
    lines += [
        "</tbody>",
        "</table>",
        *(f"<p>{html_escape(note)}</p>" for note in sheet.notes),
        "</figure>",
    ]
    return "\n".join(lines) + "\n"


def _html_cell(cell: SheetCell) -> str:
    text, tone = html_escape(cell.text), f' class="{cell.tone}"' if cell.tone else ""
    return f"<td{tone}>{f'<strong>{text}</strong>' if cell.bold else text}</td>"


def comma_separated(table: Table) -> str:
    """One line a configuration and metric, with full precision, the test against what it is
    compared with, and the runs.
    """
    numbers = [number for cell in table.cells.values() for number in cell.numbers]
    overs = [over for over in Over if any(over in number.gains for number in numbers)]
    tests = {(each.place, each.over): each for each in table.comparisons}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        map(
            _written,
            [
                *table.row_axes,
                *table.column_axes,
                *["metric", "epoch", "mean", "sd", "n", "wanted", "low", "high"],
                *(
                    f"{what}_over_{over.value}"
                    for over in overs
                    for what in ("gain", "gain_low", "gain_high", "p", "p_holm", "g")
                ),
                *(f"paper_{field.name}" for field in fields(PaperNumber)),
                *["difference", "not_done", "left_out", "differs", "computed", "codes"],
                *["config_id", "cell_ids", "same_as"],
            ],
        )
    )
    for place, cell in table.cells.items():
        own = table.same.get(place, place)
        for number in cell.numbers:
            values: list[object] = [*place[0], *place[1], number.metric.value, _epoch(table)]
            values += [number.mean, number.sd, cell.n, cell.wanted]
            values += number.interval or (None, None)
            for over in overs:
                test = tests.get((own, over)) if number is cell.numbers[0] else None
                values += [number.gains.get(over), *_tested(test).values()]
            values += astuple(number.paper) if number.paper else [None] * len(fields(PaperNumber))
            values += [number.difference, _counts(cell.states), _counts(cell.left_out)]
            values += ["; ".join(cell.differs), cell.computed]
            values.append(_counts({short(code): count for code, count in cell.codes.items()}))
            first = " ".join((*own[0], *own[1])) if place in table.same else ""
            values += [cell.config_id, " ".join(cell.cell_ids), first]
            writer.writerow(map(_written, values))
    return out.getvalue()


def _epoch(table: Table) -> str:
    return f"{table.epoch.value}{table.whose}"


def _tested(test: Comparison | None) -> dict[str, float | None]:
    """What a test found; None where there is none."""
    names = ("gain_low", "gain_high", "p", "p_holm", "g")
    if test is None:
        return dict.fromkeys(names)
    found = test.difference
    return dict(zip(names, (found.low, found.high, found.p, test.p_holm, found.g), strict=True))


_FORMULA = tuple("=+-@\n")  # a text that begins so
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|-inf|nan")


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name.replace(' ', '_')}:{count}" for name, count in counts.items())


def _written(value: object) -> str:
    """A text that a spreadsheet would take for a formula has an apostrophe before it."""
    text = "" if value is None else repr(value) if isinstance(value, float) else visible(str(value))
    return f"'{text}" if text[:1] in _FORMULA and not _NUMBER.fullmatch(text) else text


def as_json(tables: Sequence[Table]) -> str:
    """A list of tables for programs, with full precision; docs/tables.md has its shape."""
    return json.dumps([_described(table) for table in tables], indent=1, allow_nan=False) + "\n"


def _described(table: Table) -> dict[str, Any]:
    tests: dict[Place, dict[str, Any]] = {}
    for each in table.comparisons:
        found = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in _tested(each).items()
        }
        found["p_holm"] = found.pop("p_holm")  # the last
        tests.setdefault(each.place, {})[each.over.value] = found

    def named(place: Place) -> dict[str, dict[str, str]]:
        return {
            "row": dict(zip(table.row_axes, place[0], strict=True)),
            "column": dict(zip(table.column_axes, place[1], strict=True)),
        }

    cells = [
        {
            **named(place),
            "aside": place in table.aside,
            "best": cell.is_best,
            "n": cell.n,
            "wanted": cell.wanted,
            "not_done": cell.states,
            "left_out": cell.left_out,
            "metrics": {number.metric.name: _numbers(number) for number in cell.numbers},
            "tests": tests.get(table.same.get(place, place), {}),
            "differs": cell.differs,
            "computed": cell.computed,
            "codes": cell.codes,
            "method": cell.method,
            "config_id": cell.config_id,
            "cell_ids": cell.cell_ids,
            "same_as": named(table.same[place]) if place in table.same else None,
        }
        for place, cell in table.cells.items()
    ]
    return {
        "name": table.name,
        "title": table.title,
        "epoch": _epoch(table),
        "rows": table.row_axes,
        "columns": table.column_axes,
        "states": table.states,
        "decided": table.decided,
        "undecided": table.undecided,
        "computed": list(notes(table)),
        "changed": table.changed,
        "earlier": table.earlier,
        "cells": cells,
    }


def _numbers(number: Number) -> dict[str, Any]:
    low, high = number.interval or (None, None)
    return {
        "values": number.values,
        "mean": number.mean,
        "sd": number.sd,
        "low": low,
        "high": high,
        "gains": {over.value: gain for over, gain in number.gains.items()},
        "paper": None if number.paper is None else asdict(number.paper),
        "difference": number.difference,
    }


TEXT_FORMATS = {"md": markdown, "latex": latex, "html": html, "csv": comma_separated}
