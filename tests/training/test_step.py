"""The fast training step computes what a plainly written loop computes."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from dks.config.schema import Config, Strategy
from dks.data import load
from dks.data.batches import Batch, Normalise, channel_statistics, training_batches
from dks.models import build_network
from dks.results.study import Study
from dks.training.step import Step
from tests.conftest import config, sampled, train

CPU = torch.device("cpu")
STEPS = 50
HALF = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class PlainLoop:
    """Equation (4) term by term, torch's SGD with one update after another, tensors as torch lays
    them out.
    """

    def __init__(self, given: Config, network: nn.Module, half: torch.dtype | None = None) -> None:
        self.network, self.half, recipe = network, half, given.recipe
        self.matched = given.matching_strategy.name != Strategy.none
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            foreach=False,
        )

    def step(self, batch: Batch) -> float:
        with torch.autocast("cpu", self.half or torch.bfloat16, enabled=self.half is not None):
            logits: dict[str, Tensor] = self.network(batch.images.contiguous())
        if self.half is not None:
            logits = {name: z.float() for name, z in logits.items()}
        loss = torch.stack([F.cross_entropy(z, batch.labels) for z in logits.values()]).sum()
        for m, teacher in logits.items():
            for n, student in logits.items():
                if m != n and self.matched:
                    loss = (
                        loss
                        - (F.softmax(teacher.detach(), dim=1) * F.log_softmax(student, dim=1))
                        .sum(dim=1)
                        .mean()
                    )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def batches(given: Config) -> Iterator[Batch]:
    images, _ = load(given.data)
    made = training_batches(given, images, Normalise(*channel_statistics(given, images), CPU), CPU)
    epoch = 0
    while True:
        epoch += 1
        yield from made.epoch(epoch)


def both(given: Config, precision: str = "fp32") -> tuple[PlainLoop, Step]:
    torch.manual_seed(0)
    network = build_network(given)
    fast = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return PlainLoop(given, network, HALF[precision]), Step(given, fast, CPU)


def taken(step: Step, batch: Batch) -> float:
    outputs = step.forward(batch)
    step.update(outputs, batch)
    return outputs.loss.total.item()


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    "network",
    [("backbone=densenet40_12", "backbone.depth=16"), ("backbone=resnet8",)],
    ids=lambda given: given[0],
)
def test_fifty_steps_are_those_of_a_plain_loop(network: tuple[str, ...]) -> None:
    """In float64.

    What rounding does to a loss grows tenfold every ten steps, in float32 too soon to tell it from
    an error.
    """
    given = config(
        "data=synthetic",
        "data.image_size=8",
        "data.pad=1",
        "data.train_images=64",
        "threads=1",
        *network,
    )
    given.recipe.batch_size, given.recipe.lr = 8, 0.01
    plain, fast = both(given)
    for part in (plain.network, fast.network):
        part.double()
    for _, batch in zip(range(STEPS), batches(given), strict=False):
        wide = Batch(batch.images.double(), batch.labels)
        assert taken(fast, wide) == pytest.approx(plain.step(wide), rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance", "steps"),
    [("fp32", 2e-5, STEPS), ("bf16", 3e-2, STEPS), ("fp16", 3e-3, 3)],  # float16 is slow on a CPU
)
def test_each_step_is_a_plain_one_from_the_same_weights(
    precision: str, tolerance: float, steps: int
) -> None:
    """In the precision itself.

    The plain loop goes on from where the fast path is, so that rounding does not add up.
    """
    given = config("threads=1", f"compute.precision={precision}")
    plain, fast = both(given, precision)
    for _, batch in zip(range(steps), batches(given), strict=False):
        plain.network.load_state_dict(fast.network.state_dict())
        assert taken(fast, batch) == pytest.approx(plain.step(batch), rel=tolerance)


def test_losses_and_weights_stay_in_float32_whatever_the_network_computes_in() -> None:
    for precision, half in HALF.items():
        given = config(f"compute.precision={precision}", "threads=1", "recipe.batch_size=4")
        _, fast = both(given)
        batch = next(batches(given))
        outputs = fast.forward(batch)
        fast.update(outputs, batch)
        assert {z.dtype for z in outputs.logits.values()} == {half or torch.float32}
        assert {value.dtype for value in (outputs.loss.total, *outputs.loss.parts.values())} == {
            torch.float32
        }
        assert {value.dtype for value in fast.network.state_dict().values()} <= {
            torch.float32,
            torch.int64,
        }


def test_a_float16_step_whose_gradients_overflow_is_left_out() -> None:
    given = config("compute.precision=fp16", "threads=1", "recipe.batch_size=4")
    _, fast = both(given)
    batch, before = next(batches(given)), copy.deepcopy(fast.network.state_dict())
    fast.load_state_dict(
        {**fast.state_dict(), "scaler": {**fast.state_dict()["scaler"], "scale": 2.0**30}}
    )
    taken(fast, batch)
    parameters = dict(fast.network.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in parameters.items())
    assert fast.state_dict()["scaler"]["scale"] == 2.0**29
    taken(fast, batch)  # and so on, until it fits
    other = both(given)[1]
    other.load_state_dict(fast.state_dict())
    assert other.state_dict()["scaler"] == fast.state_dict()["scaler"]


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler"
)
def test_a_compiled_step_is_the_plain_one() -> None:
    given = config("threads=1", "compute.compile=true", "method=ds")
    plain, fast = both(given)
    for _, batch in zip(range(3), batches(given), strict=False):
        plain.network.load_state_dict(fast.network.state_dict())
        assert taken(fast, batch) == pytest.approx(plain.step(batch), rel=1e-4)


@pytest.mark.slow
def test_after_full_training_the_fast_way_errs_as_the_standard_one_within_the_noise_of_seeds(
    tmp_path: Path,
) -> None:
    folders = (f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}")
    seeds = sampled("1,2,3,4,5", "1,2,3")
    status, out, err = train(
        tmp_path,
        "-m",
        "compute=standard,fast",
        f"seed={seeds}",
        "tracking=off",
        "threads=1",
        *folders,
    )
    assert status == 0, err
    assert "computed with precision=bf16 tf32=true: fast" in out
    table = Study.open("compute", results_dir=str(tmp_path / "results")).table()
    standard, fast = (table.cells[(way,), ()].numbers[0].values for way in ("standard", "fast"))
    assert len(standard) == len(fast) == len(seeds.split(","))
    assert stats.ttest_ind(standard, fast, equal_var=False).pvalue > 0.01, (standard, fast)
    assert max(fast) < 4, "percent; chance is 90"


# --- the steps that the scaling of float16 skips


@pytest.fixture
def dirty_memory() -> Iterator[None]:
    """Memory that nobody has written to holds NaN, not by chance the zeros of a fresh page."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def scaled_by(step: Step, scale: float) -> None:
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": scale})


@pytest.mark.parametrize("form", ["recipe.nesterov=false", "recipe.nesterov=true"])
def test_a_skipped_step_leaves_no_momentum_whenever_it_begins_anew(
    dirty_memory: None, form: str
) -> None:
    """The first step, and the first one behind a milestone that forgets the momentum.

    A gradient is infinite, nothing changes, and the next step is that of an optimiser that has seen
    nothing.
    """
    given = config(
        "data=synthetic", "data.image_size=8", "recipe.batch_size=8", "compute.precision=fp16", form
    )
    source = batches(given)
    _, step = both(given, "fp16")
    for _ in range(2):
        before = copy.deepcopy(step.network)
        scaled_by(step, 2.0**100)
        taken(step, next(source))
        for name, value in step.network.named_parameters():
            assert torch.equal(value, dict(before.named_parameters())[name]), "skipped"
        scaled_by(step, 1.0)
        batch = next(source)
        fresh = Step(given, copy.deepcopy(step.network), CPU)
        scaled_by(fresh, 1.0)
        assert taken(step, batch) == taken(fresh, batch)
        for one, other in zip(step.network.parameters(), fresh.network.parameters(), strict=True):
            assert torch.isfinite(one).all()
            assert torch.equal(one, other)
        step.optimizer.state.clear()


@pytest.mark.parametrize("form", ["recipe.nesterov=false", "recipe.nesterov=true"])
def test_a_momentum_of_zero_is_bitwise_none(form: str) -> None:
    """What torch does without buffers, whose first step makes them of the gradient."""
    given = config("data=synthetic", "data.image_size=8", "recipe.batch_size=8", form)
    _, ours = both(given)
    theirs = Step(given, copy.deepcopy(ours.network), CPU)
    source = batches(given)
    for _ in range(3):
        batch = next(source)
        taken(ours, batch)
        theirs.optimizer.zero_grad()
        theirs.forward(batch).loss.total.backward()
        theirs.optimizer.step()
    for one, other in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        assert torch.equal(one, other)
