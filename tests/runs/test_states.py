"""The state of a cell in every situation, against a table written by hand."""

from __future__ import annotations

import itertools

import pytest

from dks.runs.record import Record, Status
from dks.runs.scheduler import Job, Stage
from dks.runs.states import Signs, State, state_of, to_launch

JOBS = {
    "-": None,
    "pending": Job(Stage.pending, "PENDING"),
    "running": Job(Stage.running, "RUNNING"),
    "ended": Job(Stage.ended, "FAILED"),
    "cancelled": Job(Stage.ended, "CANCELLED by 1000"),
    "unknown": Job(Stage.unknown),
}
FLAGS = ("claimed", "fresh", "here", "launched", "submitted")
# A row: record, job, flags that are set, flags that are not -> state. The first row that fits
# counts; * fits everything. A job is known only of what was submitted.
TABLE = """
    none     *          claimed          -               queued
    none     *          -                -               missing
    done     *          -                -               done
    *        *          claimed          -               running
    *        pending    -                -               queued
    queued   *          launched         -               queued
    queued   running    -                -               queued
    queued   -          submitted        -               queued
    queued   -          -                -               missing
    queued   unknown    -                -               lost
    queued   cancelled  -                -               killed
    queued   ended      -                -               failed
    running  cancelled  -                -               killed
    running  ended      -                -               failed
    running  *          here             submitted       killed
    running  *          fresh            here            running
    running  *          -                -               lost
    failed   *          -                -               failed
    killed   *          -                -               killed
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


def expected(record: str, job: str, flags: set[str]) -> tuple[int, str]:
    """The number of the row that counts, and its state."""
    for number, (its, its_job, set_, unset, state) in enumerate(ROWS):
        if (
            its in ("*", record)
            and its_job in ("*", job)
            and (set_ == "-" or set_ in flags)
            and (unset == "-" or unset not in flags)
        ):
            return number, state
    raise AssertionError((record, job, flags))


def test_every_situation_has_the_state_of_the_table() -> None:
    used = set()
    for status, job in itertools.product([None, *Status], JOBS):
        record = status and Record("c", "f", 0, "dks", {}, "", [], status=status)
        for values in itertools.product([False, True], repeat=len(FLAGS)):
            flags = dict(zip(FLAGS, values, strict=True))
            if JOBS[job] is not None and not flags["submitted"]:
                continue
            row, state = expected(
                status.value if status else "none", job, {name for name in FLAGS if flags[name]}
            )
            used.add(row)
            found = state_of(Signs(record, job=JOBS[job], **flags))
            assert found.value == state, (status, job, flags)
    assert used == set(range(len(ROWS))), "a row that never counts"


@pytest.mark.parametrize(
    ("state", "launched"),
    [
        ("missing", True),
        ("queued", False),
        ("running", False),
        ("done", False),
        ("failed", True),
        ("killed", True),
        ("lost", True),
    ],
)
def test_what_is_launched_when_somebody_asks_for_it(state: str, launched: bool) -> None:
    assert to_launch(State(state)) is launched
