"""The process that workers are forked from."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dks.runs.record import RunFolder, Status
from dks.runs.terminal import Display
from dks.sweeps.launchers import nursery
from dks.sweeps.launchers.nursery import Child, Nursery, nursed
from dks.sweeps.launchers.slots import Layout, run_in_slots
from tests.conftest import ROOT, assert_same_result, finished_run, queued


@pytest.fixture
def kept() -> Iterator[Nursery]:
    """A nursery that the pools of a test take their workers from."""
    with nursery.nursery(), nursed() as found:
        yield found


def log_display(runs: int) -> Display:
    return Display(runs, Console(file=io.StringIO(), highlight=False))


def run(cells: list[RunFolder], slots: int = 1, threads: int = 1) -> None:
    run_in_slots(
        [cell.path for cell in cells],
        Layout(slots, threads, slots * threads),
        log_display(len(cells)),
    )


def status(cell: RunFolder) -> Status:
    record = cell.read_record()
    assert record is not None
    return record.status


@pytest.mark.slow
def test_what_it_imports_starts_no_thread_and_leaves_gpus_alone() -> None:
    """Else it would not be safe to fork."""
    code = (
        "import os, sys; from dks.sweeps.launchers.nursery import _import; _import()\n"
        "import torch; assert not torch.cuda.is_initialized()\n"
        "assert 'torch._dynamo' in sys.modules and 'mlflow' not in sys.modules\n"
        "assert len(os.listdir('/proc/self/task')) == 1"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_of_a_forked_worker_is_that_of_any_other_process(
    tmp_path: Path, kept: Nursery
) -> None:
    here = finished_run(tmp_path / "here", "recipe.epochs=1", "threads=2")
    there = queued(tmp_path / "there", "recipe.epochs=1", "threads=2")
    run([there], threads=2)
    assert_same_result(here, there)
    record = there.read_record()
    assert record is not None and record.attempts[0].threads == 2
    assert not kept.is_gone, "it waits for the next ones"


@pytest.mark.slow
def test_workers_outlive_it(tmp_path: Path, kept: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [queued(tmp_path, f"seed={seed}", "recipe.epochs=1") for seed in range(3)]
    hear = Nursery._hear

    def lost(self: Nursery, answer: dict[str, int]) -> None:
        hear(self, answer)
        if "born" in answer:
            self._process.kill()
            self._process.wait()

    monkeypatch.setattr(Nursery, "_hear", lost)
    run(cells)
    assert [status(cell) for cell in cells] == [Status.done] * 3
    again = queued(tmp_path, "seed=9", "recipe.epochs=1")
    monkeypatch.undo()
    run([again])
    assert status(again) is Status.done, "from a new one"


def test_one_that_cannot_import_is_told_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text(
        "raise ImportError('libtorch.so is not for this machine')"
    )
    monkeypatch.setattr(
        nursery, "python_path", lambda given: f"{tmp_path / 'broken'}{os.pathsep}{ROOT}"
    )
    cell = queued(tmp_path)
    with pytest.raises(
        RuntimeError,
        match=r"left with exit status 1 while it started: ImportError: libtorch.so is not for",
    ):
        run([cell])
    assert status(cell) is Status.queued


def test_a_worker_that_is_not_there_yet_can_be_dismissed(kept: Nursery) -> None:
    child = bear(kept)
    kept.dismiss(child)
    assert wait(kept, child) == -signal.SIGKILL and kept.is_gone, "nobody waits for what it imports"


@pytest.mark.slow
def test_the_others_stay_when_one_is_dismissed_before_it_is_there(kept: Nursery) -> None:
    """However early it is asked to leave, it hears it."""
    first = bear(kept)
    until = time.monotonic() + 60
    while first.pid is None and time.monotonic() < until:
        kept.listen()
        time.sleep(0.01)
    others = [bear(kept) for _ in range(10)]
    for other in others:
        kept.dismiss(other)
    assert {wait(kept, other) for other in others} == {-signal.SIGTERM}
    assert first.status is None and not kept.is_gone
    kept.kill(first, 10)
    assert first.status == -signal.SIGKILL


def bear(kept: Nursery) -> Child:
    """A worker that waits for orders."""
    files = [os.open(os.devnull, os.O_RDWR) for _ in range(2)]
    receive, keep = os.pipe()
    child = kept.bear(os.environ, (receive, *files))
    for file in (receive, *files):
        os.close(file)
    _open.append(keep)
    return child


_open: list[int] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _open:
        os.close(_open.pop())


def wait(kept: Nursery, child: Child) -> int | None:
    """How it ended, which should not take long."""
    until = time.monotonic() + 60
    while child.status is None and time.monotonic() < until:
        kept.listen()
        time.sleep(0.01)
    return child.status
