"""Cells in worker processes, several at a time: shared threads, failures, deaths and signals."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dks.config.errors import RequestError
from dks.config.files import python_path
from dks.machine.interruption import Interrupted
from dks.runs.launches import LaunchFolder
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.runs.terminal import Display, shown_by
from dks.sweeps.launchers import slots
from dks.sweeps.launchers.slots import (
    Layout,
    environment,
    lay_out,
    note_death,
    run_in_slots,
    visible_gpus,
)
from dks.sweeps.launchers.worker import RemoteDisplay, run_cells
from tests.conftest import ROOT, queued, start

EXPLODES = ("recipe.lr=1e30", "data.train_images=320")
LONG = ("recipe.epochs=100000",)


def launched(
    folder: Path, *cells: Sequence[str], retries: int = 0, max_failures: int | None = None
) -> list[RunFolder]:
    """Queued cells of one launch, each given by its overrides."""
    ready = [queued(folder, *overrides) for overrides in cells]
    launch = LaunchFolder.create(
        str(folder / "results"),
        "s",
        "local",
        [each.path for each in ready],
        None,
        retries,
        max_failures,
    )
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
    return Display(runs, Console(file=io.StringIO(), highlight=False))


def said(display: Display) -> str:
    assert isinstance(display.console.file, io.StringIO)
    return display.console.file.getvalue()


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)
    return found


def trains(folder: RunFolder) -> int | None:
    """The process that trains the cell, once it has finished an epoch."""
    return record_of(folder).attempts[-1].pid if folder.journal.read() else None


class Meanwhile(threading.Thread):
    """Does something while the main thread runs cells.

    What it raises is raised where it is joined.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.action = action
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.action()
        except BaseException as error:
            self.error = error
            os.kill(os.getpid(), signal.SIGTERM)  # nobody waits for what will not come

    def join(self, timeout: float | None = 10) -> None:
        super().join(timeout)
        if self.error is not None:
            raise self.error


# --- how a machine is divided


@pytest.mark.parametrize(
    ("cells", "cores", "gpus", "slots", "slots_per_gpu", "expected"),
    [
        (9, 2, 0, None, 1, (2, 1)),
        (9, 16, 0, None, 1, (9, 1)),
        (3, 16, 0, None, 1, (3, 5)),
        (9, 16, 0, 4, 1, (4, 4)),
        (1, 16, 0, 4, 1, (1, 16)),
        (9, 2, 0, 4, 1, (4, 1)),
        (9, 16, 2, None, 1, (2, 8)),
        (9, 16, 2, None, 3, (6, 2)),
        (9, 16, 1, 4, 1, (4, 4)),
    ],
)
def test_slots_and_threads(
    cells: int,
    cores: int,
    gpus: int,
    slots: int | None,
    slots_per_gpu: int,
    expected: tuple[int, int],
) -> None:
    layout = lay_out(cells, cores, [str(number) for number in range(gpus)], slots, slots_per_gpu)
    assert (layout.slots, layout.threads) == expected


def test_by_default_there_are_never_more_threads_than_cores() -> None:
    for cores in range(1, 40):
        for cells in range(1, 40):
            layout = lay_out(cells, cores, ())
            assert layout.slots * layout.threads <= cores == layout.cores
            assert layout.slots == min(cells, cores)


@pytest.mark.parametrize("options", [{"slots": 0}, {"slots": -1}, {"slots_per_gpu": 0}])
def test_a_wrong_number_of_slots_is_refused(options: dict[str, int]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(RequestError, match=f"hydra.launcher.{name}={value}: it must be at least 1"):
        lay_out(3, 2, (), **options)


def test_gpus_are_dealt_out_to_the_slots() -> None:
    layout = Layout(4, 2, 8, ("3", "GPU-abc"))
    given = {"OMP_NUM_THREADS": "8", "CUDA_VISIBLE_DEVICES": "3,GPU-abc", "HOME": "/h"}
    variables = [environment(given, layout, slot) for slot in range(4)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in variables] == ["3", "GPU-abc", "3", "GPU-abc"]
    assert {each["OMP_NUM_THREADS"] for each in variables} == {"2"}
    assert {each["HOME"] for each in variables} == {"/h"}
    assert "CUDA_VISIBLE_DEVICES" not in environment({}, Layout(2, 1, 2), 0)


def test_processes_import_this_package_from_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = f"{ROOT}{os.pathsep}/a"
    assert [python_path(given) for given in ("/a", f"/a{os.pathsep}{ROOT}", checkout)] == [
        checkout
    ] * 3, "first, and once"
    assert python_path() == str(ROOT)
    assert environment({"PYTHONPATH": "/a"}, Layout(2, 1, 2), 0)["PYTHONPATH"] == checkout
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(ROOT))
    assert [python_path(given) for given in ("", "/a")] == ["", "/a"], (
        "an installed one is found without"
    )


@pytest.mark.parametrize(
    ("named", "expected"),
    [(None, ("0", "1")), ("3,GPU-abc", ("3", "GPU-abc")), ("5,6,-1,7", ("5", "6"))],
)
def test_only_visible_gpus_are_used(
    monkeypatch: pytest.MonkeyPatch, named: str | None, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(slots, "_has_driver", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


# --- cells one after another, in this process


def test_log_records_of_a_cell_go_into_its_folder_and_only_there(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    fails, works = launched(tmp_path, EXPLODES, ())
    run_cells([fails.path, works.path])
    assert (list(root.handlers), root.level) == before
    text = fails.log_file.read_text()
    assert text.count("the run failed") == text.count("Traceback") == 1
    first = text.splitlines()[0]
    assert first.endswith(" ERROR dks.training.run: the run failed")
    assert not works.log_file.exists() or "Traceback" not in works.log_file.read_text()


def test_a_cell_that_fails_is_tried_again_as_often_as_its_launch_says(tmp_path: Path) -> None:
    fails, works = launched(tmp_path, EXPLODES, (), retries=2)
    with log_display(2) as display:
        run_cells([fails.path, works.path])
    assert [attempt.status for attempt in record_of(fails).attempts] == ["failed"] * 3
    assert len(record_of(works).attempts) == 1
    assert failures(fails) == {fails.cell_id}
    assert f"cell {fails.cell_id} is tried again (2 of 2)" in said(display)


def test_after_too_many_failures_no_cell_is_begun(tmp_path: Path) -> None:
    cells = launched(tmp_path, EXPLODES, (*EXPLODES, "seed=1"), (), max_failures=2)
    run_cells([cell.path for cell in cells])
    assert [record_of(cell).status for cell in cells] == [
        Status.failed,
        Status.failed,
        Status.queued,
    ]


def test_a_cell_that_cannot_begin_does_not_stop_the_others(tmp_path: Path) -> None:
    broken, works = launched(tmp_path, (), ("seed=1",))
    broken.config_file.unlink()
    with pytest.raises(RequestError, match=r"config.yaml cannot be read"):
        run_cells([broken.path, works.path])
    assert record_of(works).status is Status.done
    assert failures(works) == {broken.cell_id}
    assert "the run could not begin" in broken.log_file.read_text()


# --- what a worker says


def test_a_worker_says_what_its_run_does(tmp_path: Path) -> None:
    cell = queued(tmp_path, "data.train_images=640")
    listen, tell = os.pipe()
    with shown_by(RemoteDisplay(tell)):
        run_cells([cell.path])
    os.close(tell)
    with os.fdopen(listen, encoding="utf-8") as lines:
        messages = [json.loads(line) for line in lines]
    assert messages[0] == {"event": "run"}
    assert messages[1] == {"event": "started", "epochs": 2, "images": 640, "finished": 0}
    assert messages[-1] == {"event": "finished", "status": "done", "error": None}
    assert [
        json.loads(each["entry"])["epoch"] for each in messages if each["event"] == "recorded"
    ] == [1, 2]
    steps = [each["images"] for each in messages if each["event"] == "stepped"]
    assert sum(steps) == 2 * 640
    assert len(steps) < 2 * 10, "not one message a step"


def test_a_run_goes_on_when_nobody_listens(tmp_path: Path) -> None:
    cell = queued(tmp_path)
    listen, tell = os.pipe()
    os.close(listen)
    with shown_by(RemoteDisplay(tell)):
        run_cells([cell.path])
    os.close(tell)
    assert record_of(cell).status is Status.done


def test_items_are_counted_for_the_other_side() -> None:
    listen, tell = os.pipe()
    assert list(RemoteDisplay(tell).track("abc", 3, "decoding images")) == ["a", "b", "c"]
    os.close(tell)
    with os.fdopen(listen, encoding="utf-8") as lines:
        first, *_, last = [json.loads(line) for line in lines]
    assert first == {"event": "track", "what": "decoding images", "done": 0, "total": 3}
    assert last == {"event": "track", "what": "decoding images", "done": 3, "total": 3}


# --- worker processes


@pytest.mark.slow
def test_two_workers_share_the_cells_and_the_cores(tmp_path: Path) -> None:
    good = launched(tmp_path, *[(f"seed={seed}", "threads=null") for seed in range(4)])
    bad = launched(tmp_path / "bad", EXPLODES, retries=1)
    broken = launched(tmp_path / "broken", ())
    broken[0].config_file.unlink()
    folders = [each.path for each in [*bad, *broken, *good]]
    with log_display(6) as display:
        errors = run_in_slots(folders, Layout(slots=2, threads=1, cores=2), display)
    assert [record_of(cell).status for cell in good] == [Status.done] * 4
    attempts = [attempt for cell in [*bad, *good] for attempt in record_of(cell).attempts]
    assert len({attempt.pid for attempt in attempts}) == 2, "each imports once"
    assert os.getpid() not in {attempt.pid for attempt in attempts}
    assert {attempt.threads for attempt in attempts} == {1}
    assert [attempt.status for attempt in record_of(bad[0]).attempts] == ["failed", "failed"]
    assert failures(bad[0]) == {bad[0].cell_id}
    assert list(errors) == [broken[0].path]
    assert str(errors[broken[0].path]).startswith("RequestError: ")
    assert said(display).count("  error ") == 4
    assert said(display).count("failed  NonFiniteLoss") == 2
    assert "[5/6]" in said(display)
    assert "Traceback" in bad[0].log_file.read_text()


@pytest.mark.slow
def test_a_cell_with_all_the_cores_runs_alone(tmp_path: Path) -> None:
    cells = launched(tmp_path, ("threads=2",), ("seed=1", "threads=2"), ("seed=2", "threads=1"))
    run_in_slots([cell.path for cell in cells], Layout(slots=2, threads=1, cores=2), log_display(3))
    attempts = [record_of(cell).attempts[0] for cell in cells]
    assert [attempt.threads for attempt in attempts] == [2, 2, 1]
    assert all(
        one.ended is not None and one.ended <= two.started for one, two in pairwise(attempts)
    )


@pytest.mark.slow
def test_a_cell_that_goes_on_keeps_its_threads_however_the_machine_is_divided(
    tmp_path: Path,
) -> None:
    (cell,) = launched(tmp_path, ("threads=null",))
    record = record_of(cell)
    record.attempts.append(
        Attempt(
            started="2026-01-02T03:04:05.000+00:00", host="here", pid=1, device="cpu", threads=2
        )
    )
    cell.write_record(record)
    run_in_slots([cell.path], Layout(slots=2, threads=1, cores=2), log_display(1))
    assert [attempt.threads for attempt in record_of(cell).attempts] == [2, 2]


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_only_its_own_cell_with_it(tmp_path: Path) -> None:
    """It is tried again once, goes on where it was, and its worker is killed once more."""
    long, short, last = launched(tmp_path, LONG, ("seed=1",), ("seed=2",), retries=1)

    def kill() -> None:
        first = wait_for(lambda: trains(long))
        os.kill(first, signal.SIGKILL)
        epochs = len(long.journal.read())
        wait_for(lambda: len(long.journal.read()) > epochs and trains(long) != first)
        os.kill(record_of(long).attempts[-1].pid, signal.SIGKILL)

    killer = Meanwhile(kill)
    with log_display(3) as display:
        run_in_slots(
            [long.path, short.path, last.path], Layout(slots=1, threads=1, cores=1), display
        )
    killer.join()
    record = record_of(long)
    assert record.status is Status.failed
    message = "the worker process was killed by SIGKILL (out of memory?)"
    assert record.error == {"type": "WorkerDied", "message": message}
    assert [attempt.status for attempt in record.attempts] == ["failed", "failed"]
    assert re.search(r"goes on after epoch \d+ of 100000", said(display))
    assert all(attempt.ended is not None and attempt.seconds > 0 for attempt in record.attempts)
    assert failures(long) == {long.cell_id}
    assert said(display).count(f"failed  WorkerDied: {message}") == 2
    assert f"cell {long.cell_id} is tried again (1 of 1)" in said(display)
    assert [record_of(cell).status for cell in (short, last)] == [Status.done] * 2
    pids = [attempt.pid for cell in (long, short, last) for attempt in record_of(cell).attempts]
    assert len(set(pids)) == 3, "a new worker for each that died"
    assert pids[2] == pids[3]


@pytest.mark.slow
@pytest.mark.rest_slow(1)
@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]
)
def test_a_signal_stops_the_runs_under_way_and_begins_no_other(
    tmp_path: Path, number: signal.Signals, told: str
) -> None:
    """Ctrl-C, and a terminal that is closed."""
    one, two = launched(tmp_path, LONG, (*LONG, "seed=1"))

    def interrupt() -> None:
        wait_for(lambda: trains(one))
        os.kill(os.getpid(), number)

    typist = Meanwhile(interrupt)
    with log_display(2) as display, pytest.raises(Interrupted, match=number.name):
        run_in_slots([one.path, two.path], Layout(slots=1, threads=1, cores=1), display)
    typist.join()
    assert record_of(one).status is Status.killed
    assert record_of(one).error == {"type": "Interrupted", "message": told}
    assert record_of(two).status is Status.queued
    assert not one.is_claimed()
    assert "stopping: the run under way saves what it has" in said(display)
    assert f"[1/2] {record_of(one).label}  killed" in said(display)


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_worker_that_does_not_answer(tmp_path: Path) -> None:
    (cell,) = launched(tmp_path, LONG)
    display = log_display(1)

    def interrupt() -> None:
        os.kill(wait_for(lambda: trains(cell)), signal.SIGSTOP)  # it cannot save
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: "stopping" in said(display))
        os.kill(os.getpid(), signal.SIGINT)

    typist = Meanwhile(interrupt)
    with display, pytest.raises(KeyboardInterrupt) as raised:
        run_in_slots([cell.path], Layout(slots=1, threads=1, cores=1), display)
    typist.join()
    assert not isinstance(raised.value, Interrupted)
    record = record_of(cell)
    assert (record.status, record.error) == (
        Status.killed,
        {"type": "Interrupted", "message": "SIGKILL"},
    )
    assert record.attempts[-1].status == "killed"
    with pytest.raises(ProcessLookupError):
        os.kill(record.attempts[-1].pid, 0)


PARENT = """
import sys
from pathlib import Path
from dks.sweeps.launchers.slots import Layout, run_in_slots
from dks.runs.terminal import Display
run_in_slots([Path(sys.argv[1])], Layout(slots=1, threads=1, cores=1), Display())
"""


def test_a_worker_whose_parent_was_killed_saves_and_leaves(tmp_path: Path) -> None:
    (cell,) = launched(tmp_path, LONG)
    parent = start(["-c", PARENT, str(cell.path)], tmp_path)
    worker = wait_for(lambda: trains(cell))
    assert worker != parent.pid
    parent.kill()
    parent.communicate(timeout=60)
    wait_for(lambda: not cell.is_claimed())
    record = record_of(cell)
    assert (record.status, record.error) == (
        Status.killed,
        {"type": "Interrupted", "message": "SIGTERM"},
    )
    assert record.attempts[-1].status == "killed"
    wait_for(
        lambda: (
            not Path(f"/proc/{worker}").exists()
            or "zombie" in Path(f"/proc/{worker}/status").read_text()
        )
    )
    assert cell.log_file.read_text() == "", "it left in order"


def test_workers_that_cannot_start_are_no_failure_of_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = launched(tmp_path, (), ("seed=1",), ("seed=2",))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        log_display(3) as display,
        pytest.raises(RuntimeError, match="left with exit status 1 while it started"),
    ):
        run_in_slots([cell.path for cell in cells], Layout(slots=2, threads=1, cores=2), display)
    assert "1 slots are left" in said(display)
    assert [record_of(cell).status for cell in cells] == [Status.queued] * 3


# --- what is written about the dead


def running(tmp_path: Path, status: Status) -> RunFolder:
    folder = queued(tmp_path)
    record = record_of(folder)
    record.status = status
    if status is not Status.queued:
        began = "2026-01-02T03:04:05.000+00:00"
        record.attempts.append(
            Attempt(started=began, host="here", pid=1, device="cpu", threads=1, status=status.value)
        )
    folder.write_record(record)
    return folder


@pytest.mark.parametrize("status", [Status.done, Status.failed, Status.killed])
def test_a_run_that_was_over_keeps_its_record(tmp_path: Path, status: Status) -> None:
    folder = running(tmp_path, status)
    before = folder.record_file.read_text()
    assert not note_death(folder, Status.failed, {"type": "WorkerDied", "message": "..."})
    assert folder.record_file.read_text() == before


def test_a_run_that_was_under_way_has_failed(tmp_path: Path) -> None:
    folder = running(tmp_path, Status.running)
    error = {"type": "WorkerDied", "message": "..."}
    assert note_death(folder, Status.failed, error)
    record = record_of(folder)
    assert (record.status, record.error, record.attempts[0].status) == (
        Status.failed,
        error,
        "failed",
    )
    assert record.cost["seconds"] == record.attempts[0].seconds > 0
    assert not folder.is_claimed()


def test_a_cell_that_another_process_has_begun_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = running(tmp_path, Status.running)
    monkeypatch.setattr(slots, "GRACE", 0.1)
    other = RunFolder(folder.path)
    assert other.claim()
    before = folder.record_file.read_text()
    assert not note_death(folder, Status.failed, {"type": "WorkerDied", "message": "..."})
    assert folder.record_file.read_text() == before
    other.release()


def test_a_cell_that_was_never_begun_stays_queued_when_the_sweep_is_stopped(tmp_path: Path) -> None:
    folder = running(tmp_path, Status.queued)
    assert not note_death(folder, Status.killed, {"type": "Interrupted", "message": "SIGKILL"})
    assert record_of(folder).status is Status.queued
