"""Run folders as a process leaves them, written by hand: nothing is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dks.runs.best import best_of
from dks.runs.journal import now
from dks.runs.record import Attempt, RunFolder, Status
from tests.conftest import queued

ERROR = "test/top1_error"
Epochs = Sequence[dict[str, float]]
TWO: Epochs = (
    {ERROR: 50.0, "test/loss": 1.5, "train/loss": 2.0},
    {ERROR: 40.0, "test/loss": 1.25, "train/loss": 1.0},
)


def journaled(
    folder: Path, *overrides: str, epochs: Epochs = TWO, status: Status = Status.done
) -> RunFolder:
    """A run in `folder/runs` with these metrics, epoch by epoch."""
    return attempted(queued(folder, *overrides), epochs, status)


def attempted(run: RunFolder, epochs: Epochs = TWO, status: Status = Status.done) -> RunFolder:
    """One more attempt at a run, of 1.5 s, which measures these epochs after those that are there.

    With `Status.running` it has not ended.
    """
    record = run.read_record()
    assert record is not None
    attempt = Attempt(now(), os.uname().nodename, os.getpid(), "cpu", 1)
    record.attempts.append(attempt)
    for epoch, metrics in enumerate(epochs, len(run.journal.read()) + 1):
        run.journal.append(epoch, epoch, metrics)
    record.status, entries = status, run.journal.read()
    if status is not Status.running:
        attempt.end(status.value, 1.5)
        record.cost = {"seconds": 1.5 * len(record.attempts), "training_flops": 1e6}
    if status is Status.done:
        record.final = {"epoch": entries[-1].epoch, **entries[-1].metrics}
        record.best = best_of(entries)
    run.write_record(record)
    return run
