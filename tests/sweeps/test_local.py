"""Cells in worker processes, several at a time: shared threads, failures, deaths and signals."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from dks.config.errors import RequestError
from dks.config.files import python_path
from dks.machine.interruption import Interrupted
from dks.runs.record import Attempt, RunFolder, Status
from dks.sweeps.launchers import fork_server, local
from dks.sweeps.launchers.local import (
    Layout,
    environment,
    lay_out,
    note_death,
    run_in_slots,
    visible_gpus,
)
from tests.conftest import ROOT, assert_same_result, finished_run, queued, start
from tests.support.launched import EXPLODES, LONG, failures, launched, log_display, record_of, said


def run(cells: list[RunFolder], slots: int = 1, threads: int = 1) -> str:
    """Run these cells in workers; what is said of them."""
    with log_display(len(cells)) as display:
        run_in_slots(
            [each.path for each in cells], Layout(slots, threads, slots * threads), display
        )
    return said(display)


def statuses(cells: list[RunFolder]) -> list[Status]:
    return [record_of(cell).status for cell in cells]


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
            os.kill(os.getpid(), signal.SIGTERM)  # the main thread would wait for ever

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
    with pytest.raises(RequestError, match=f"hydra.launcher.{name}={value}: .* at least 1"):
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
    assert [python_path(given) for given in ("", "/a")] == ["", "/a"], "an installed one is found"


@pytest.mark.parametrize(
    ("named", "expected"),
    [(None, ("0", "1")), ("3,GPU-abc", ("3", "GPU-abc")), ("5,6,-1,7", ("5", "6"))],
)
def test_only_visible_gpus_are_used(
    monkeypatch: pytest.MonkeyPatch, named: str | None, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(local, "_has_driver", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


# --- the fork server


@pytest.mark.slow
def test_what_it_imports_starts_no_thread_and_leaves_gpus_alone() -> None:
    """Else it would not be safe to fork. Nothing that trains imports mlflow."""
    code = (
        "import os, sys; import dks.sweeps.launchers.preload, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'torch._dynamo' in sys.modules and 'mlflow' not in sys.modules\n"
        "assert len(os.listdir('/proc/self/task')) == 1"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=variables).returncode == 0


@pytest.mark.slow
def test_a_run_of_a_worker_is_that_of_any_other_process(tmp_path: Path) -> None:
    here = finished_run(tmp_path / "here", "recipe.epochs=1", "threads=2")
    there = queued(tmp_path / "there", "recipe.epochs=1", "threads=2")
    before = dict(os.environ)
    run([there], threads=2)
    assert_same_result(here, there)
    assert record_of(there).attempts[0].threads == 2
    assert os.environ == before
    assert record_of(there).attempts[0].pid not in (os.getpid(), *psutil.pids()), "it has left"


def server() -> psutil.Process:
    (found,) = [
        each
        for each in psutil.Process().children()
        if "multiprocessing.forkserver" in " ".join(each.cmdline())
    ]
    return found


@pytest.mark.slow
def test_workers_outlive_the_server_and_new_ones_come_from_a_new_one(tmp_path: Path) -> None:
    cells = [queued(tmp_path, f"seed={seed}") for seed in range(3)]
    fork_server.start_server()
    lost = server()

    def kill() -> None:
        wait_for(lambda: trains(cells[0]))
        lost.kill()

    killer = Meanwhile(kill)
    run(cells)
    killer.join()
    assert statuses(cells) == [Status.done] * 3
    assert len({record_of(cell).attempts[0].pid for cell in cells}) == 1
    assert lost.status() == psutil.STATUS_ZOMBIE
    again = queued(tmp_path, "seed=9")
    run([again])
    assert record_of(again).status is Status.done


@pytest.mark.slow
def test_signals_do_not_reach_the_server(tmp_path: Path) -> None:
    """A scheduler sends them to every process of a job."""
    cells = [queued(tmp_path, f"seed={seed}") for seed in range(2)]
    fork_server.start_server()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        server().send_signal(number)
    run(cells)
    assert statuses(cells) == [Status.done] * 2


@pytest.fixture
def new_server() -> Iterator[None]:
    """The server of other tests is gone, and so is that of this test in the end."""
    fork_server.end_server()
    yield
    fork_server.end_server()


@pytest.mark.slow
@pytest.mark.usefixtures("new_server")
def test_a_worker_that_cannot_import_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is not for this machine')")
    for module in (local, fork_server):  # of the workers, and of what they are forked from
        monkeypatch.setattr(module, "python_path", lambda given: f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    cells = [queued(tmp_path), queued(tmp_path, "seed=1")]
    with log_display(2) as display, pytest.raises(RuntimeError, match=r"ImportError: libtorch\.so"):
        run_in_slots([each.path for each in cells], Layout(2, 1, 2), display)
    assert "1 slots are left" in said(display)
    assert statuses(cells) == [Status.queued] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("new_server")
def test_a_server_that_cannot_start_is_no_failure_of_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = queued(tmp_path)
    before = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable("/bin/false")
    try:
        with pytest.raises(RuntimeError, match="could not be started"):
            run([cell])
    finally:
        multiprocessing.set_executable(before)
    assert record_of(cell).status is Status.queued


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
    assert statuses(good) == [Status.done] * 4
    attempts = [attempt for cell in [*bad, *good] for attempt in record_of(cell).attempts]
    assert len({attempt.pid for attempt in attempts} | {os.getpid()}) == 3, "cell after cell"
    assert {attempt.threads for attempt in attempts} == {1}
    assert [attempt.status for attempt in record_of(bad[0]).attempts] == ["failed", "failed"]
    assert failures(bad[0]) == {bad[0].cell_id}
    assert list(errors) == [broken[0].path]
    assert str(errors[broken[0].path]).startswith("RequestError: ")
    assert said(display).count("failed  NonFiniteLoss") == 2
    assert "[5/6]" in said(display)
    assert "Traceback" in bad[0].log_file.read_text()


@pytest.mark.slow
def test_a_cell_with_all_the_cores_runs_alone(tmp_path: Path) -> None:
    cells = launched(tmp_path, ("threads=2",), ("seed=1", "threads=2"), ("seed=2", "threads=1"))
    run(cells, slots=2)
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
    began = "2026-01-02T03:04:05.000+00:00"
    record.attempts.append(Attempt(started=began, host="here", pid=1, device="cpu", threads=2))
    cell.write_record(record)
    run([cell], slots=2)
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
    text = run([long, short, last])
    killer.join()
    record = record_of(long)
    assert record.status is Status.failed
    message = "the worker process was killed by SIGKILL (out of memory?)"
    assert record.error == {"type": "WorkerDied", "message": message}
    assert [attempt.status for attempt in record.attempts] == ["failed", "failed"]
    assert all(attempt.ended is not None and attempt.seconds > 0 for attempt in record.attempts)
    assert failures(long) == {long.cell_id}
    assert re.search(r"goes on after epoch \d+ of 100000", text)
    assert text.count(f"failed  WorkerDied: {message}") == 2
    assert f"cell {long.cell_id} is tried again (1 of 1)" in text
    assert statuses([short, last]) == [Status.done] * 2
    pids = [attempt.pid for cell in (long, short, last) for attempt in record_of(cell).attempts]
    assert len(set(pids)) == 3 and pids[2] == pids[3], "a new worker for each that died"


@pytest.mark.slow
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
    assert record_of(one).error == {"type": "Interrupted", "message": told}
    assert statuses([one, two]) == [Status.killed, Status.queued]
    assert not one.is_claimed()
    assert "stopping" in said(display)
    assert f"[1/2] {record_of(one).label}  killed" in said(display)


@pytest.mark.slow
@pytest.mark.usefixtures("new_server")
def test_a_signal_does_not_wait_for_the_server_to_import(tmp_path: Path) -> None:
    cell = queued(tmp_path)
    typist = Meanwhile(lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGINT))[1])
    began = time.monotonic()
    with pytest.raises(Interrupted, match="SIGINT"):
        run([cell])
    assert time.monotonic() - began < 1
    typist.join()
    assert record_of(cell).status is Status.queued


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
    assert record.error == {"type": "Interrupted", "message": "SIGKILL"}
    assert (record.status, record.attempts[-1].status) == (Status.killed, "killed")
    assert not psutil.pid_exists(record.attempts[-1].pid)


PARENT = """
import sys
from pathlib import Path
from dks.sweeps.launchers.local import Layout, run_in_slots
from dks.runs.terminal import Display
run_in_slots([Path(sys.argv[1])], Layout(slots=1, threads=1, cores=1), Display())
"""


@pytest.mark.slow
def test_a_worker_whose_parent_was_killed_saves_and_leaves(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """So does the server. The script that runs cells is not run again by the worker."""
    (cell,) = launched(tmp_path, LONG)
    script = tmp_path / "script.py"
    script.write_text(PARENT)
    scratch = tmp_path_factory.getbasetemp() / "t"  # a short name, which may hold sockets
    scratch.mkdir()
    parent = start([str(script), str(cell.path)], tmp_path, TMPDIR=str(scratch))
    worker = psutil.Process(wait_for(lambda: trains(cell)))
    others = [worker, *psutil.Process(parent.pid).children()]
    assert len(others) == 3, "the worker, the server, and multiprocessing's tracker"
    assert len(list(scratch.glob("pymp*"))) == 1
    parent.kill()
    parent.communicate(timeout=60)
    wait_for(lambda: not cell.is_claimed())
    record = record_of(cell)
    assert record.error == {"type": "Interrupted", "message": "SIGTERM"}
    assert (record.status, record.attempts[-1].status) == (Status.killed, "killed")
    for each in others:
        wait_for(lambda: not each.is_running() or each.status() == psutil.STATUS_ZOMBIE)  # noqa: B023
    assert cell.log_file.read_text() == "", "it left in order"
    assert list(scratch.glob("pymp*")) == []


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


DIED = {"type": "WorkerDied", "message": "..."}


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (Status.done, Status.failed),
        (Status.failed, Status.failed),
        (Status.killed, Status.failed),
        (Status.queued, Status.killed),  # when the sweep is stopped
    ],
)
def test_a_run_that_was_over_or_never_begun_keeps_its_record(
    tmp_path: Path, status: Status, end: Status
) -> None:
    folder = running(tmp_path, status)
    before = folder.record_file.read_text()
    assert not note_death(folder, end, DIED)
    assert folder.record_file.read_text() == before


def test_a_run_that_was_under_way_has_failed(tmp_path: Path) -> None:
    folder = running(tmp_path, Status.running)
    assert note_death(folder, Status.failed, DIED)
    record = record_of(folder)
    assert (record.status, record.error) == (Status.failed, DIED)
    assert record.attempts[0].status == "failed"
    assert record.cost["seconds"] == record.attempts[0].seconds > 0
    assert not folder.is_claimed()


def test_a_cell_that_another_process_has_begun_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = running(tmp_path, Status.running)
    monkeypatch.setattr(local, "GRACE", 0.1)
    other = RunFolder(folder.path)
    assert other.claim()
    before = folder.record_file.read_text()
    assert not note_death(folder, Status.failed, DIED)
    assert folder.record_file.read_text() == before
    other.release()
