"""Several processes under torchrun (gloo, on the CPU).

The same loss, exact evaluation, one record.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dks
from dks.data.batches import Normalise, TestBatches, TrainingBatches
from dks.data.images import ImageSet
from dks.machine.world import World
from tests.conftest import ROOT, TINY

CPU = torch.device("cpu")


def torchrun(folder: Path, processes: int, *arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
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
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_the_weighted_mean_over_parts_is_the_mean_over_the_batch(count: int) -> None:
    """In every process, for every size of a batch, an image less than processes included."""
    losses = torch.rand(count, dtype=torch.float64)
    parts = [World(rank, 3).shard(torch.arange(count)) for rank in range(3)]
    assert sum(float(losses[part].mean()) * weight for part, weight in parts) / 3 == pytest.approx(
        float(losses.mean())
    )
    seen = torch.cat([part for part, weight in parts if weight]).tolist()
    assert sorted(seen) == list(range(count)), "each image once"


def test_all_parts_of_a_training_batch_make_up_the_batch_of_one_process() -> None:
    images = ImageSet(torch.randint(0, 256, (37, 3, 4, 4), dtype=torch.uint8), torch.arange(37))
    plain = Normalise([0.0] * 3, [1.0] * 3, CPU)

    def epoch(world: World) -> list[object]:
        return list(TrainingBatches(images, 10, 0, 1, True, plain, CPU, world=world).epoch(1))

    for whole, one, other in zip(
        epoch(World()), epoch(World(0, 2)), epoch(World(1, 2)), strict=True
    ):
        assert torch.equal(torch.cat([one.images, other.images]), whole.images)  # type: ignore[attr-defined]
        assert torch.equal(torch.cat([one.labels, other.labels]), whole.labels)  # type: ignore[attr-defined]


def test_every_test_image_is_counted_once_over_an_uneven_split() -> None:
    images = ImageSet(torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8), torch.arange(11))
    plain = Normalise([0.0] * 3, [1.0] * 3, CPU)
    seen = [
        labels
        for rank in range(4)
        for _, labels in TestBatches(images, 2, plain, CPU, World(rank, 4))
    ]
    assert sorted(torch.cat(seen).tolist()) == list(range(11))


ENDING = """
import atexit, sys
from dks import __main__
from dks.cli import main as cli

class Last:
    def __del__(self):
        print("Python took itself apart")

def main():
    print("the last words")
    sys.exit({left})

last, cli.main = Last(), main
atexit.register(print, "what was to be done at the end")
__main__.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("left", "status"), [("3", 3), ("None", 0)])
def test_who_trained_with_others_is_gone_before_python_takes_itself_apart(
    left: str, status: int
) -> None:
    """Threads of collectives that are left would abort the process of a run that is done."""
    command = [sys.executable, "-c", ENDING.format(left=left)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert (ended.returncode, ended.stderr) == (status, "")
    assert ended.stdout.splitlines() == ["the last words", "what was to be done at the end"]


# What one process of two does: a step and an evaluation, with batch normalisation in evaluation
# mode, where it does not depend on how a batch is divided. It prints the losses, the gradient and
# the metrics.
STEP = """
import json, sys, torch
import dks
from dks.data.batches import Normalise, TestBatches, TrainingBatches
from dks.data.images import ImageSet
from dks.training.finite import FiniteGuard
from dks.training.metrics import Tally, test_losses
from dks.machine.world import World

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
world, cpu = World.join(), torch.device("cpu")
draw = torch.Generator().manual_seed(0)
images = ImageSet(torch.randint(0, 256, (13, 3, 8, 8), dtype=torch.uint8, generator=draw), torch.arange(13) % 5)
torch.manual_seed(world.rank)  # other weights in every process: rank 0's count
net = dks.build("resnet8", 5, "ours", ("c2", "c3")).eval()
replica = world.replicate(net)
normal = Normalise([0.5] * 3, [0.25] * 3, cpu)
losses, guard = [], FiniteGuard(world)
for batch in TrainingBatches(images, 7, 3, 1, True, normal, cpu, world=world).epoch(1):
    loss = dks.SynergyLoss("bidir")(replica(batch.images.double()), batch.labels)
    guard.check(1, 1, loss, batch.weight)
    losses.append(guard._last_good)
    (loss.total * batch.weight).backward()
tally = Tally()
with torch.no_grad():
    for x, y in TestBatches(images, 2, normal, cpu, world):
        tally.add_losses(test_losses(net(x.double()), y), len(y))
        tally.add_errors(net(x.double()), y, top=(1, 5))
metrics = tally.read("test", world)
gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
if world.is_main:
    print(json.dumps({"losses": losses, "metrics": metrics, "norm": float(gradient.norm()), "some": gradient[::5000].tolist()}))
world.leave()
"""  # noqa: E501


@pytest.mark.slow
def test_two_processes_have_the_loss_the_gradient_and_the_errors_of_one(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(STEP)
    results = []
    for processes in (1, 2):
        status, out, err = torchrun(tmp_path, processes, "step.py")
        assert status == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    one, two = results
    assert len(one["losses"]) == 2
    for whole, parts in zip(one["losses"], two["losses"], strict=True):
        assert parts == pytest.approx(whole, rel=1e-9)
    # test losses are computed in float32
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-9)
    assert two["some"] == pytest.approx(one["some"], rel=1e-6, abs=1e-12)


@pytest.mark.slow
def test_a_sweep_under_torchrun_leaves_one_record_a_cell_and_one_table(tmp_path: Path) -> None:
    train = str(ROOT / "train.py")
    arguments = ["-m", "aux=ours,shallow", *TINY, "data.test_images=33", "tracking=off"]
    status, out, err = torchrun(tmp_path, 2, train, *arguments)
    assert status == 0, err
    assert out.count("shallow") == 1, "one process prints"
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json")]
    assert [(record["status"], record["attempts"][0]["processes"]) for record in records] == [
        ("done", 2)
    ] * 2
    for path in tmp_path.glob("runs/*/metrics.jsonl"):
        assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]
        errors = json.loads(path.read_text().splitlines()[-1])["metrics"]["test/top1_error"]
        assert errors * 33 / 100 == pytest.approx(round(errors * 33 / 100)), (
            "a whole number of 33 images"
        )
        _, *rows = [
            row.split(",") for row in (path.parent / "confusion.csv").read_text().splitlines()
        ]
        c1 = [
            (true, predicted, int(images))
            for classifier, true, predicted, images in rows
            if classifier == "c1"
        ]
        assert sum(images for _, _, images in c1) == 33, "those of both processes"
        assert 100 * sum(
            images for true, predicted, images in c1 if true != predicted
        ) / 33 == pytest.approx(errors)
    status, _, err = torchrun(tmp_path, 2, train, *arguments)
    assert status == 0
    assert "all 2 cells are done" in err


@pytest.mark.slow
def test_a_wrong_request_under_torchrun_ends_all_processes(tmp_path: Path) -> None:
    status, _, err = torchrun(tmp_path, 2, str(ROOT / "train.py"), "aux=typo")
    assert status != 0
    assert "error: aux=typo: no such choice" in err
    assert not list(tmp_path.glob("runs"))


def test_one_process_alone_is_not_replicated() -> None:
    net = dks.build("resnet8", 5)
    assert World().replicate(net) is net
