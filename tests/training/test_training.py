"""The trainer.

Schedule, metrics, signals, the heartbeat, and what happens when something goes wrong.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dks
from dks.config.files import load_choice
from dks.config.schema import Recipe
from dks.machine.interruption import SIGNALS, Interrupted, Interruption
from dks.objectives import Loss
from dks.runs import heartbeat
from dks.runs.heartbeat import Pulse
from dks.runs.journal import Entry
from dks.runs.record import Record, RunFolder, Status
from dks.runs.states import State
from dks.sweeps.engine import run_summary
from dks.tools.evaluate import evaluate_run
from dks.training.finite import FiniteGuard, NonFiniteLoss
from dks.training.metrics import Tally
from dks.training.run import Outcome, run_cell
from dks.training.schedule import is_milestone, learning_rate
from tests.conftest import finished_run, queued, raise_at, reproducible


def record_of(folder: RunFolder) -> Record:
    record = folder.read_record()
    assert record is not None
    return record


# --- schedule


def test_the_learning_rate_of_every_epoch_of_the_papers_cifar_resnets() -> None:
    """0.1, divided by 10 every 60 epochs, 200 epochs (Section 4.1)."""
    recipe = load_choice("recipe", "cifar_resnet", Recipe)
    rates = [learning_rate(recipe, finished) for finished in range(recipe.epochs)]
    expected = [0.1] * 60 + [0.01] * 60 + [0.001] * 60 + [0.0001] * 20
    assert rates == pytest.approx(expected)
    assert (recipe.batch_size, recipe.momentum, recipe.nesterov, recipe.weight_decay) == (
        64,
        0.9,
        False,
        1e-4,
    )


def test_milestones_can_be_fractions_of_all_epochs() -> None:
    recipe = Recipe(epochs=10, lr=1.0, gamma=0.5, milestones=[0.5, 0.75])
    assert [learning_rate(recipe, finished) for finished in range(10)] == [1.0] * 5 + [0.5] * 3 + [
        0.25
    ] * 2


@pytest.mark.parametrize(
    ("epochs", "fraction", "first"),
    [
        (25, 0.28, 7),
        (100, 0.07, 7),
        (100, 0.29, 29),
        (25, 0.56, 14),
        (15, 2 / 3, 10),
        (15, 0.85, 13),
        (40, 1e-9, 1),
    ],
)
def test_a_fraction_is_that_of_exact_numbers_rounded_up(
    epochs: int, fraction: float, first: int
) -> None:
    """0.28 of 25 is 7, though floating-point numbers make a little more of it.

    0.85 of 15 is 12.75.
    """
    recipe = Recipe(epochs=epochs, lr=1.0, gamma=0.5, milestones=[fraction])
    assert [learning_rate(recipe, finished) for finished in range(epochs)] == [1.0] * first + [
        0.5
    ] * (epochs - first)
    assert [finished for finished in range(epochs) if is_milestone(recipe, finished)] == [first]


# --- metrics


def test_errors_and_losses_are_means_over_images_in_percent() -> None:
    tally = Tally()
    logits = {
        "c1": torch.tensor([[3.0, 2, 1, 0, -1, -2], [3, 2, 1, 0, -1, -2]]),
        "c2": torch.eye(6)[:2],
    }
    tally.add_errors(logits, torch.tensor([1, 5]), top=(1, 5))
    tally.add_losses({"loss": torch.tensor(2.0)}, 2)
    tally.add_errors({name: z[:1] for name, z in logits.items()}, torch.tensor([0]), top=(1, 5))
    tally.add_losses({"loss": torch.tensor(5.0)}, 1)
    found = tally.read("test")
    assert found == pytest.approx(
        {
            "test/loss": 3.0,
            "test/top1_error": 100 * 2 / 3,
            "test/top5_error": 100 / 3,
            "test/top1_error_c2": 100 * 2 / 3,
            "test/top5_error_c2": 100 / 3,
        }
    )


@pytest.mark.parametrize(("classes", "told"), [(1, [1]), (3, [1]), (5, [1]), (6, [1, 5])])
def test_with_five_classes_or_fewer_there_is_no_top5(classes: int, told: list[int]) -> None:
    tally = Tally()
    logits = torch.arange(float(classes), 0, -1).expand(2, -1)  # the last class comes last
    tally.add_errors({"c1": logits, "c2": logits}, torch.tensor([classes - 1, 0]), top=(1, 5))
    expected = {
        f"test/top{k}_error{end}": 50.0 if classes > k else 0.0 for end in ("", "_c2") for k in told
    }
    assert tally.read("test") == expected


# --- a whole run


def test_a_run_leaves_its_record_journal_and_weights(tmp_path: Path) -> None:
    folder = queued(tmp_path, "noise=uniform", "label_noise.ratio=0.25", "seed=3")
    assert run_cell(folder.path) is Outcome.done
    record, entries = record_of(folder), folder.journal.read()
    assert record.status is Status.done
    assert [(entry.epoch, entry.step) for entry in entries] == [(1, 1), (2, 2)]
    names = set(entries[0].metrics)
    for classifier in ("", "_c2", "_c3"):
        assert {
            f"{n}{classifier}"
            for n in ("train/top1_error", "test/loss", "test/top1_error", "test/top5_error")
        } <= names
    assert {"train/loss", "train/loss_ce", "train/loss_aux", "train/loss_synergy"} <= names
    parts = sum(entries[0].metrics[f"train/loss_{part}"] for part in ("ce", "aux", "synergy"))
    assert entries[0].metrics["train/loss"] == pytest.approx(parts, rel=1e-6)
    assert record.final == {"epoch": 2, **entries[1].metrics}
    assert record.best["test/top1_error"] == min(
        entry.metrics["test/top1_error"] for entry in entries
    )
    attempt = record.attempts[0]
    assert (attempt.device, attempt.threads, attempt.first_epoch) == ("cpu", 1, 1)
    assert attempt.versions["torch"] == torch.__version__
    assert record.changed_labels is not None
    assert len(record.changed_labels) == 16
    assert not folder.checkpoints.exists()
    assert folder.weights_file.stat().st_mode == folder.record_file.stat().st_mode
    weights = load_file(folder.weights_file)
    net = dks.build("resnet8", 10, "ours", ("c2", "c3"))
    net.load_state_dict(weights)
    assert record.cost["parameters"] == sum(p.numel() for p in net.parameters())
    # And again: nothing to do.
    assert run_cell(folder.path) is Outcome.already_done
    assert len(record_of(folder).attempts) == 1


def test_a_run_with_five_classes_tells_no_top5_error_anywhere(tmp_path: Path) -> None:
    folder = finished_run(
        tmp_path, "data.num_classes=5", "data.holdout=10", "recipe.epochs=1", "positions=c2"
    )
    record = record_of(folder)
    assert [name for name in record.final if "top" in name] == [
        *("train/top1_error", "train/top1_error_c2", "val/top1_error", "val/top1_error_c2"),
        *("test/top1_error", "test/top1_error_c2"),
    ]
    record.final |= {"test/top1_error": 12.5, "test/top1_error_c2": 100.0}
    told = run_summary(State.done, record, folder.path).splitlines()
    assert told[0].startswith(f"{folder.path}  top-1 test error in %, last epoch")
    assert [line[:12] for line in told[1:]] == ["  c1   12.50", "  c2  100.00"]
    assert not [line for line in told if "/ " in line]
    tested = str(evaluate_run(str(folder.path.parent), folder.cell_id))
    assert tested.splitlines()[0].endswith("32 images: top-1 error in %")
    assert " / " not in tested


def test_a_baseline_has_one_classifier_and_one_loss(tmp_path: Path) -> None:
    folder = queued(tmp_path, "method=baseline")
    run_cell(folder.path)
    assert set(reproducible(folder.journal.read()[0].metrics)) == {
        "train/loss",
        "train/loss_ce",
        "train/top1_error",
        "train/lr",
        "test/loss",
        "test/top1_error",
        "test/top5_error",
    }


def test_the_network_learns(tmp_path: Path) -> None:
    folder = queued(
        tmp_path,
        "data.train_images=640",
        "recipe.epochs=5",
        "data.num_classes=4",
        "recipe.lr=0.02",
        "data.flip=false",
    )
    run_cell(folder.path)
    final = record_of(folder).final
    for name in ("test/top1_error", "test/top1_error_c2", "test/top1_error_c3"):
        assert final[name] < 30, final  # chance is 75


def weights_and_metrics(
    folder: RunFolder,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    return load_file(folder.weights_file), [
        reproducible(entry.metrics) for entry in folder.journal.read()
    ]


def same(one: RunFolder, other: RunFolder) -> bool:
    (weights, entries) = weights_and_metrics(one)
    (others, other_entries) = weights_and_metrics(other)
    return entries == other_entries and all(
        torch.equal(weights[name], others[name]) for name in weights
    )


def test_a_run_goes_on_with_the_threads_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    folder = queued(tmp_path, "threads=1")
    with monkeypatch.context() as patched:
        patched.setattr("dks.runs.terminal.RunView.stepped", raise_at(2, Interrupted("SIGTERM")))
        with pytest.raises(KeyboardInterrupt):
            run_cell(folder.path)
    torch.set_num_threads(2)
    again = queued(tmp_path, "threads=2")
    assert again.path == folder.path
    run_cell(folder.path)
    assert [attempt.threads for attempt in record_of(folder).attempts] == [1, 1]
    torch.set_num_threads(before)


def test_the_same_cell_gives_the_same_numbers_and_another_seed_others(tmp_path: Path) -> None:
    one = queued(tmp_path / "a")
    twin = queued(tmp_path / "b")
    other = queued(tmp_path / "c", "seed=1")
    for folder in (one, twin, other):
        run_cell(folder.path)
    assert one.cell_id == twin.cell_id != other.cell_id
    assert same(one, twin)
    assert not same(one, other)


# --- failures


def test_an_exploding_loss_stops_the_run_at_that_step_with_the_last_good_values(
    tmp_path: Path,
) -> None:
    folder = queued(tmp_path, "recipe.lr=1e30", "data.train_images=320")
    assert run_cell(folder.path) is Outcome.failed
    record = record_of(folder)
    assert record.status is Status.failed
    assert record.error is not None
    assert record.error["type"] == "NonFiniteLoss"
    assert record.error["epoch"] == 1
    assert 1 < record.error["step"] <= 5
    assert set(record.error["last_good"]) == {"loss", "loss_ce", "loss_aux", "loss_synergy"}
    assert all(math.isfinite(value) for value in record.error["last_good"].values())
    assert "non-finite loss at epoch 1, step" in record.error["message"]
    assert folder.journal.read() == []
    json.loads(
        folder.record_file.read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )


def test_the_guard_names_the_first_bad_step() -> None:
    guard = FiniteGuard()
    guard.check(2, 7, Loss(torch.tensor(1.5), {"loss_ce": torch.tensor(1.5)}))
    with pytest.raises(
        NonFiniteLoss, match=r"epoch 2, step 8: loss=nan, loss_ce=nan; last good values: loss=1.5"
    ) as stopped:
        guard.check(2, 8, Loss(torch.tensor(math.nan), {"loss_ce": torch.tensor(math.nan)}))
    assert stopped.value.details["last_good"] == {"loss": 1.5, "loss_ce": 1.5}


def test_an_error_is_in_the_record_and_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = queued(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(
            "dks.runs.terminal.RunView.stepped", raise_at(2, RuntimeError("out of memory"))
        )
        assert run_cell(folder.path) is Outcome.failed
    assert record_of(folder).error == {"type": "RuntimeError", "message": "out of memory"}
    assert "Traceback" in caplog.text
    # Asked for again, it goes on and ends well.
    assert run_cell(folder.path) is Outcome.done
    assert record_of(folder).error is None


def test_a_queued_run_reads_nothing_but_its_frozen_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of conf/ while it waits."""
    folder = queued(tmp_path)

    def gone(name: str) -> Path:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("dks.config.files.declarations", gone)
    assert run_cell(folder.path) is Outcome.done


def test_a_cell_is_claimed_by_one_process_only(tmp_path: Path) -> None:
    folder = queued(tmp_path)
    other = RunFolder(folder.path)
    assert other.claim()
    assert run_cell(folder.path) is Outcome.busy
    assert folder.is_claimed()
    other.release()
    assert not folder.is_claimed()
    assert run_cell(folder.path) is Outcome.done


def test_who_only_looks_takes_no_cell_from_whoever_begins_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look whether a lock is held means to hold it for a moment."""
    folder = queued(tmp_path)
    # a look takes microseconds, but the machine may be busy
    monkeypatch.setattr("dks.runs.record.GLANCE", 20.0)
    held = threading.Event()

    def look() -> None:
        looker = RunFolder(folder.path)
        assert looker.claim()
        held.set()
        time.sleep(0.05)
        looker.release()

    thread = threading.Thread(target=look)
    thread.start()
    assert held.wait(20)
    assert run_cell(folder.path) is Outcome.done
    thread.join()


@pytest.mark.usefixtures("hangs_up")
def test_signals_only_set_a_flag() -> None:
    for number in SIGNALS:
        before = signal.getsignal(number)
        with Interruption() as interruption:
            interruption.check()
            os.kill(os.getpid(), number)
            with pytest.raises(Interrupted, match=number.name) as stopped:
                interruption.check()
            assert stopped.value.signal is number
            assert pickle.loads(pickle.dumps(stopped.value)).signal is number, (
                "it can travel between processes"
            )
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.signal is number, "the first one counts"
            with pytest.raises(KeyboardInterrupt) as insisted:
                os.kill(os.getpid(), signal.SIGINT)
            assert not isinstance(insisted.value, Interrupted)
        assert signal.getsignal(number) == before


def test_who_is_not_patient_is_stopped_at_once_and_once() -> None:
    with Interruption() as interruption:
        interruption.patient = False
        with pytest.raises(Interrupted, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal is signal.SIGTERM


def test_under_nohup_a_terminal_that_closes_asks_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.check()
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.signal is signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_ignores_the_signals_of_its_parent() -> None:
    with Interruption() as interruption:
        child = os.fork()
        if not child:
            for number in SIGNALS:
                os.kill(os.getpid(), number)
            os._exit(17 if interruption.signal is None else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 17
        assert interruption.signal is None


# --- the heartbeat


def test_a_run_leaves_its_last_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    folder = queued(tmp_path)
    assert heartbeat.read(folder.path) is None
    assert heartbeat.age(folder.path) is None
    run_cell(folder.path)
    beat, (attempt,) = heartbeat.read(folder.path), record_of(folder).attempts
    assert beat is not None
    assert (beat.host, beat.pid, beat.job, beat.epochs) == (attempt.host, os.getpid(), "12_3", 2)
    assert attempt.job == "12_3"
    age = heartbeat.age(folder.path)
    assert age is not None
    assert 0 <= age < 60
    (folder.path / heartbeat.FILE).write_text('{"time": "2026-')
    assert heartbeat.read(folder.path) is None
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_the_job_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert heartbeat.slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    assert heartbeat.slurm_job() == "14"


def test_a_heartbeat_tells_epoch_speed_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 epochs of 100 images, the first done before.

    After 40 more images in 2 seconds 160 images are left, 8 seconds.
    """
    clock = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    pulse = Pulse(tmp_path, "node1", 3)
    pulse._beat()
    first = heartbeat.read(tmp_path)
    assert first is not None
    assert (first.epoch, first.epochs, first.images_per_second, first.ends) == (0, 3, 0.0, None)
    pulse.started(3, 100, 1)
    for _ in range(4):
        clock[0] += 0.5
        pulse.stepped(10)
    pulse._beat()
    beat = heartbeat.read(tmp_path)
    assert beat is not None and beat.ends is not None
    assert (beat.epoch, beat.images_per_second) == (2, 20.0)
    left = datetime.fromisoformat(beat.ends) - datetime.fromisoformat(beat.time)
    assert left.total_seconds() == pytest.approx(8, abs=2)
    pulse.recorded(Entry(2, 20, "", {}))
    pulse._beat()
    later = heartbeat.read(tmp_path)
    assert later is not None
    assert later.epoch == 3


def test_the_heart_beats_while_a_run_lives_and_not_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    seen = set()
    with Pulse(tmp_path, "node1", 3):
        until = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until:
            if (beat := heartbeat.read(tmp_path)) is not None:
                seen.add(beat.time)
    assert len(seen) == 3
    last = (tmp_path / heartbeat.FILE).read_text()
    time.sleep(0.1)
    assert (tmp_path / heartbeat.FILE).read_text() == last


def test_a_heartbeat_that_cannot_be_written_is_reported_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    (tmp_path / heartbeat.FILE).mkdir()
    with Pulse(tmp_path, "node1", 3):
        time.sleep(0.3)
    assert caplog.text.count("heartbeat could not be written") == 1
