"""Runs of an earlier version of a cell's identity.

What asks for a cell by its id of today does not find them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dks.config.identity import SCHEMA_VERSION
from dks.config.names import is_cell_id
from dks.config.reading import read_bytes
from dks.runs.record import Record, RunFolder

HOW = "dks runs migrate gives them today's where nothing differs"
# A key of the record itself, as it is written: one space, and a quote that a text inside would have
#     masked.
_VERSION = re.compile(rb'^ "schema_version": (\d+)', re.MULTILINE)


def earlier_runs(runs_dir: str, but: Iterable[str] = ()) -> list[RunFolder]:
    """Those in `runs_dir`, by their names; the cells `but` are not looked at.

    No record is parsed.
    """
    names = {path.name for path in Path(runs_dir).glob("*") if is_cell_id(path.name)} - set(but)
    return [
        folder for name in sorted(names) if _is_earlier(folder := RunFolder(Path(runs_dir) / name))
    ]


def of_folder(count: int, runs_dir: str) -> str:
    """A line of so many runs in a folder, for whoever asks for cells of today."""
    runs = "1 run has the id" if count == 1 else f"{count} runs have the ids"
    return f"in {runs_dir} {runs} of an earlier version, which are none of these cells; {HOW}"


def of_sweep(count: int) -> str | None:
    """A line of so many runs of a sweep that was begun by an earlier version.

    None where there are none.
    """
    runs = "1 run has the id" if count == 1 else f"{count} runs have the ids"
    return f"{runs} of an earlier version; {HOW}" if count else None


def is_earlier(record: Record | None) -> bool:
    """Is it of an earlier version?"""
    return record is not None and record.schema_version < SCHEMA_VERSION


def _is_earlier(folder: RunFolder) -> bool:
    try:
        found = _VERSION.search(read_bytes(folder.record_file))
    except OSError:
        return False
    return found is not None and int(found[1]) < SCHEMA_VERSION
