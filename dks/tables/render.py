"""A table as text: one formatter of cells, one renderer a format."""

from __future__ import annotations

import csv
import io

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dks.sweeps.ledger import State
from dks.tables.model import Table, TableCell

DIGITS = 2  # after the decimal point, as in the paper
FEW = 5  # the paper's number of runs; fewer are said


def cell_text(cell: TableCell, table: Table) -> str:
    """`mean(std)`, the gain where there is a baseline, and what is missing: never a mean that hides a failed run."""
    parts = []
    if cell.mean is not None:
        parts.append(f"{cell.mean:.{DIGITS}f}" + (f"({cell.sd:.{DIGITS}f})" if cell.sd is not None else ""))
        if cell.gain is not None:
            parts.append(f"[{cell.gain:+.{DIGITS}f}]")
        if cell.n < cell.wanted:
            parts.append(f"n={cell.n} of {cell.wanted},")
        elif cell.n < FEW and len(table.runs) > 1:
            parts.append(f"n={cell.n}")
    if cell.states:
        one_run = cell.wanted == 1
        parts.append(", ".join(state if one_run else f"{count} {state}" for state, count in cell.states.items()))
    return " ".join(parts)


def caption(table: Table) -> str:
    """What the numbers are."""
    runs = sorted(table.runs)
    few = ""
    if len(runs) == 1 and 0 < runs[0] < FEW:
        few = f", n = {runs[0]}" + (" (a single seed, no standard deviation)" if runs[0] == 1 else " seeds")
    what = "mean(std) over seeds" if any(cell.wanted > 1 for cell in table.cells.values()) else "one run a cell"
    text = f"{table.title}: top-1 test error in %, last epoch, {what}{few}"
    return text + ("; [gain over the baseline]" if table.has_gains else "")


def header(table: Table) -> list[str]:
    """The head of the table: the row axes, then one column each."""
    columns = [f"{table.column_axis}={column}" for column in table.columns] if table.column_axis else ["error (%)"]
    return [*table.row_axes, *columns]


def _rows(table: Table) -> list[tuple[tuple[str, ...], list[TableCell | None]]]:
    return [(row, [table.cells.get((row, column)) for column in table.columns]) for row in table.rows]


def terminal(table: Table, console: Console) -> None:
    """Print it; the best cell is bold, and starred where there is no bold."""
    plain = not console.is_terminal or console.no_color
    console.print(Text(caption(table)), soft_wrap=True)
    view = RichTable()
    for number, name in enumerate(header(table)):
        view.add_column(Text(name), justify="left" if number < len(table.row_axes) else "right", no_wrap=True)
    for row, cells in _rows(table):
        view.add_row(*map(Text, row), *(_terminal_cell(cell, table, plain) for cell in cells))
    console.print(view)


def _terminal_cell(cell: TableCell | None, table: Table, plain: bool) -> Text:
    if cell is None:
        return Text("")
    text = cell_text(cell, table)
    if cell.is_best:
        return Text(f"{text}*" if plain else text, style="bold")
    failed = State.failed.value in cell.states
    return Text(text, style="red" if failed else "yellow" if cell.states else "")


def markdown(table: Table) -> str:
    """GitHub's Markdown; the best cell is bold."""
    names = [_markdown_escape(name) for name in header(table)]
    left = len(table.row_axes)
    lines = [f"{_markdown_escape(caption(table))}", "", f"| {' | '.join(names)} |"]
    lines.append(f"|{'|'.join(':---' if number < left else '---:' for number in range(len(names)))}|")
    for row, cells in _rows(table):
        texts = [_markdown_escape(cell_text(cell, table)) if cell else "" for cell in cells]
        texts = [f"**{text}**" if cell and cell.is_best else text for text, cell in zip(texts, cells, strict=True)]
        lines.append(f"| {' | '.join([*map(_markdown_escape, row), *texts])} |")
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A `table` environment for the booktabs package; the best cell is bold."""
    left = len(table.row_axes)
    names = header(table)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_escape(caption(table))}}}",
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(names) - left)}}}",
        r"\toprule",
        " & ".join(map(_latex_escape, names)) + r" \\",
        r"\midrule",
    ]
    for row, cells in _rows(table):
        texts = [_latex_escape(cell_text(cell, table)) if cell else "" for cell in cells]
        texts = [rf"\textbf{{{text}}}" if cell and cell.is_best else text for text, cell in zip(texts, cells, strict=True)]
        lines.append(" & ".join([*map(_latex_escape, row), *texts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """One line a configuration, with full precision and the run ids."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    axes = [*table.row_axes, *([table.column_axis] if table.column_axis else [])]
    writer.writerow([*axes, "mean", "sd", "n", "wanted", "gain", "best_epoch_mean", "not_done", "cell_ids"])
    for (row, column), cell in table.cells.items():
        numbers = [cell.mean, cell.sd, cell.n, cell.wanted, cell.gain, cell.best_epoch_mean]
        states = " ".join(f"{state}:{count}" for state, count in cell.states.items())
        labels = [*row, *([column] if table.column_axis else [])]
        writer.writerow(
            [*labels, *("" if value is None else repr(value) for value in numbers), states, " ".join(cell.cell_ids)]
        )
    return out.getvalue()


def _markdown_escape(text: str) -> str:
    for mark in "\\`*_<>|":
        text = text.replace(mark, f"\\{mark}")
    return text


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # A bracket after "\\" would be taken for its optional argument.
    "[": "{[}",
    "]": "{]}",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}


def _latex_escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
