"""What a run tells of itself beside its results.

Times, its machine, its network, what it takes for what.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import dks
from dks.config.secrets import VARIABLES, has_password, without_password
from dks.data.batches import Batch, TrainingBatches
from dks.machine.interruption import Interrupted
from dks.models.summary import parameters, summary
from dks.objectives.objective import Objective
from dks.runs.record import RunFolder
from dks.sweeps.command_line import command_line
from dks.training import checkpoint, metrics, system
from dks.training.confusion import Confusion, to_csv
from dks.training.phases import Phases
from dks.training.run import Outcome, run_cell
from dks.training.system import SystemSampler
from dks.training.trainer import Trainer
from tests.conftest import TINY, config, finished_run, queued, raise_at

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PHASES = ("time/data", "time/forward", "time/backward")


# --- times


def test_phases_follow_one_another_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 13.0, 13.5, 17.5])
    monkeypatch.setattr("dks.training.phases.time.perf_counter", lambda: next(clock))
    phases = Phases(CPU, {"data": 100.0})
    phases.begin()
    for phase in ("data", "forward", "data"):
        phases.end(phase)
    assert phases.seconds() == {"data": 101.5, "forward": 2.0}
    phases.end("forward")
    assert phases.seconds() == {"data": 101.5, "forward": 6.0}, (
        "what was told before is not counted again"
    )


class FakeEvent:
    """As torch.cuda.Event, on a device that takes 4 ms between two events."""

    made: list[FakeEvent]
    waited: list[int]

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.number: int | None = None

    def record(self, stream: object) -> None:
        assert stream == "stream of cuda"
        self.number = len(self.made)
        self.made.append(self)

    def synchronize(self) -> None:
        assert self.number is not None
        self.waited.append(self.number)

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.number is not None and end.number is not None
        assert max(self.waited) >= end.number, "CUDA refuses to tell the time of what is not over"
        return 4.0 * (end.number - self.number)


def test_on_cuda_nothing_waits_before_the_end_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEvent.made, FakeEvent.waited = [], []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    phases = Phases(CUDA)
    assert phases.seconds() == {}
    phases.begin()
    for _ in range(3):
        phases.end("data")
        phases.end("forward")
    assert FakeEvent.waited == []
    assert phases.seconds() == pytest.approx({"data": 0.012, "forward": 0.012})
    assert FakeEvent.waited == [6], "once, for the last one"
    phases.seconds()
    assert FakeEvent.waited == [6]


def test_every_epoch_tells_where_its_time_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps an epoch, slowed down in each phase by another time."""
    original = TrainingBatches.epoch
    forward = Objective.__call__
    step = torch.optim.SGD.step
    tested = metrics.test_losses

    def slow_epoch(self: TrainingBatches, epoch: int, first: int) -> Iterator[Batch]:
        for batch in original(self, epoch, first):
            time.sleep(0.04)
            yield batch

    def after(seconds: float, function: Any) -> Any:
        def slow(*arguments: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return function(*arguments, **named)

        return slow

    with monkeypatch.context() as patched:
        patched.setattr(TrainingBatches, "epoch", slow_epoch)
        patched.setattr(Objective, "__call__", after(0.02, forward))
        patched.setattr(torch.optim.SGD, "step", after(0.01, step))
        patched.setattr(metrics, "test_losses", after(0.05, tested))
        folder = finished_run(tmp_path, "data.train_images=320", "recipe.batch_size=64")
    entries = folder.journal.read()
    assert len(entries) == 2
    for entry in entries:
        data, forwards, backward = (entry.metrics[name] for name in PHASES)
        assert (
            data >= 0.2
            and forwards >= 0.1
            and backward >= 0.05
            and entry.metrics["time/evaluation"] >= 0.05
        )
        whole = 320 / entry.metrics["train/images_per_second"]
        assert 0.9 * whole < data + forwards + backward <= whole + 1e-5


def test_the_times_of_a_resumed_epoch_count_all_its_parts(tmp_path: Path) -> None:
    """Two seconds a step, and a hundred between the attempts."""
    folder, clock = queued(tmp_path, "data.train_images=320", "recipe.batch_size=64"), [0.0]

    def tick(self: Trainer, batch: Any, step: Any = Trainer._step) -> None:
        clock[0] += 2
        step(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dks.training.phases.time.perf_counter", lambda: clock[0])
        patched.setattr(Trainer, "_step", tick)
        patched.setattr(Trainer, "_asked", asked_at(9))
        with pytest.raises(Interrupted):
            run_cell(folder.path)
        kept = checkpoint.read(folder.checkpoints / checkpoint.NEWEST).phases
        assert kept == {"data": 0, "forward": 6, "backward": 0}, (
            "the second epoch was stopped before its fourth step"
        )
        clock[0] += 100
        assert run_cell(folder.path) is Outcome.done
    assert [entry.metrics["time/forward"] for entry in folder.journal.read()] == [10, 10]
    assert [entry.metrics["time/data"] for entry in folder.journal.read()] == [0, 0]


def asked_at(question: int) -> Any:
    """A stand-in for `Trainer._asked` that says stop when it is asked for that time.

    Steps and test batches ask once each.
    """
    asked = 0

    def answer(self: Trainer) -> Interrupted | None:
        nonlocal asked
        asked += 1
        return Interrupted("SIGTERM") if asked == question + 1 else None

    return answer


def test_a_checkpoint_without_times_is_gone_on_from(tmp_path: Path) -> None:
    """As it was written before there were any."""
    folder = queued(tmp_path, "data.train_images=320", "recipe.batch_size=64")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_asked", asked_at(3))
        with pytest.raises(Interrupted):
            run_cell(folder.path)
    state = checkpoint.read(folder.checkpoints / checkpoint.NEWEST)
    del vars(state)["phases"]
    checkpoint.save(folder.checkpoints, state)
    assert run_cell(folder.path) is Outcome.done
    record = folder.read_record()
    assert record is not None
    assert [entry.step for entry in folder.journal.read()] == [5, 10]


# --- the machine


def test_every_line_of_the_journal_tells_what_the_run_took_of_its_machine(tmp_path: Path) -> None:
    for entry in finished_run(tmp_path).journal.read():
        assert entry.metrics["system/cpu_percent"] >= 0
        assert 50 < entry.metrics["system/memory_mib"] < psutil.virtual_memory().total / 2**20
        assert not [name for name in entry.metrics if name.startswith("system/gpu")]
    assert not [thread for thread in threading.enumerate() if thread.name == "system"]


CHILD = """
import time
held = b"x" * 300 * 2**20
print("ready", flush=True)
while True:
    pass
"""


@pytest.mark.slow
def test_children_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that computes and holds 300 MiB, while this process sleeps."""
    monkeypatch.setattr(system, "EVERY", 0.05)
    monkeypatch.setattr(system, "CHILDREN_EVERY", 1)
    with SystemSampler(CPU) as sampler:
        time.sleep(0.2)
        before = sampler.means()
        with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            sampler.means()
            time.sleep(1)
            during = sampler.means()
            child.kill()
        time.sleep(0.2)
        sampler.means()
        time.sleep(0.2)
        after = sampler.means()
    assert during["system/cpu_percent"] > before["system/cpu_percent"] + 10
    assert during["system/memory_mib"] > before["system/memory_mib"] + 250
    assert after["system/memory_mib"] < during["system/memory_mib"] - 250, "it has ended"


def test_a_sampler_that_fails_stops_no_run_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[Any]:
        raise OSError("no /proc here")

    monkeypatch.setattr(system, "_family", broken)
    monkeypatch.setattr(SystemSampler, "_of_processes", lambda self: broken())
    folder = finished_run(tmp_path)
    assert not [
        name
        for entry in folder.journal.read()
        for name in entry.metrics
        if name.startswith("system/")
    ]
    assert caplog.text.count("could not be measured") == 1


def test_a_gpu_that_does_not_tell_its_load_still_tells_its_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def missing(device: torch.device) -> int:
        asked.append(device)
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 512 * 2**20)
    monkeypatch.setattr(torch.cuda, "utilization", missing)
    with SystemSampler(CUDA) as sampler:
        first, second = sampler.means(), sampler.means()
    assert first["system/gpu_memory_mib"] == second["system/gpu_memory_mib"] == 512
    assert "system/gpu_percent" not in {**first, **second}
    assert len(asked) == 1 and not caplog.text
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 80)
    with SystemSampler(CUDA) as sampler:
        assert sampler.means()["system/gpu_percent"] == 80


def test_the_environment_of_the_newest_attempt_is_told_and_nothing_of_its_user(
    tmp_path: Path,
) -> None:
    folder = queued(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_TOKEN", "token-that-nobody-may-see")
        patched.setattr("dks.runs.terminal.RunView.stepped", raise_at(1, RuntimeError("stopped")))
        assert run_cell(folder.path) is Outcome.failed
    text = folder.environment_file.read_text()
    told = json.loads(text)
    assert told["torch"] == torch.__version__ and told["packages"]["psutil"] == psutil.__version__
    assert told["cores"] >= told["usable_cores"] >= 1 and told["memory_mib"] > 500 and told["cpu"]
    assert told["gpus"] == [], "a run on the CPU does not wake them up"
    assert "token-that-nobody-may-see" not in text
    assert str(Path.home()) not in text
    folder.environment_file.write_text("{}")
    assert run_cell(folder.path) is Outcome.done
    assert json.loads(folder.environment_file.read_text()) == told


def test_a_short_word_is_no_password_and_a_user_is_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "mlflow")
    text = (
        "sqlite:///mlflow.db, postgresql://mlflow@host/mlflow, http://host:5000/a?b=c, "
        "git@host:a/b.git"
    )
    assert without_password(text) == text
    monkeypatch.setenv("PGPASSWORD", "mlflow-database")
    assert not has_password("postgresql://me@host/mlflow-database")


# --- the command


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["/venv/bin/python", "train.py", "-m", "aux=ours,shallow"],
            "python train.py -m aux=ours,shallow",
        ),
        (
            ["python", "-u", "-X", "dev", "/somewhere/dks/train.py", "backbone.note=a b"],
            "python train.py 'backbone.note=a b'",
        ),
        (["/venv/bin/python3", "/venv/bin/dks", "sweep", "run", "table1"], "dks sweep run table1"),
        (["python", "-m", "dks", "train", "seed=1"], "python -m dks train seed=1"),
        (["python"], "python"),
        (
            ["dks", "/venv/bin/dks", "train", "tracking.uri=postgresql://me:secret@db/x"],
            "dks train tracking.uri=postgresql://me@db/x",
        ),
    ],
)
def test_a_command_is_told_as_it_can_be_typed_again(given: list[str], told: str) -> None:
    assert command_line(given) == told


def test_a_record_holds_the_command_that_queued_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys,
        "orig_argv",
        ["python", "/venv/bin/dks", "sweep", "run", "mine", "tracking.uri=http://a:b@c"],
    )
    record = queued(tmp_path).read_record()
    assert record is not None
    assert record.command == "dks sweep run mine tracking.uri=http://a@c"


def test_a_record_of_before_there_were_commands_is_read(tmp_path: Path) -> None:
    folder = queued(tmp_path)
    values = json.loads(folder.record_file.read_text())
    del values["command"]
    folder.record_file.write_text(json.dumps(values))
    record = folder.read_record()
    assert record is not None
    assert record.command is None


# --- what is taken for what


def test_confusion_counts_every_classifier_apart() -> None:
    counted = Confusion(3)
    counted.add(
        {"c1": torch.tensor([0, 1, 1]), "c2": torch.tensor([2, 2, 2])}, torch.tensor([0, 1, 2])
    )
    counted.add({"c1": torch.tensor([1]), "c2": torch.tensor([0])}, torch.tensor([2]))
    matrices = counted.read()
    assert matrices["c1"].tolist() == [[1, 0, 0], [0, 1, 0], [0, 2, 0]]
    assert matrices["c2"].tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 1]]
    assert (
        to_csv({"c1": matrices["c1"]})
        == "classifier,true,predicted,images\nc1,0,0,1\nc1,1,1,1\nc1,2,1,2\n"
    )


def confusion_of(folder: RunFolder) -> list[dict[str, str]]:
    with folder.confusion_file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_confusion_of_a_run_has_its_errors_and_costs_no_second_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, tested = [], metrics.test_losses
    monkeypatch.setattr(metrics, "test_losses", lambda *given: passes.append(1) or tested(*given))
    folder = finished_run(
        tmp_path, "data.test_images=40", "eval_batch_size=16", "method=dks", "data.holdout=10"
    )
    assert len(passes) == 2 * (3 + 1), (
        "three batches of test images and one of those held out, twice"
    )
    record = folder.read_record()
    assert record is not None
    images, wrong = Counter[str](), Counter[str]()
    for row in confusion_of(folder):
        assert int(row["images"]) > 0
        images[row["classifier"]] += int(row["images"])
        wrong[row["classifier"]] += int(row["images"]) * (row["true"] != row["predicted"])
    assert images == {"c1": 40, "c2": 40, "c3": 40}
    for name, end in (("c1", ""), ("c2", "_c2"), ("c3", "_c3")):
        assert record.final[f"test/top1_error{end}"] == pytest.approx(100 * wrong[name] / 40)


# --- the network


def test_the_summary_tells_every_layer_and_its_parameters(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "method=dks")
    text = folder.model_file.read_text()
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    network = dks.build("resnet8", 10, "ours", ("c2", "c3"))
    for name, layer in network.named_modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm2d)):
            assert f"{type(layer).__name__} " in lines[name]
            assert lines[name].endswith(f" {parameters(layer):,}"), lines[name]
    assert "16 x 8 x 8" in lines["backbone.stem.conv"]
    assert f"{parameters(network):,} with its branches" in lines["parameters:"]
    assert f" {parameters(network.strip()):,} of the plain network" in lines["parameters:"]
    # 3x3 convolutions of 3 to 16 channels and so on, by hand; a 2x2 average is no multiplication of
    # weights.
    first, second, third = 64, 16, 4  # pixels
    plain = (
        9
        * (
            first * (3 * 16 + 2 * 16 * 16)
            + second * (16 * 32 + 32 * 32)
            + third * (32 * 64 + 64 * 64)
        )
        + 64 * 10
    )
    assert f"multiply-adds an image: {plain:,} of the plain network" in text


@pytest.mark.slow
def test_a_network_of_a_thousand_layers_is_summed_up_on_a_page() -> None:
    deep = config(*TINY, "backbone=resnet1202", "method=baseline")
    before = torch.get_rng_state()
    begun = time.perf_counter()
    text = summary(deep, (32, 32))
    assert time.perf_counter() - begun < 20
    assert torch.equal(torch.get_rng_state(), before)
    assert len(text.splitlines()) < 60
    (row,) = [
        line
        for line in text.splitlines()
        if line.startswith("backbone.stage1.1 to backbone.stage1.199 ")
    ]
    assert "199 x BasicBlock, as backbone.stage1.0" in row
    assert row.endswith(f"{199 * (2 * 16 * 16 * 9 + 2 * 32):,}")


def test_a_network_that_cannot_be_summed_up_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no such operation on the meta device")

    monkeypatch.setattr("dks.training.run.summary", broken)
    assert not finished_run(tmp_path).model_file.exists()
    assert "the network could not be summed up" in caplog.text
