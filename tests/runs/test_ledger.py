"""The rules of states: the run's record, its lock and heartbeat, and the scheduler's word."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from dks.config.errors import RequestError
from dks.runs import heartbeat
from dks.runs.launches import Array, LaunchFolder
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.runs.scheduler import (
    Job,
    Scheduler,
    SchedulerSilentError,
    Stage,
    read_accounts,
    read_queue,
)
from dks.runs.states import SILENT, Signs, State, look_up, state_of, survey, to_launch
from dks.sweeps import manifest, status
from dks.sweeps.manifest import Manifest, ManifestCell

PENDING, RUNNING = Job(Stage.pending, "PENDING"), Job(Stage.running, "RUNNING")
ENDED = Job(Stage.ended, "FAILED")
CANCELLED = Job(Stage.ended, "CANCELLED")
UNKNOWN = Job(Stage.unknown)


def record(state: Status, launch: LaunchFolder | None = None, host: str | None = None) -> Record:
    attempts = (
        []
        if state is Status.queued
        else [Attempt("2026-01-02T03:04:05.000+00:00", host or socket.gethostname(), 1, "cpu", 1)]
    )
    return Record(
        "c",
        "f",
        0,
        "dks",
        {},
        "",
        [],
        status=state,
        attempts=attempts,
        launch=launch and str(launch.path),
    )


JOB = {"submitted": True}
# (status of the record, other signs) -> state
RULES: list[tuple[Status | None, dict[str, Any], State]] = [
    (None, {}, State.missing),
    (None, {"claimed": True}, State.queued),  # somebody is about to write its record
    (Status.done, {}, State.done),
    (Status.done, {"claimed": True}, State.done),
    (Status.running, {"claimed": True}, State.running),
    (Status.failed, {"claimed": True}, State.running),  # it is tried again
    (Status.killed, {}, State.killed),
    (Status.failed, {}, State.failed),
    # without a scheduler
    (Status.queued, {}, State.missing),  # stale: whoever planned it is gone
    (Status.queued, {"launched": True}, State.queued),
    (Status.running, {}, State.killed),  # on this machine a free lock means a dead process
    (Status.running, {"here": False, "fresh": True}, State.running),
    (Status.running, {"here": False}, State.lost),
    # with one
    (Status.queued, {**JOB, "job": PENDING}, State.queued),
    # torch is being imported, or other cells of the job run
    (Status.queued, {**JOB, "job": RUNNING}, State.queued),
    (Status.queued, {**JOB}, State.queued),  # it does not answer: nothing is concluded
    (Status.queued, {**JOB, "job": UNKNOWN}, State.lost),
    (Status.queued, {**JOB, "job": CANCELLED}, State.killed),
    (Status.queued, {**JOB, "job": ENDED}, State.failed),
    (Status.running, {**JOB, "job": ENDED}, State.failed),
    (Status.running, {**JOB, "job": CANCELLED}, State.killed),
    (Status.running, {**JOB, "job": PENDING}, State.queued),  # preempted
    (Status.killed, {**JOB, "job": PENDING}, State.queued),  # preempted, and it could save
    (Status.killed, {**JOB, "job": CANCELLED}, State.killed),
    (Status.running, {**JOB, "job": RUNNING, "here": False, "fresh": True}, State.running),
    (Status.running, {**JOB, "here": False, "fresh": True}, State.running),
    (Status.running, {**JOB, "job": UNKNOWN, "here": False}, State.lost),
    (Status.failed, {**JOB, "job": RUNNING}, State.failed),  # other cells of the job go on
]


@pytest.mark.parametrize(("status", "signs", "state"), RULES)
def test_the_state_of_a_cell(status: Status | None, signs: dict[str, Any], state: State) -> None:
    assert state_of(Signs(record(status) if status else None, **signs)) is state


def test_a_cell_that_somebody_is_about_to_queue_is_not_missing(tmp_path: Path) -> None:
    """Its folder and its lock are there before its record is."""
    folder = RunFolder(tmp_path / ("a" * 12))
    assert folder.claim()
    assert look_up(str(tmp_path), folder.cell_id) == (State.queued, None)
    folder.release()
    assert look_up(str(tmp_path), folder.cell_id) == (State.missing, None)


def test_what_runs_or_is_about_to_is_not_launched_again() -> None:
    assert {state for state in State if not to_launch(state)} == {
        State.done,
        State.running,
        State.queued,
    }


class Slurm(Scheduler):
    """A scheduler that answers from a dictionary."""

    def __init__(self, known: dict[str, Job] | None) -> None:
        self.known, self.asked, self.cancelled = known, 0, list[str]()

    def jobs(self, ids: Any) -> dict[str, Job]:
        wanted = set(ids)
        if not wanted:
            return {}
        self.asked += 1
        return {} if self.known is None else {job: self.known.get(job, UNKNOWN) for job in wanted}

    def cancel(self, ids: Any) -> None:
        self.cancelled += ids


def cells(folder: Path, count: int) -> list[RunFolder]:
    return [RunFolder(folder / "runs" / f"cell{number}") for number in range(count)]


def launched(folder: Path, runs: list[RunFolder], job: str | None = "12") -> LaunchFolder:
    """A launch of these cells at SLURM, one task each, whose process has gone."""
    launch = LaunchFolder.create(
        str(folder / "results"), "mine", "slurm", [run.path for run in runs], None
    )
    content = launch.read()
    content.arrays = [Array([[str(run.path.absolute())] for run in runs], job)]
    launch.write(content)
    launch.lock.release()
    return launch


def test_the_scheduler_is_asked_once_for_all_cells(tmp_path: Path) -> None:
    runs = cells(tmp_path, 4)
    launch = launched(tmp_path, runs)
    for run, state in zip(
        runs, (Status.queued, Status.running, Status.queued, Status.done), strict=True
    ):
        run.write_record(record(state, launch))
    slurm = Slurm({"12_0": PENDING, "12_1": ENDED, "12_2": Job(Stage.ended, "CANCELLED by 0")})
    found = survey(str(tmp_path / "runs"), [run.cell_id for run in runs], slurm)
    assert [standing.state for standing in found.values()] == [
        State.queued,
        State.failed,
        State.killed,
        State.done,
    ]
    assert slurm.asked == 1
    assert [standing.job_id for standing in found.values()] == ["12_0", "12_1", "12_2", None]
    silent = survey(str(tmp_path / "runs"), [run.cell_id for run in runs], Slurm(None))
    assert silent["cell0"].state is State.queued, "silence is no answer"


def test_cells_that_were_never_begun_are_not_looked_for_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = cells(tmp_path, 3)
    runs[1].write_record(record(Status.done))
    (tmp_path / "runs" / "cell2").mkdir()
    looked: list[str] = []
    read = RunFolder.read_record
    monkeypatch.setattr(
        RunFolder, "read_record", lambda folder: looked.append(folder.cell_id) or read(folder)
    )
    monkeypatch.setattr("dks.runs.record.FileLock", None)  # nor does one of them get a lock
    found = survey(str(tmp_path / "runs"), [run.cell_id for run in runs])
    assert [standing.state for standing in found.values()] == [
        State.missing,
        State.done,
        State.missing,
    ]
    assert looked == ["cell1", "cell2"]


def test_a_file_where_the_runs_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RequestError, match="runs cannot be read: Not a directory"):
        survey(str(tmp_path / "runs"), ["cell0"])


def test_a_single_task_is_a_plain_job(tmp_path: Path) -> None:
    (run,) = cells(tmp_path, 1)
    run.write_record(record(Status.queued, launched(tmp_path, [run])))
    assert (
        survey(str(tmp_path / "runs"), ["cell0"], Slurm({"12": PENDING}))["cell0"].state
        is State.queued
    )


def test_a_job_that_ends_while_one_looks_is_not_taken_for_failed(tmp_path: Path) -> None:
    (run,) = cells(tmp_path, 1)
    launch = launched(tmp_path, [run])
    run.write_record(record(Status.running, launch))

    class Ending(Slurm):
        def jobs(self, ids: Any) -> dict[str, Job]:
            run.write_record(record(Status.done, launch))
            return super().jobs(ids)

    assert (
        survey(str(tmp_path / "runs"), ["cell0"], Ending({"12": ENDED}))["cell0"].state
        is State.done
    )


def test_a_live_launch_keeps_its_cells_queued(tmp_path: Path) -> None:
    (run,) = cells(tmp_path, 1)
    launch = LaunchFolder.create(str(tmp_path / "results"), "mine", "local", [run.path], None)
    run.write_record(record(Status.queued, launch))
    assert survey(str(tmp_path / "runs"), ["cell0"])["cell0"].state is State.queued
    launch.lock.release()
    assert survey(str(tmp_path / "runs"), ["cell0"])["cell0"].state is State.missing


def test_a_run_on_another_machine_is_lost_when_its_heartbeat_is_old(tmp_path: Path) -> None:
    (run,) = cells(tmp_path, 1)
    run.write_record(record(Status.running, host="elsewhere"))
    beat = run.path / heartbeat.FILE
    beat.write_text("{}")
    assert survey(str(tmp_path / "runs"), ["cell0"])["cell0"].state is State.running
    old = time.time() - SILENT - 1
    os.utime(beat, (old, old))
    assert survey(str(tmp_path / "runs"), ["cell0"])["cell0"].state is State.lost


# --- what SLURM's commands print


def test_the_queue_is_read() -> None:
    found = read_queue(
        "12_0|RUNNING|None|n1\n12_1|PENDING|Resources|\n13|OUT_OF_MEMORY|OutOfMemory|n2\n14|REQUEUED|BeginTime|\n"
    )
    assert found == {
        "12_0": Job(Stage.running, "RUNNING", "", "n1"),
        "12_1": Job(Stage.pending, "PENDING", "Resources"),
        "13": Job(Stage.ended, "OUT_OF_MEMORY", "OutOfMemory", "n2"),
        "14": Job(Stage.pending, "REQUEUED", "BeginTime"),
    }


def test_accounts_are_read() -> None:
    found = read_accounts(
        "12_0|CANCELLED by 0|0:0|n1\n12_1|FAILED|0:9|n2\n13|FAILED|1:0|n1\n14|COMPLETED|0:0|n1\n"
    )
    assert [str(job) for job in found.values()] == [
        "CANCELLED n1",
        "FAILED (signal 9) n2",
        "FAILED (exit status 1) n1",
        "COMPLETED n1",
    ]
    assert [job.was_cancelled for job in found.values()] == [True, False, False, False]


# --- manifests and status


def write(folder: Path, name: str, runs: list[RunFolder]) -> None:
    listed = [
        ManifestCell({"seed": str(n)}, run.cell_id, "f", "b", n, "dks", [])
        for n, run in enumerate(runs)
    ]
    manifest.write(
        Manifest(name, "My sweep", ["seed"], str(folder / "runs"), listed), str(folder / "results")
    )


def test_a_sweep_with_overrides_is_found_by_its_plain_name_while_there_is_only_one(
    tmp_path: Path,
) -> None:
    results = str(tmp_path / "results")
    with pytest.raises(RequestError, match=r"no sweep 'mine' in .*; there are none yet"):
        manifest.read(results, "mine")
    write(tmp_path, "mine-1f0c9a", cells(tmp_path, 1))
    write(tmp_path, "mine-other", cells(tmp_path, 1))
    assert manifest.read(results, "mine").name == "mine-1f0c9a"
    write(tmp_path, "mine-2f0c9a", cells(tmp_path, 1))
    with pytest.raises(RequestError, match="choose from mine-1f0c9a, mine-2f0c9a"):
        manifest.read(results, "mine")
    write(tmp_path, "mine", cells(tmp_path, 1))
    assert manifest.read(results, "mine").name == "mine"


def test_status_tells_of_every_state_and_writes_down_how_jobs_ended(tmp_path: Path) -> None:
    runs = cells(tmp_path, 6)
    launch = launched(tmp_path, runs[:4])
    for run, state in zip(
        runs, (Status.queued, Status.running, Status.running, Status.failed), strict=False
    ):
        run.write_record(record(state, launch, host="n1"))
    runs[4].write_record(record(Status.done))
    failed = runs[3].read_record()
    assert failed is not None
    failed.error = {"type": "NonFiniteLoss", "message": "non-finite loss at epoch 1, step 3"}
    runs[3].write_record(failed)
    runs[3].log_file.write_text("...")
    beat = heartbeat.Heartbeat("", "n1", 1, "12_1", 3, 10, 312.4, "2999-01-01T00:00:00+00:00")
    (runs[1].path / heartbeat.FILE).write_text(json.dumps(vars(beat)))
    write(tmp_path, "mine", runs)
    job = Job(Stage.ended, "OUT_OF_MEMORY", "OutOfMemory", "n2")
    slurm = Slurm(
        {
            "12_0": Job(Stage.pending, "PENDING", "Resources"),
            "12_1": RUNNING,
            "12_2": job,
            "12_3": ENDED,
        }
    )
    seen = status.status(manifest.read(str(tmp_path / "results"), "mine"), slurm)
    assert seen.headline() == "mine: 6 cells: 1 missing, 1 queued, 1 running, 1 done, 2 failed"
    assert not seen.is_over
    assert seen.exit_status == 1
    text = str(seen)
    assert "epoch 3/10  312 images/s" in text
    assert "JobEnded: job 12_2 ended: OUT_OF_MEMORY (OutOfMemory) n2" in str(
        status.status(manifest.read(str(tmp_path / "results"), "mine"), slurm)
    )
    assert "NonFiniteLoss: non-finite loss at epoch 1, step 3" in text
    assert str(runs[3].log_file) in text
    assert "queued at SLURM: 1 (Resources)" in text
    ended = runs[2].read_record()
    assert ended is not None
    assert (ended.status, ended.attempts[-1].status) == (Status.failed, "failed")
    told = json.loads(seen.to_json())
    assert told["counts"] == {"missing": 1, "queued": 1, "running": 1, "done": 1, "failed": 2}
    assert [cell["state"] for cell in told["cells"]] == [
        "queued",
        "running",
        "failed",
        "failed",
        "done",
        "missing",
    ]
    assert told["cells"][1]["epoch"] == 3


def test_status_says_where_another_commit_computed(tmp_path: Path) -> None:
    runs = cells(tmp_path, 2)
    launch = LaunchFolder.create(
        str(tmp_path / "results"), "mine", "local", [run.path for run in runs], "abc"
    )
    launch.lock.release()
    for run, commit in zip(runs, ("abc", "def"), strict=True):
        done = record(Status.done, launch)
        done.attempts[-1].git_commit = commit
        run.write_record(done)
    write(tmp_path, "mine", runs)
    seen = str(status.status(manifest.read(str(tmp_path / "results"), "mine"), Slurm({})))
    assert "1 runs were computed by another commit than the one that launched them" in seen


def test_cancel_withdraws_what_waits_and_stops_what_runs(tmp_path: Path) -> None:
    runs = cells(tmp_path, 3)
    launch = launched(tmp_path, runs)
    for run, state in zip(runs, (Status.queued, Status.running, Status.done), strict=True):
        run.write_record(record(state, launch, host="n1"))
    (runs[1].path / heartbeat.FILE).write_text("{}")
    write(tmp_path, "mine", runs)
    slurm = Slurm({"12_0": PENDING, "12_1": RUNNING})
    said = status.cancel(
        status.status(manifest.read(str(tmp_path / "results"), "mine"), slurm), slurm
    )
    assert str(said) == "1 queued cells withdrawn, 1 running ones told to stop"
    assert json.loads(said.to_json()) == {
        "name": "mine",
        "withdrawn": [runs[0].cell_id],
        "stopping": [runs[1].cell_id],
        "jobs": ["12_0", "12_1"],
        "processes": [],
        "elsewhere": [],
    }
    assert slurm.cancelled == ["12_0", "12_1"]
    withdrawn = runs[0].read_record()
    assert withdrawn is not None
    assert withdrawn.status is Status.killed


def test_a_scheduler_that_is_silent_when_jobs_are_to_be_cancelled_is_said_in_a_line(
    tmp_path: Path,
) -> None:
    runs = cells(tmp_path, 3)
    launch = launched(tmp_path, runs[:2])
    for run in runs[:2]:
        run.write_record(record(Status.queued, launch))
    write(tmp_path, "mine", runs)

    class Silent(Slurm):
        def cancel(self, ids: Any) -> None:
            raise SchedulerSilentError("scancel says: Unable to contact slurm controller")

    slurm = Silent({"12_0": PENDING, "12_1": PENDING})
    with pytest.raises(RequestError) as refused:
        status.cancel(status.status(manifest.read(str(tmp_path / "results"), "mine"), slurm), slurm)
    assert refused.value.problems == (
        "2 jobs could not be cancelled: scancel says: Unable to contact slurm controller; cancel "
        "again where SLURM answers",
    )
    left = [run.read_record() for run in runs[:2]]
    assert [each and each.status for each in left] == [Status.queued] * 2, (
        "their jobs are still there"
    )


def test_waiting_ends_when_nothing_runs_or_waits(tmp_path: Path) -> None:
    (run,) = cells(tmp_path, 1)
    launch = launched(tmp_path, [run])
    run.write_record(record(Status.queued, launch))
    write(tmp_path, "mine", [run])
    looks = 0

    def look() -> status.SweepStatus:
        nonlocal looks
        looks += 1
        if looks == 3:
            run.write_record(record(Status.done, launch))
        return status.status(
            manifest.read(str(tmp_path / "results"), "mine"), Slurm({"12": PENDING})
        )

    said: list[str] = []
    seen = status.wait(look, 0.0, said.append)
    assert looks == 3
    assert [line.partition("  ")[2] for line in said] == [
        "mine: 1 cells: 1 queued",
        "mine: 1 cells: 1 done",
    ]
    assert (seen.is_over, seen.exit_status) == (True, 0)
