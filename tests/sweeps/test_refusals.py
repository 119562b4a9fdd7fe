"""A run goes on as it was begun.

With as many processes that train together, and on the same kind of device.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dks.machine import environment
from dks.machine.interruption import Interrupted
from dks.runs.record import RunFolder
from dks.sweeps import command_line
from dks.sweeps.cell import Cell
from dks.sweeps.plan import plan
from dks.sweeps.refusals import other_ways
from dks.sweeps.spec import Grid, Point
from dks.training import checkpoint
from dks.training.run import Outcome, run_cell
from dks.training.trainer import Trainer
from tests.conftest import TINY, composed, queued

THREE_STEPS = ("recipe.epochs=1", "data.train_images=96", "recipe.batch_size=32")
H100 = "cuda:0 (NVIDIA H100)"


@pytest.fixture
def saved(in_folder: Path) -> RunFolder:
    """A run in the current folder that was asked to stop after its second step."""
    run, asked = queued(in_folder, *THREE_STEPS, "runs_dir=runs"), Trainer._asked
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Trainer,
            "_asked",
            lambda self: Interrupted("SIGTERM") if self.progress.step == 2 else asked(self),
        )
        with pytest.raises(Interrupted):
            run_cell(run.path)
    return run


def rewrite(run: RunFolder, **values: object) -> None:
    """As if its attempt had been another one."""
    record = json.loads(run.record_file.read_text())
    record["attempts"][0].update(values)
    run.record_file.write_text(json.dumps(record))


def open_cell(folder: Path) -> Cell:
    point = Point((*TINY, *THREE_STEPS, "tracking=off", f"runs_dir={folder}"), {})
    return plan(Grid((), (point,), ""), lambda given: composed(*given)).cells[0]


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    ("begun", "reason", "command"),
    [
        (
            {"processes": 8},
            "begun with 8 processes that train together and cannot go on with 1 process: each "
            "normalises its own part of",
            "torchrun --nproc-per-node=8 train.py seed=0 device=auto",
        ),
        (
            {"device": H100},
            "begun on CUDA and cannot go on on the CPU",
            "python train.py seed=0 device=cuda",
        ),
        (
            {"processes": 2, "device": H100},
            "begun with 2 processes",
            "torchrun --nproc-per-node=2 train.py seed=0 device=cuda",
        ),
    ],
)
def test_a_run_is_not_gone_on_with_in_another_way_and_the_right_command_is_named(
    saved: RunFolder,
    run_here: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    begun: dict[str, object],
    reason: str,
    command: str,
) -> None:
    typed = ["python", "train.py", "seed=0", "device=auto"]
    monkeypatch.setattr(command_line, "command_line", lambda: " ".join(typed))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rewrite(saved, **begun)
    before = {path: path.read_bytes() for path in saved.path.rglob("*") if path.is_file()}
    status, out, err = run_here(*TINY, *THREE_STEPS)
    (line,) = err.splitlines()
    assert (status, out) == (2, "")
    assert line.startswith(f"error: run {saved.cell_id} was {reason}") and line.endswith(
        f"; go on with: {command}"
    )
    assert {
        path: path.read_bytes() for path in saved.path.rglob("*") if path.is_file()
    } == before, "nothing is touched"
    rewrite(saved, processes=1, device="cpu")
    assert run_here(*TINY, *THREE_STEPS)[0] == 0


def test_a_run_of_the_cpu_does_not_go_on_on_cuda(
    saved: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command_line, "command_line", lambda: "dks sweep run mine device=cuda:1")
    (line,) = other_ways([open_cell(saved.path.parent)], 1, False)
    assert "begun on the CPU and cannot go on on CUDA" in line and line.endswith(
        "go on with: dks sweep run mine device=cpu"
    )


def test_jobs_of_slurm_bring_their_own_processes_and_a_device_that_is_not_known_yet(
    saved: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        command_line, "command_line", lambda: "dks sweep run mine hydra.launcher.nodes=2"
    )
    rewrite(saved, processes=4, device=H100)
    cell = open_cell(saved.path.parent)
    assert list(other_ways([cell], 4, True)) == []
    (line,) = other_ways([cell], 2, True)
    assert line.endswith(
        "go on with: dks sweep run mine hydra.launcher.nodes=1 hydra.launcher.tasks_per_node=4"
    )
    from hydra_plugins.dks_launchers.slurm import SlurmLauncher

    assert SlurmLauncher(nodes=2, tasks_per_node=8).processes == 16


def test_a_run_that_begins_again_may_do_so_in_any_way(saved: RunFolder) -> None:
    rewrite(saved, processes=8)
    cell = open_cell(saved.path.parent)
    assert list(other_ways([dataclasses.replace(cell, anew=True)], 1, False)) == []
    checkpoint.discard(saved.checkpoints)
    assert list(other_ways([open_cell(saved.path.parent)], 1, False)) == []


def test_a_checkpoint_knows_how_it_was_begun_where_the_record_was_lost(saved: RunFolder) -> None:
    newest = saved.checkpoints / checkpoint.NEWEST
    state = checkpoint.read(newest)
    checkpoint.save(saved.checkpoints, dataclasses.replace(state, processes=state.processes * 2))
    (saved.checkpoints / checkpoint.PREVIOUS).unlink()
    assert run_cell(saved.path) is Outcome.failed
    record = saved.read_record()
    assert record is not None and record.error is not None
    assert record.error["message"].startswith(
        f"run {saved.cell_id} was begun with 2 processes that train together and cannot"
    )
    checkpoint.save(saved.checkpoints, state)
    assert run_cell(saved.path) is Outcome.done, "the checkpoint is still there"


def test_the_command_of_several_processes_is_that_of_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        command_line, "command_line", lambda: "dks sweep run table3 'data.root=a b'"
    )
    assert (
        command_line.command_with({}, 2)
        == "torchrun --nproc-per-node=2 -m dks sweep run table3 'data.root=a b'"
    )
    assert command_line.command_with({}) == "dks sweep run table3 'data.root=a b'"


def test_every_attempt_on_cuda_tells_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "driver" not in environment.versions() or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(environment, "_driver", lambda: "580.65.06")
    found = environment.versions()
    assert (found["cuda"], found["driver"], found["torch"]) == (
        "13.2",
        "580.65.06",
        torch.__version__,
    )
