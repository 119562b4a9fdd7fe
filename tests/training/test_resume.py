"""A run that was stopped, at whatever moment and in whatever way, and goes on, ends bitwise as one
that never was.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dks.config.schema import Augmentation, Data
from dks.data.batches import Normalise, TrainingBatches
from dks.data.images import ImageFiles, ImageSet
from dks.data.streaming import StreamedTraining
from dks.machine.interruption import SIGNALS, Interrupted
from dks.runs.journal import Journal
from dks.runs.record import Record, RunFolder, Status
from dks.training import checkpoint, metrics
from dks.training.checkpoint import NEWEST, PREVIOUS, Progress
from dks.training.metrics import Tally
from dks.training.run import Outcome, run_cell
from dks.training.trainer import Trainer
from tests.conftest import ROOT, TINY, assert_same_result, queued, sampled, start

CPU = torch.device("cpu")

# A small network with dropout, whose random numbers a resumed run must go on drawing, and a branch:
# 3 epochs of 5 steps, 4 batches in each evaluation, held-out images included.
SMALL = (
    "backbone=wrn28_4",
    "backbone.depth=10",
    "backbone.width=1",
    "backbone.dropout=0.3",
    "positions=c2",
    "backbone.branches.c2.stages=[{blocks:1,width:64}]",
    "data.num_classes=5",
    "data.train_images=160",
    "data.holdout=10",
    "data.test_images=30",
    "eval_batch_size=10",
    "recipe.batch_size=32",
    "recipe.epochs=3",
)
STEPS, EPOCHS = 5, 3


def record_of(folder: RunFolder) -> Record:
    record = folder.read_record()
    assert record is not None
    return record


def assert_same(one: RunFolder, other: RunFolder) -> None:
    """The same result, and the same of it in the records."""
    assert_same_result(one, other)
    assert record_of(one).final.keys() == record_of(other).final.keys()
    assert record_of(one).status is record_of(other).status is Status.done
    assert not one.checkpoints.exists() and not other.checkpoints.exists()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was never stopped."""
    folder = queued(tmp_path_factory.mktemp("straight"), *SMALL)
    assert run_cell(folder.path) is Outcome.done
    return folder


@pytest.fixture
def broken(tmp_path: Path) -> RunFolder:
    """The same cell, not begun."""
    return queued(tmp_path, *SMALL)


@contextmanager
def at_call(
    where: Any, name: str, number: int, what: Callable[[], None], after: bool = False
) -> Iterator[list[int]]:
    """Inside this context `what` happens right before, or after, the call of that number of a
    function; yields its calls.
    """
    original, calls = getattr(where, name), [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        this = calls[0]
        if this == number and not after:
            what()
        result = original(*arguments, **named)
        if this == number and after:
            what()
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(where, name, counted)
        yield calls


def ask(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Killed(BaseException):
    """A stand-in for SIGKILL: nothing of the run catches it."""


def kill() -> None:
    raise Killed


# --- asked to stop


@pytest.mark.rest_slow(1)
@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize("step", [1, 2, 4, 5, 8, 10, 14, 15])
def test_a_run_goes_on_from_the_very_step_at_which_it_was_asked_to_stop(
    straight: RunFolder, broken: RunFolder, step: int
) -> None:
    """In the middle of an epoch (1, 2, 4, 8, 14) and in its last step (5, 10, 15), when the
    evaluation is still to come.
    """
    number = SIGNALS[step % 5]
    with (
        at_call(Trainer, "_step", step, ask(number)) as before,
        pytest.raises(Interrupted, match=number.name) as stopped,
    ):
        run_cell(broken.path)
    assert before[0] == step, "the step in which the signal came is finished, and no other begun"
    assert stopped.value.signal is number
    record = record_of(broken)
    assert record.status is Status.killed
    assert record.error == {"type": "Interrupted", "message": number.name}
    epoch = (step - 1) // STEPS
    assert len(broken.journal.read()) == epoch
    with at_call(Trainer, "_step", 0, kill) as after:
        assert run_cell(broken.path) is Outcome.done
    assert after[0] == STEPS * EPOCHS - step, "no step is taken twice"
    assert [attempt.first_epoch for attempt in record_of(broken).attempts] == [1, epoch + 1]
    assert_same(straight, broken)


def test_a_run_can_be_stopped_before_every_single_step(
    straight: RunFolder, broken: RunFolder
) -> None:
    for _ in range(STEPS * EPOCHS):
        with at_call(Trainer, "_step", 1, ask(signal.SIGTERM)), pytest.raises(Interrupted):
            run_cell(broken.path)
    assert run_cell(broken.path) is Outcome.done
    assert len(record_of(broken).attempts) == STEPS * EPOCHS + 1
    assert_same(straight, broken)


def test_a_run_that_is_asked_before_its_first_step_has_nothing_to_save(
    straight: RunFolder, broken: RunFolder
) -> None:
    with (
        at_call(Trainer, "fit", 1, ask(signal.SIGUSR1)),
        pytest.raises(Interrupted, match="SIGUSR1"),
    ):
        run_cell(broken.path)
    assert not broken.checkpoints.exists()
    run_cell(broken.path)
    assert_same(straight, broken)


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("call", [1, 2, 3, 5, 7])
def test_an_evaluation_that_was_asked_to_stop_is_done_again_and_its_epoch_is_not(
    straight: RunFolder, broken: RunFolder, call: int
) -> None:
    """Each epoch has a batch of held-out images and three of test images."""
    with (
        at_call(metrics, "test_losses", call, ask(signal.SIGUSR2)) as evaluated,
        pytest.raises(Interrupted),
    ):
        run_cell(broken.path)
    assert evaluated[0] == call, "the evaluation is not finished first"
    epoch = (call - 1) // 4
    assert len(broken.journal.read()) == epoch
    with at_call(Trainer, "_step", 0, kill) as after:
        run_cell(broken.path)
    assert after[0] == STEPS * (EPOCHS - epoch - 1)
    assert [attempt.first_epoch for attempt in record_of(broken).attempts] == [1, epoch + 1]
    assert_same(straight, broken)


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(("where", "name"), [(checkpoint, "save"), (Journal, "append")])
@pytest.mark.parametrize("after", [False, True])
def test_a_signal_while_something_is_written_waits_until_it_is(
    straight: RunFolder, broken: RunFolder, where: Any, name: str, after: bool
) -> None:
    with at_call(where, name, 2, ask(signal.SIGTERM), after) as written, pytest.raises(Interrupted):
        run_cell(broken.path)
    assert written[0] == 2
    assert len(broken.journal.read()) == (1 if name == "save" else 2)
    assert checkpoint.read(broken.checkpoints / NEWEST).progress == Progress(epoch=2, step=10)
    run_cell(broken.path)
    assert_same(straight, broken)


def test_a_signal_in_the_last_evaluation_batch_still_ends_well(
    straight: RunFolder, broken: RunFolder
) -> None:
    """There is nothing left to be stopped.

    The run is done, and whoever called it learns of the signal.
    """
    with at_call(metrics, "test_losses", 12, ask(signal.SIGTERM)), pytest.raises(Interrupted):
        run_cell(broken.path)
    assert record_of(broken).status is Status.done
    assert_same(straight, broken)


def test_the_speed_of_a_resumed_epoch_counts_the_time_of_all_its_parts(broken: RunFolder) -> None:
    """One second a step and a hundred between the attempts: 30 images a second."""
    clock = [0.0]

    def tick(self: Trainer, batch: Any, step: Any = Trainer._step) -> None:
        clock[0] += 1
        step(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dks.training.trainer.time.perf_counter", lambda: clock[0])
        patched.setattr(Trainer, "_step", tick)
        with at_call(Trainer, "_step", 3, ask(signal.SIGTERM)), pytest.raises(Interrupted):
            run_cell(broken.path)
        clock[0] += 100
        run_cell(broken.path)
    assert [entry.metrics["train/images_per_second"] for entry in broken.journal.read()] == [
        30
    ] * EPOCHS


def test_a_milestone_forgets_the_momentum_once(tmp_path: Path) -> None:
    """`recipe.reset_momentum`.

    Not again where the epoch that begins with it is resumed in the middle.
    """
    overrides = (*SMALL, "recipe.reset_momentum=true", "recipe.milestones=[1]", "recipe.gamma=0.5")
    whole, parts = queued(tmp_path / "a", *overrides), queued(tmp_path / "b", *overrides)
    run_cell(whole.path)
    with at_call(Trainer, "_step", 7, ask(signal.SIGTERM)), pytest.raises(Interrupted):
        run_cell(parts.path)
    run_cell(parts.path)
    assert_same(whole, parts)


@pytest.mark.slow
def test_a_run_whose_first_steps_are_skipped_goes_on_exactly(tmp_path: Path) -> None:
    """In float16 a loss this large overflows until its scaling has come down, which takes longer
    than the first epoch.
    """
    # without the latter, memory may be 0 by chance
    fp16 = ("compute.precision=fp16", "compute.deterministic=true")
    overrides = (*SMALL, *fp16, "loss.beta=30", "recipe.lr=0.001")
    whole, parts = queued(tmp_path / "a", *overrides), queued(tmp_path / "b", *overrides)
    try:
        assert run_cell(whole.path) is Outcome.done
        with at_call(Trainer, "_step", 2, ask(signal.SIGTERM)), pytest.raises(Interrupted):
            run_cell(parts.path)
        run_cell(parts.path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(whole, parts)
    losses = [entry.metrics["train/loss"] for entry in whole.journal.read()]
    assert losses[2] < losses[0], "it learns once no step is skipped"


# --- killed without a warning


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    ("where", "name", "call", "after"),
    [
        (Trainer, "_step", 8, False),
        (Trainer, "_save", 2, False),  # the epoch is trained, nothing of it on disk
        (torch, "save", 2, True),  # nothing of the draft is written
        (checkpoint, "sync_folder", 2, False),
        (checkpoint, "save", 2, True),
        (metrics, "test_losses", 6, False),
        (Journal, "append", 2, False),
        (Journal, "append", 2, True),
        (Trainer, "_step", 11, False),
        (checkpoint, "save", 3, True),
        (Journal, "append", 3, True),  # all is done but the weights
        (checkpoint, "discard", 1, False),
    ],
)
def test_a_run_that_was_killed_goes_on_from_its_checkpoint(
    straight: RunFolder, broken: RunFolder, where: Any, name: str, call: int, after: bool
) -> None:
    with at_call(where, name, call, kill, after), pytest.raises(Killed):
        run_cell(broken.path)
    assert run_cell(broken.path) is (Outcome.already_done if name == "discard" else Outcome.done)
    assert_same(straight, broken)


def test_a_run_that_was_killed_between_two_renames_goes_on_from_the_checkpoint_before(
    straight: RunFolder, broken: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    rename = Path.replace
    with pytest.MonkeyPatch.context() as patched:

        def replace(path: Path, target: Path) -> Path:
            if path.name == checkpoint.DRAFT and (path.parent / PREVIOUS).exists():
                raise Killed
            return rename(path, target)

        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            run_cell(broken.path)
    assert sorted(path.name for path in broken.checkpoints.iterdir()) == [
        checkpoint.DRAFT,
        PREVIOUS,
    ]
    run_cell(broken.path)
    assert f"checkpoint {broken.checkpoints / NEWEST} is missing" in caplog.text
    assert [attempt.first_epoch for attempt in record_of(broken).attempts] == [1, 2]
    assert_same(straight, broken)


# --- damaged files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit, in the middle of the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def stopped_at(folder: RunFolder, step: int) -> None:
    with at_call(Trainer, "_step", step, ask(signal.SIGTERM)), pytest.raises(Interrupted):
        run_cell(folder.path)


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("damage", [cut, empty, flip])
@pytest.mark.parametrize("step", [8, 13])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    straight: RunFolder,
    broken: RunFolder,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    step: int,
) -> None:
    stopped_at(broken, step)
    damage(broken.checkpoints / NEWEST)
    with at_call(Trainer, "_step", 0, kill) as after:
        assert run_cell(broken.path) is Outcome.done
    assert f"checkpoint {broken.checkpoints / NEWEST} is damaged" in caplog.text
    assert after[0] == STEPS * EPOCHS - (step // STEPS) * STEPS, (
        "the steps since the last whole epoch are taken again"
    )
    assert_same(straight, broken)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(
    straight: RunFolder, broken: RunFolder
) -> None:
    """It is gone before the next one is written, so the one that was fallen back to is kept as the
    one before.
    """
    stopped_at(broken, 13)
    flip(broken.checkpoints / NEWEST)
    stopped_at(broken, 2)
    assert checkpoint.read(broken.checkpoints / NEWEST).progress == Progress(2, 12, 2)
    flip(broken.checkpoints / NEWEST)
    with at_call(Trainer, "_step", 0, kill) as after:
        run_cell(broken.path)
    assert after[0] == STEPS * EPOCHS - 10
    assert_same(straight, broken)


def test_without_a_good_checkpoint_a_run_starts_again(
    straight: RunFolder, broken: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    stopped_at(broken, 13)
    flip(broken.checkpoints / NEWEST)
    cut(broken.checkpoints / PREVIOUS)
    assert len(broken.journal.read()) == 2
    stopped_at(broken, 1)
    assert "the run starts again from epoch 1" in caplog.text
    assert broken.journal.read() == [], "the journal is cut back"
    run_cell(broken.path)
    assert_same(straight, broken)


def test_a_checkpoint_that_is_ahead_of_its_journal_is_not_gone_on_from(
    straight: RunFolder, broken: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal has lost its second line.

    The epoch is trained again, for its metrics are in no other place.
    """
    stopped_at(broken, 13)
    first, _ = broken.journal.path.read_bytes().splitlines(keepends=True)
    broken.journal.path.write_bytes(first + b'{"epoch": 2, "st')
    run_cell(broken.path)
    assert "is ahead of the journal, which has 1 of 2 epochs" in caplog.text
    assert_same(straight, broken)


def test_a_checkpoint_that_cannot_be_read_fails_the_run_and_is_kept(
    straight: RunFolder, broken: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer for a moment must not cost what was computed."""
    stopped_at(broken, 8)

    def unreadable(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "read", unreadable)
        assert run_cell(broken.path) is Outcome.failed
    with at_call(Trainer, "_step", 0, kill) as after:
        run_cell(broken.path)
    assert after[0] == STEPS * EPOCHS - 8
    assert_same(straight, broken)


def test_nothing_reads_a_file_with_a_wrong_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / NEWEST
    torch.save({"progress": (1, 2, 3)}, path)  # as an older version wrote it, without a checksum
    monkeypatch.setattr(
        checkpoint.torch, "load", lambda *_, **__: pytest.fail("torch.load was called")
    )
    with pytest.raises(checkpoint.Damaged, match="checksum"):
        checkpoint.read(path)


def test_another_versions_checkpoint_is_not_gone_on_from(
    straight: RunFolder, broken: RunFolder
) -> None:
    stopped_at(broken, 3)
    state: Any = SimpleNamespace(**vars(checkpoint.read(broken.checkpoints / NEWEST)), scaler={})
    checkpoint.save(broken.checkpoints, state)
    with pytest.raises(checkpoint.Damaged, match="another version"):
        checkpoint.read(broken.checkpoints / NEWEST)
    run_cell(broken.path)
    assert_same(straight, broken)


# --- data that goes on in the middle of an epoch

AS_STORED = Normalise([0.0] * 3, [1.0] * 3, CPU)


def test_an_epoch_without_its_first_batches_is_the_rest_of_it() -> None:
    images = ImageSet(torch.randint(0, 256, (37, 3, 6, 6), dtype=torch.uint8), torch.arange(37))
    batches = TrainingBatches(images, 10, 3, 2, True, AS_STORED, CPU)
    whole = list(batches.epoch(5))
    for first in range(5):
        rest = list(batches.epoch(5, first))
        assert len(rest) == 4 - first
        for one, other in zip(whole[first:], rest, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `val` with two classes of small noisy images."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 11), ("val", 3)):
        for label in ("a", "b"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((14, 12), 60).convert("RGB").save(folder / f"{number:02}.png")
    return root


def streamed(photos: Path, workers: int) -> StreamedTraining:
    paths = sorted(map(str, (photos / "train").rglob("*.png")))
    form = Data(augmentation=Augmentation.inception, resize=10, image_size=8, workers=workers)
    return StreamedTraining(
        ImageFiles(tuple(paths), torch.arange(len(paths))), 6, 3, form, AS_STORED, CPU
    )


def test_the_first_batches_of_a_streamed_epoch_are_skipped_without_decoding_them(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, opened = streamed(photos, 0), []
    whole = list(batches.epoch(2))
    original = Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, **how: opened.append(path) or original(path, **how)
    )
    rest = list(batches.epoch(2, first=3))
    assert len(whole) == 4
    assert len(rest) == 1
    assert len(opened) == 22 - 18
    assert torch.equal(rest[0].images, whole[3].images)
    assert torch.equal(rest[0].labels, whole[3].labels)


def test_streamed_images_do_not_move_the_random_numbers_of_dropout(photos: Path) -> None:
    for workers in (0, 1):
        before = torch.get_rng_state()
        list(streamed(photos, workers).epoch(1))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_run_on_image_files_goes_on_in_the_middle_of_an_epoch_and_of_an_evaluation(
    photos: Path, tmp_path: Path
) -> None:
    overrides = (
        *SMALL,
        "data=imagefolder",
        f"data.root={photos}",
        "data.augmentation=inception",
        "data.resize=10",
        "data.image_size=8",
        "data.mean=[0.5,0.5,0.5]",
        "data.std=[0.2,0.2,0.2]",
        "data.num_classes=2",
        "data.train_images=null",
        "data.test_images=null",
        "data.holdout=2",
        "data.workers=0",
        "eval_batch_size=2",
        "recipe.batch_size=5",
        "recipe.epochs=2",
    )
    whole, parts = queued(tmp_path / "a", *overrides), queued(tmp_path / "b", *overrides)
    assert run_cell(whole.path) is Outcome.done, record_of(whole)
    for where, name, call in (
        (Trainer, "_step", 2),
        (metrics, "test_losses", 2),
        (Trainer, "_step", 3),
    ):
        with at_call(where, name, call, ask(signal.SIGTERM)), pytest.raises(Interrupted):
            run_cell(parts.path)
    assert [entry.step for entry in parts.journal.read()] == [4]
    run_cell(parts.path)
    assert_same(whole, parts)


def test_a_signal_to_all_processes_of_a_job_does_not_end_those_that_decode_images(
    photos: Path,
) -> None:
    """A scheduler signals them all.

    Without the decoders the main process could not finish its step.
    """
    batches = streamed(photos, 2)
    expected = [batch.labels for batch in batches.epoch(1)]
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    workers = [worker.pid for worker in batches._loader._iterator._workers]  # type: ignore[union-attr]
    assert len(workers) == 2
    for number in SIGNALS:
        for process in (server, *workers):
            os.kill(process, number)
    found = [batch.labels for batch in batches.epoch(1)]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert [worker.pid for worker in batches._loader._iterator._workers] == workers  # type: ignore[union-attr]


# --- several processes

# One of the processes asks itself to stop in the step of that number; the others learn of it.
STOP = """
import os, signal
from dks.cli.main import train
from dks.training.trainer import Trainer

step, taken = Trainer._step, 0

def stepping(self, batch):
    global taken
    taken += 1
    if os.environ["RANK"] == os.environ["ASKED"] and taken == int(os.environ["STOP_AT"]):
        os.kill(os.getpid(), signal.SIGUSR1)
    step(self, batch)

Trainer._step = stepping
train()
"""


def torchrun(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=3",
        *arguments,
    ]
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return ended.returncode, ended.stderr


def only_run(folder: Path) -> RunFolder:
    (path,) = (folder / "runs").iterdir()
    return RunFolder(path)


@pytest.mark.slow
def test_three_processes_go_on_in_the_middle_of_an_epoch_each_with_its_own_dropout(
    tmp_path: Path,
) -> None:
    """The second one is asked in the third step of the second epoch, and all stop before the next
    one.

    Three, for the sum of two gradients has the same bits in either order.
    """
    arguments = (*TINY, *SMALL, "tracking=off")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    (parts / "stop.py").write_text(STOP)
    status, err = torchrun(whole, str(ROOT / "train.py"), *arguments)
    assert status == 0, err
    status, err = torchrun(parts, "stop.py", *arguments, ASKED="1", STOP_AT="8")
    assert status != 0
    assert record_of(only_run(parts)).error == {"type": "Interrupted", "message": "SIGUSR1"}, err
    state = checkpoint.read(only_run(parts).checkpoints / NEWEST)
    assert state.progress == Progress(1, 8, 3)
    assert len({bytes(each["random"].numpy()) for each in state.processes}) == 3
    alone = start([str(ROOT / "train.py"), *arguments], parts)
    _, err = alone.communicate(timeout=240)
    assert alone.returncode == 2 and err.count("\n") == 1, err
    assert "begun with 3 processes that train together and cannot go on with 1 process" in err
    assert "go on with: torchrun --nproc-per-node=3 train.py data=synthetic " in err
    status, err = torchrun(parts, str(ROOT / "train.py"), *arguments)
    assert status == 0, err
    assert [attempt.processes for attempt in record_of(only_run(parts)).attempts] == [3, 3]
    assert_same(only_run(whole), only_run(parts))


def test_sums_go_on_from_what_was_counted() -> None:
    tally = Tally()
    for value in (1.0, 2.0):
        tally.add_losses({"loss": torch.tensor(value)}, 1)
        tally.add_errors({"c1": torch.eye(3)[:1]}, torch.tensor([0]), top=(1,))
    restored = Tally.restored(tally.state(), CPU)
    restored.add_losses({"loss": torch.tensor(9.0)}, 1)
    restored.add_errors({"c1": torch.eye(3)[:1]}, torch.tensor([1]), top=(1,))
    assert restored.read("train") == {"train/loss": 4.0, "train/top1_error": pytest.approx(100 / 3)}
    assert tally.images() == 2, "it is not touched"


# --- for real


def begun(folder: Path) -> bool:
    """Is a run of this folder between its first and its last epoch?"""
    return any(path.read_text().count("\n") >= 1 for path in folder.glob("runs/*/metrics.jsonl"))


@pytest.mark.slow
def test_a_real_signal_stops_the_command_and_the_same_command_goes_on(tmp_path: Path) -> None:
    overrides = (*SMALL, "recipe.epochs=40")
    whole = queued(tmp_path / "whole", *overrides)
    assert run_cell(whole.path) is Outcome.done
    command = [str(ROOT / "train.py"), *TINY, *overrides, "tracking=off"]
    process = start(command, tmp_path)
    until = time.monotonic() + 120
    while not begun(tmp_path) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    record = record_of(only_run(tmp_path))
    assert (record.status, record.error) == (
        Status.killed,
        {"type": "Interrupted", "message": "SIGUSR2"},
    ), err
    assert 1 <= len(only_run(tmp_path).journal.read()) < 40
    process = start(command, tmp_path)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert len(record_of(only_run(tmp_path)).attempts) == 2
    assert_same(whole, only_run(tmp_path))


# A server that has imported everything once. On a line with a cell's folder it forks a process that
# runs the cell; on the next line it waits for that process, which until then keeps its number. What
# the process is doing at a moment is in a piece of memory that survives it: the kind now, the kind
# in which a signal's handler ran, whether it is over; from byte 4 on how often it has begun each
# kind, and from byte 32 on the seconds that took.
SERVER = """
import logging, mmap, os, struct, sys, time, traceback
import torch
from dks.runs.journal import Journal
from dks.machine import interruption
from dks.training import checkpoint, trainer
from dks.training.run import run_cell

torch.set_num_threads(1)
logging.disable(logging.WARNING)
KINDS = {"nothing": 0, "epoch": 1, "evaluation": 2, "checkpoint": 3, "journal": 4}
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 80)

def noted(kind, function):
    def call(*arguments, **named):
        before = shared[0]
        count, = struct.unpack_from("<I", shared, 4 * kind)
        struct.pack_into("<I", shared, 4 * kind, count + 1)
        shared[0], begun = kind, time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            shared[0] = before
            seconds, = struct.unpack_from("<d", shared, 32 + 8 * kind)
            struct.pack_into("<d", shared, 32 + 8 * kind, seconds + time.perf_counter() - begun)
    return call

trainer.Trainer._step = noted(KINDS["epoch"], trainer.Trainer._step)
trainer.evaluate = noted(KINDS["evaluation"], trainer.evaluate)
checkpoint.save = noted(KINDS["checkpoint"], checkpoint.save)
Journal.append = noted(KINDS["journal"], Journal.append)
handler = interruption.Interruption._note

def noting(self, number, frame):
    shared[1] = shared[0]
    handler(self, number, frame)

interruption.Interruption._note = noting
print("ready", flush=True)
for line in sys.stdin:
    shared[:] = bytes(80)
    child = os.fork()
    if not child:
        with open(os.path.join(line.strip(), "output.txt"), "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        status = 1
        try:
            status = 0 if "done" in run_cell(line.strip()).value else 1
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            traceback.print_exc()
        shared[2] = 1
        os._exit(status)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KINDS = ("nothing", "epoch", "evaluation", "checkpoint", "journal")


class Server:
    """The process that runs cells in forks of itself."""

    def __init__(self, folder: Path) -> None:
        (folder / "server.py").write_text(SERVER)
        (folder / "shared").write_bytes(bytes(80))
        with (folder / "shared").open("r+b") as file:
            self.shared = mmap.mmap(file.fileno(), 80)
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "server.py"), str(folder / "shared")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def run(
        self, folder: RunFolder, stop: tuple[str, int, float, signal.Signals] | None = None
    ) -> tuple[int, str | None]:
        """Run a cell.

        Once it has begun that kind of thing so often, wait those seconds and send the signal.

        Returns:
            The exit status, and if the signal came in time, what the run was doing then.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder.path}\n")
        self.process.stdin.flush()
        child = int(self._line())
        sent = stop is not None and self._send(child, *stop)
        self.process.stdin.write("wait\n")
        self.process.stdin.flush()
        status = int(self._line())
        if not sent:
            return status, None
        return status, KINDS[self.shared[0 if status == -signal.SIGKILL else 1]]

    def often(self, kind: str) -> int:
        """How often the last run has begun that kind of thing."""
        return int(struct.unpack_from("<I", self.shared, 4 * KINDS.index(kind))[0])

    def lasts(self, kind: str) -> float:
        """The mean duration of that kind of thing in the last run, seconds."""
        return float(
            struct.unpack_from("<d", self.shared, 32 + 8 * KINDS.index(kind))[0]
        ) / self.often(kind)

    def _send(
        self, child: int, kind: str, count: int, delay: float, number: signal.Signals
    ) -> bool:
        while self.often(kind) < count:
            if self.shared[2]:
                return False
        until = time.perf_counter() + delay
        while time.perf_counter() < until:
            pass
        os.kill(child, number)
        return True

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.communicate(timeout=60)
        self.shared.close()


RUNS = sampled(50, 8)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_runs_that_were_killed_at_random_moments_end_as_one_that_was_not(tmp_path: Path) -> None:
    """Runs of a network with dropout (4 epochs of 5 steps), every one killed one to three times and
    then run to its end.

    A moment is drawn as a kind of thing (a step, an evaluation, the writing of a checkpoint, or any
    of these with the same probability), how often the run has begun it by then, and a delay of up
    to a little more than it takes, so that signals come between two things as well. The signal is
    SIGKILL or SIGTERM, with the same probability. The seed of run i is i; what each signal hit is
    printed. A server forks the processes, so that torch is imported once.
    """
    overrides = (*SMALL, "recipe.epochs=4")
    server = Server(tmp_path)
    hits: Counter[tuple[str, str]] = Counter()
    try:
        whole = queued(tmp_path / "whole", *overrides)
        assert server.run(whole) == (0, None), (whole.path / "output.txt").read_text()
        often = {kind: server.often(kind) for kind in ("epoch", "evaluation", "checkpoint")}
        lasts = {kind: server.lasts(kind) for kind in often}
        assert often == {"epoch": 20, "evaluation": 8, "checkpoint": 4}
        for number in range(RUNS):
            draw, folder = random.Random(number), queued(tmp_path / str(number), *overrides)
            story = []
            for _ in range(draw.randint(1, 3)):
                aim = draw.choice(["epoch", "evaluation", "checkpoint", "any"])
                kind = draw.choice(list(often)) if aim == "any" else aim
                # The first one always finds the run alive; later ones may come when there is less
                # left to do.
                count = (
                    draw.randint(1, often[kind] - 1)
                    if not story
                    else draw.randint(1, max(1, often[kind] // 3))
                )
                delay = draw.uniform(0, 1.1 * lasts[kind])
                kill_by = draw.choice([signal.SIGKILL, signal.SIGTERM])
                status, hit = server.run(folder, (kind, count, delay, kill_by))
                if record_of(folder).status is Status.done:
                    story.append("done before")
                    break
                assert hit is not None and status in (130, -signal.SIGKILL), (
                    folder.path / "output.txt"
                ).read_text()
                story.append(f"{kill_by.name} in {hit}")
                hits[kill_by.name, hit] += 1
            print(f"run {number}: {', '.join(story)}")
            assert story != ["done before"], f"run {number} was never killed"
            assert server.run(folder) == (0, None), (folder.path / "output.txt").read_text()
            assert_same(whole, folder)
    finally:
        server.close()
    print(dict(hits))
    for kind in often:
        came = [hits[name, kind] for name in ("SIGKILL", "SIGTERM")]
        assert sampled(min(came) >= 3, sum(came) >= 1), (
            f"signals hardly ever came in {kind}: {hits}"
        )
