"""The journal and the record: what survives a crash, and what is refused."""

from __future__ import annotations

import json
import math
import os
import socket
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dks.config.errors import RequestError
from dks.runs import heartbeat
from dks.runs.journal import Entry, Journal
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.runs.states import State, look_up
from tests.conftest import queued


def record(status: Status = Status.done) -> Record:
    return Record("abc", "def", 0, "dks", {"aux": None}, "aux=ours", ["aux=ours"], status=status)


def test_a_line_has_the_format_of_the_contract(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append(3, 69, {"test/top1_error": 4.17})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert set(line) == {"epoch", "step", "time", "metrics"}
    assert (line["epoch"], line["step"], line["metrics"]) == (3, 69, {"test/top1_error": 4.17})
    assert line["time"].endswith("+00:00")


@given(st.floats())
def test_every_number_survives_as_strict_json(value: float) -> None:
    line = Entry(1, 1, "now", {"m": value}).to_json()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = Entry.from_json(line).metrics["m"]
    assert back == value or (math.isnan(back) and math.isnan(value))


@given(st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_a_journal_cut_anywhere_is_read_up_to_its_last_whole_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    journal = Journal(path)
    for epoch in range(1, 4):
        journal.append(epoch, epoch, {"m": 1.0})
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    kept = journal.read()
    assert [entry.epoch for entry in kept] == list(range(1, content.count(b"\n") + 1))
    # A run that goes on cuts the rest off, and what it appends can be read.
    journal.keep_until(len(kept))
    journal.append(len(kept) + 1, 0, {"m": 2.0})
    assert [entry.epoch for entry in journal.read()] == list(range(1, len(kept) + 2))


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b'{"epoch": 2}\n',
        b"null\n",
        b'{"epoch":2,"step":1,"time":"","metrics":[]}\n',
    ],
)
def test_nothing_behind_a_damaged_line_is_believed(tmp_path: Path, garbage: bytes) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append(1, 1, {"m": 1.0})
    with journal.path.open("ab") as file:
        file.write(garbage)
    journal.append(3, 3, {"m": 3.0})
    assert [entry.epoch for entry in journal.read()] == [1]


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "cell")
    assert folder.read_record() is None
    folder.write_record(record())
    assert folder.read_record() == record()
    assert not list(folder.path.glob(".record*")), "no draft is left behind"


@pytest.mark.parametrize(("key", "value"), [("schema_version", 999), ("no_such_field", 1)])
def test_a_newer_record_is_refused_with_its_name(tmp_path: Path, key: str, value: int) -> None:
    folder = RunFolder(tmp_path / "cell")
    folder.write_record(record())
    newer = {**json.loads(folder.record_file.read_text()), key: value}
    folder.record_file.write_text(json.dumps(newer))
    for read in (folder.read_record, folder.mend_record):
        with pytest.raises(
            RequestError, match=r"record\.json (is of version 999|was written by a newer version)"
        ):
            read()
    assert json.loads(folder.record_file.read_text()) == newer


@pytest.mark.parametrize("content", ["a: [", "seed: many", "no_such_key: 1"])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path / "cell")
    folder.path.mkdir()
    folder.config_file.write_text(content)
    with pytest.raises(RequestError) as refused:
        folder.read_config()
    assert "\n" not in str(refused.value)


def test_a_run_whose_process_died_counts_as_killed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "abc")
    folder.write_record(record(Status.running))
    assert look_up(str(tmp_path), "abc")[0] is State.killed
    assert folder.claim()
    assert look_up(str(tmp_path), "abc")[0] is State.running
    folder.release()


STARTED = "2026-01-02T03:04:05.000+00:00"


def dead(path: Path, *beats: float) -> RunFolder:
    """A cell whose process died; `beats`.

    Seconds after its start at which its heart beat, the last one counts.
    """
    folder = RunFolder(path / "abc")
    given = record(Status.running)
    ended = Attempt(STARTED, "here", 1, "cpu", 1, ended=STARTED, status="killed", seconds=100.0)
    given.attempts = [ended, Attempt(STARTED, "here", 1, "cpu", 1)]
    folder.write_record(given)
    for beat in beats:
        (folder.path / heartbeat.FILE).write_text("{}")
        at = datetime.fromisoformat(STARTED).timestamp() + beat
        os.utime(folder.path / heartbeat.FILE, (at, at))
    return folder


# Beside what nobody saw: a run that died before its heart beat at all, and one on a machine whose
#     clock is behind.
@pytest.mark.parametrize(("beats", "seconds"), [([0.5, 60.25], 60.25), ([], 0.0), ([-5.0], 0.0)])
def test_a_run_that_died_unseen_ended_when_its_heart_last_beat(
    tmp_path: Path, beats: list[float], seconds: float
) -> None:
    folder = dead(tmp_path, *beats)
    error = {"type": "JobEnded", "message": "..."}
    assert folder.close(Status.failed, error, {Status.running})
    found = folder.read_record()
    assert found is not None
    first, last = found.attempts
    assert (found.status, found.error, last.status, last.seconds) == (
        Status.failed,
        error,
        "failed",
        seconds,
    )
    assert last.ended is not None
    lived = datetime.fromisoformat(last.ended) - datetime.fromisoformat(STARTED)
    assert lived.total_seconds() == seconds
    assert (first.status, first.seconds) == ("killed", 100.0)
    assert found.cost["seconds"] == 100 + seconds
    assert not folder.is_claimed()


def test_a_record_that_says_something_else_by_now_stays_as_it_is(tmp_path: Path) -> None:
    folder = dead(tmp_path)
    before = folder.record_file.read_text()
    assert not folder.close(Status.killed, {"type": "Cancelled", "message": "..."}, {Status.queued})
    other = RunFolder(folder.path)
    assert other.claim()
    assert not folder.close(
        Status.killed, {"type": "Cancelled", "message": "..."}, {Status.running}
    )
    other.release()
    assert folder.record_file.read_text() == before


@pytest.mark.parametrize("planned", [True, False])
def test_a_run_that_goes_on_says_how_the_attempt_before_ended(
    tmp_path: Path, planned: bool
) -> None:
    """Whether the sweep is asked for again, or SLURM alone requeues the job of a node that was
    lost.
    """
    from dks.training.run import Outcome, run_cell

    folder = queued(tmp_path, "recipe.epochs=1")
    begun = folder.read_record()
    assert begun is not None
    begun.status = Status.running
    begun.attempts = [Attempt(STARTED, socket.gethostname(), 1, "cpu", 1)]
    folder.write_record(begun)
    beat = datetime.fromisoformat(STARTED).timestamp() + 60
    (folder.path / heartbeat.FILE).write_text("{}")
    os.utime(folder.path / heartbeat.FILE, (beat, beat))
    if planned:
        again = queued(tmp_path, "recipe.epochs=1").read_record()
        assert again is not None
        assert (again.status, again.attempts[0].status, again.cost["seconds"]) == (
            Status.queued,
            "killed",
            60.0,
        )
    assert run_cell(folder.path) is Outcome.done
    found = folder.read_record()
    assert found is not None
    assert [attempt.status for attempt in found.attempts] == ["killed", "done"]
    assert (found.attempts[0].ended, found.attempts[0].seconds) == (
        "2026-01-02T03:05:05.000+00:00",
        60.0,
    )
    assert found.cost["seconds"] > 60
