"""`results/<sweep>/`: the table of a sweep in every format, with where its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from dks.results import render
from dks.results.model import Table
from dks.results.provenance import provenance
from dks.results.study import Study
from dks.runs.record import write_atomically
from dks.runs.terminal import console, say
from dks.sweeps import manifest
from dks.sweeps.manifest import Manifest

# columns: a terminal folds lines that are too long for it, which a number with its end cut off is
#     worse than
WIDEST = 1000
FILES = {"table.md": "md", "table.tex": "latex", "table.csv": "csv", "table.html": "html"}


def write_results(results_dir: str, study: Study) -> list[Table]:
    """Write the table of a sweep that was begun in `results_dir`, or those of all its parts, in
    every format, and `provenance.json` beside it; returns the tables. Where another sweep has been
    begun under its name meanwhile, a line says so and the files are left to that one.
    """
    tables = study.tables()
    for part, table in zip(study.parts, tables, strict=True):
        folder = Path(results_dir) / table.name
        if not manifest.is_current(part, results_dir):
            say(
                f"[yellow]not written[/]: {escape(str(folder))} is another sweep's by now, begun "
                f"under the same name",
                urgent=True,
            )
            continue
        for file, form in FILES.items():
            write_atomically(folder / file, render.TEXT_FORMATS[form](table))
        write_atomically(
            folder / "provenance.json", json.dumps(provenance(study, table), indent=1) + "\n"
        )
    return tables


def present(results_dir: str, sweep: Manifest) -> None:
    """Write the table of a sweep that was begun in `results_dir`, as `write_results` does, print
    it, and say where it is.
    """
    for table in write_results(results_dir, Study.begun(results_dir, sweep)):
        show(table)
    if manifest.is_current(sweep, results_dir):
        say(escape(f"written to {Path(results_dir) / sweep.name}"))


def write(study: Study, tables: Sequence[Table], form: str, path: Path) -> list[Path]:
    """Write these tables in one of the formats of `dks.results.render.TEXT_FORMATS` to a file, and
    beside it as JSON where each number comes from.

    Returns:
        The two files.
    """
    between = "" if form == "csv" else "\n"
    text = between.join(render.TEXT_FORMATS[form](table) for table in tables)
    sources = path.with_name(f"{path.name}.json")
    write_atomically(path, text)
    write_atomically(
        sources, json.dumps([provenance(study, table) for table in tables], indent=1) + "\n"
    )
    return [path, sources]


def show(table: Table) -> None:
    """Print a table on standard output, whole even where the terminal is narrow or none."""
    render.terminal(table, console(width=max(console().width, WIDEST)))
