"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from dks.config.schema import Config
from dks.data.batches import Batch
from dks.machine.interruption import Interrupted
from dks.models import build_network
from dks.runs.record import RunFolder
from dks.training.arithmetic import choose_operations
from dks.training.run import Outcome, run_cell
from dks.training.step import Step
from tests.conftest import assert_same_result, config, queued, raise_at
from tests.training.test_step import batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

STEPS = 20


def losses(given: Config) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Of steps of the usual size, with a smaller one in between; and the weights after them."""
    choose_operations(given.compute)
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    network = build_network(given).to(device).to(memory_format=torch.channels_last)
    step, found = Step(given, network, device), []
    for number, batch in zip(range(STEPS), batches(given), strict=False):
        images, labels = batch.images.to(device), batch.labels.to(device)
        here = Batch(images[:7], labels[:7]) if number == STEPS // 2 else Batch(images, labels)
        outputs = step.forward(here)
        found.append(outputs.loss.total.item())
        step.update(outputs, here)
    return found, copy.deepcopy(network.state_dict())


@pytest.mark.parametrize("network", ["backbone=resnet8", "backbone=wrn28_10_dropout"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_recorded_step_computes_what_a_launched_one_does(network: str, precision: str) -> None:
    overrides = (
        network,
        "data=synthetic",
        "data.image_size=16",
        "data.train_images=640",
        f"compute.precision={precision}",
    )
    launched, weights = losses(config(*overrides, "compute.deterministic=true"))
    recorded, others = losses(
        config(*overrides, "compute.deterministic=true", "compute.cuda_graphs=true")
    )
    assert recorded == pytest.approx(launched, rel=1e-2 if precision != "fp32" else 1e-4)
    for name, value in weights.items():
        assert torch.allclose(value.float(), others[name].float(), rtol=0.05, atol=0.02), name


def test_a_step_is_recorded_where_it_is_asked_for() -> None:
    device = torch.device("cuda", 0)
    given = config("data=synthetic", "compute=fast")
    network = build_network(given).to(device).to(memory_format=torch.channels_last)
    step = Step(given, network, device)
    batch = next(batches(given))
    here = Batch(batch.images.to(device), batch.labels.to(device))
    before = copy.deepcopy(network.state_dict())
    outputs = step.forward(here)
    assert step._graph is not None and step._graph.owns(outputs), (
        "a warning in the log says why it was not"
    )
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]), "only the update changes weights"
    # One pass, and not those of the warming up, has moved the statistics.
    assert {
        int(value)
        for name, value in network.state_dict().items()
        if name.endswith("num_batches_tracked")
    } == {1}


def test_a_deterministic_run_that_was_stopped_ends_bitwise_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dks.runs.terminal import RunView

    cell = ("compute=deterministic", "device=cuda", "data.train_images=320", "recipe.batch_size=64")
    whole, stopped = (
        RunFolder(queued(tmp_path / name, *cell).path) for name in ("whole", "stopped")
    )
    assert run_cell(whole.path) is Outcome.done
    with monkeypatch.context() as patched:
        patched.setattr(RunView, "stepped", raise_at(7, Interrupted("SIGTERM")))
        with pytest.raises(Interrupted):
            run_cell(stopped.path)
    assert run_cell(stopped.path) is Outcome.done
    assert_same_result(whole, stopped)


def test_an_epoch_tells_the_seconds_of_its_phases_and_what_the_gpu_did(tmp_path: Path) -> None:
    folder = queued(tmp_path, "device=cuda", "data.train_images=640")
    assert run_cell(folder.path) is Outcome.done
    for entry in folder.journal.read():
        phases = [entry.metrics[f"time/{phase}"] for phase in ("data", "forward", "backward")]
        assert min(phases) > 0
