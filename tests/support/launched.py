"""Cells of one launch that wait for a launcher, and what became of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dks.runs.launches import LaunchFolder
from dks.runs.record import Record, RunFolder
from dks.runs.terminal import Display
from tests.conftest import queued

# A run that fails in its first epoch, and one that does not end by itself.
EXPLODES = ("recipe.lr=1e30", "data.train_images=320")
LONG = ("recipe.epochs=100000",)


def launched(
    folder: Path, *cells: Sequence[str], retries: int = 0, max_failures: int | None = None
) -> list[RunFolder]:
    """Queued cells of one launch, each given by its overrides."""
    ready = [queued(folder, *overrides) for overrides in cells]
    results, paths = str(folder / "results"), [each.path for each in ready]
    launch = LaunchFolder.create(results, "s", "local", paths, None, retries, max_failures)
    for each in ready:
        record = record_of(each)
        record.launch = str(launch.path)
        each.write_record(record)
    return ready


def record_of(folder: RunFolder) -> Record:
    record = folder.read_record()
    assert record is not None
    return record


def failures(folder: RunFolder) -> set[str]:
    """The cells of its launch that failed for good."""
    launch = record_of(folder).launch
    assert launch is not None
    return {path.name for path in Path(launch, "failed").glob("*")}


def log_display(runs: int) -> Display:
    return Display(runs, Console(file=io.StringIO(), highlight=False, width=200))


def said(display: Display) -> str:
    assert isinstance(display.console.file, io.StringIO)
    return display.console.file.getvalue()
