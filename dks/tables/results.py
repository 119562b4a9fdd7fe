"""`results/<sweep>/`: the table of a sweep in every format, and where each of its numbers comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from dks.sweeps import manifest
from dks.sweeps.manifest import Manifest
from dks.tables import render
from dks.tables.frame import sweep_frame
from dks.tables.model import Table, build
from dks.tracking.journal import now
from dks.tracking.record import write_atomically

METRIC = "test/top1_error"
TEXT_FORMATS = {"md": render.markdown, "latex": render.latex, "csv": render.comma_separated}


def sweep_tables(results_dir: str, name: str) -> list[Table]:
    """The tables of a sweep that was begun in `results_dir`, from whatever runs exist now: one, or those of all its parts.

    Raises:
        RequestError: there is no such sweep.
    """
    whole = manifest.read(results_dir, name)
    parts = [manifest.read(results_dir, part) for part in whole.parts] or [whole]
    return [_table(part)[0] for part in parts]


def _table(sweep: Manifest) -> tuple[Table, pd.DataFrame]:
    """The table of a sweep, and the runs behind it."""
    frame = sweep_frame(sweep, METRIC)
    return build(frame, sweep.axes, sweep.title, METRIC, sweep.rows, sweep.columns), frame


def write_results(results_dir: str, name: str) -> list[Table]:
    """Write `table.md`, `table.tex`, `table.csv` and `provenance.json` (the runs behind each number) of a sweep, or of all its
    parts; returns the tables.
    """
    whole = manifest.read(results_dir, name)
    if whole.parts:
        return [table for part in whole.parts for table in write_results(results_dir, part)]
    table, frame = _table(whole)
    folder = Path(results_dir) / whole.name
    for file, form in (("table.md", "md"), ("table.tex", "latex"), ("table.csv", "csv")):
        write_atomically(folder / file, TEXT_FORMATS[form](table))
    write_atomically(folder / "provenance.json", json.dumps(_provenance(whole.name, table, frame), indent=1) + "\n")
    return [table]


def show(table: Table) -> None:
    """Print a table on standard output, whole even where the terminal is narrow or none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 200))
    render.terminal(table, console)


def _provenance(sweep: str, table: Table, frame: pd.DataFrame) -> dict[str, Any]:
    runs = frame.drop_duplicates("cell_id").set_index("cell_id")
    columns = ["seed", "state", "value", "best", "git_commit", "mlflow_run_id", "folder"]
    return {
        "sweep": sweep,
        "metric": table.metric,
        "written": now(),
        "cells": [
            {
                **dict(zip(table.row_axes, row, strict=True)),
                **({table.column_axis: column} if table.column_axis else {}),
                "mean": cell.mean,
                "sd": cell.sd,
                "n": cell.n,
                "runs": [
                    {"cell_id": cell_id, **{key: _json_value(runs.at[cell_id, key]) for key in columns}}
                    for cell_id in cell.cell_ids
                ],
            }
            for (row, column), cell in table.cells.items()
        ],
    }


def _json_value(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value  # NaN: there is no value yet
