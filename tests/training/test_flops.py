"""Parameters and floating-point operations of networks, counted before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dks.config.errors import RequestError
from dks.data.sizes import image_size
from dks.models import build_network
from dks.objectives.objective import Objective
from dks.training import flops as counting
from dks.training.flops import flops
from tests.conftest import config, finished_run

SYNTHETIC = (
    "data=synthetic",
    "data.image_size=8",
    "data.train_images=100",
    "data.test_images=50",
    "data.pad=1",
    "threads=1",
)


def test_flops_of_a_convolutional_network_are_those_computed_by_hand() -> None:
    plain = flops(config("backbone=resnet8", "method=baseline", *SYNTHETIC))
    stem = 2 * 3 * 16 * 9 * 64  # of 8x8 pixels, two operations each
    stage1 = 2 * (2 * 16 * 16 * 9 * 64)
    stage2 = 2 * (16 + 32) * 32 * 9 * 16
    stage3 = 2 * (32 + 64) * 64 * 9 * 4
    classifier = 2 * 64 * 10
    forward = stem + stage1 + stage2 + stage3 + classifier
    assert plain.inference == plain.forward == forward
    # Backward: the gradient of the weights and that of the input each cost what forward does, and
    #     the images need none.
    assert plain.step == 3 * forward - stem


def test_activations_are_what_the_convolutions_and_activation_functions_keep() -> None:
    def kept(*overrides: str) -> int:
        return flops(
            config("backbone=resnet8", "method=baseline", *SYNTHETIC, *overrides)
        ).activations

    image, stages, features = 3 * 64, 16 * 64 + 2 * (16 * 64 + 32 * 16 + 64 * 4), 64
    assert kept() == pytest.approx(4 * (image + stages + features), rel=0.15)
    assert kept("data.image_size=16") == pytest.approx(4 * kept(), rel=0.12)
    assert kept("backbone.activation_checkpointing=true") < 0.7 * kept()


@pytest.mark.slow
def test_activations_of_folded_blocks_are_those_of_all() -> None:
    """Beyond the blocks that differ, each of ResNet-1202's takes what each of ResNet-110's does."""
    shallow, deep = (
        flops(
            config(
                f"backbone={name}",
                "method=baseline",
                "backbone.activation_checkpointing=false",
                *SYNTHETIC,
            )
        ).activations
        for name in ("resnet110", "resnet1202")
    )
    assert deep - shallow == pytest.approx((1202 - 110) / (110 - 2) * shallow, rel=0.1)


def test_flops_of_resnet18_are_twice_its_published_multiplications_and_additions() -> None:
    given = config(
        "backbone=resnet18", "data=synthetic", "data.image_size=224", "data.num_classes=1000"
    )
    counted = flops(given)
    # torchvision's table of weights
    assert counted.inference == pytest.approx(2 * 1.814e9, rel=1e-3)
    assert (counted.parameters, counted.training_parameters) == (11_689_512, 53_483_512)


def test_a_step_of_resnet32_with_branches_is_about_three_forward_passes() -> None:
    counted = flops(config("backbone=resnet32", "data=synthetic", "data.num_classes=100"))
    assert (counted.parameters, counted.training_parameters) == (470_004, 2_147_644)
    assert counted.inference < counted.forward
    assert counted.step == pytest.approx(3 * counted.forward, rel=0.01)


def test_a_step_of_mobilenet_is_about_three_forward_passes() -> None:
    counted = flops(
        config("backbone=mobilenet", "method=baseline", "data=synthetic", "data.num_classes=100")
    )
    assert counted.step == pytest.approx(3 * counted.forward, rel=0.01)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("layer", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_the_gradients_of_a_convolution_cost_what_it_costs_itself_however_its_channels_are_grouped(
    layer: type[torch.nn.Conv2d], groups: int
) -> None:
    convolution = layer(8, 16, 3, stride=2, padding=1, groups=groups, bias=False).to("meta")
    with counting.counter() as counter:
        output = convolution(torch.empty(4, 8, 6, 6, device="meta", requires_grad=True))
        forward = counter.get_total_flops()
        output.sum().backward()
    positions = 6 * 6 if layer is torch.nn.ConvTranspose2d else 3 * 3
    assert forward == 2 * 4 * positions * 9 * 8 * 16 // groups
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize(
    "backbone",
    [
        ("backbone=resnet32",),
        ("backbone=densenet40_12", "backbone.depth=13"),
        ("backbone=wrn28_4", "backbone.width=1"),
        ("backbone=mobilenet",),
        ("backbone=resnet50", "data.image_size=64"),
        ("backbone=resnet32", "method=single", "positions=c2"),
        ("backbone=resnet20", "aux=ap_conv_2fc", "positions=c3"),
    ],
)
def test_flops_agree_with_the_counter_run_over_the_whole_network(
    backbone: tuple[str, ...], checkpointing: str
) -> None:
    given = config(*SYNTHETIC, *backbone, f"backbone.activation_checkpointing={checkpointing}")
    with torch.device("meta"):
        network = build_network(given, initialise=False)
        image = torch.empty(1, 3, *(image_size(given.data) or ()))
        label = torch.zeros(1, dtype=torch.int64)
    with counting.counter() as counter:
        logits = network.train()(image)
        forward = counter.get_total_flops()
        objective = Objective(given, None)
        objective(logits, label, objective.observe(image)).total.backward()
    counted = flops(given)
    assert (counted.forward, counted.step) == (forward, counter.get_total_flops())
    with torch.no_grad(), counting.counter() as counter:
        network.strip().eval()(image)
    assert counted.inference == counter.get_total_flops()


def test_flops_of_resnet1202_are_those_of_all_its_layers_and_of_what_is_computed_again() -> None:
    counted = flops(config("backbone=resnet1202", "data=synthetic", "data.num_classes=100"))
    # As the counter says after a minute of the whole network.
    assert (counted.inference, counted.forward, counted.step) == (
        5_658_489_344,
        6_625_877_504,
        26_501_650_944,
    )
    assert counted.parameters == 19_427_124


def test_a_step_includes_the_teachers_forward_pass() -> None:
    data = ("data=synthetic", "data.num_classes=1000", "threads=1")
    alone = flops(config("backbone=resnet8", "method=baseline", *data))
    taught = flops(config("backbone=resnet8", "method=kd_c1", "teacher=resnet50", *data))
    # as it was trained
    teacher = flops(config("backbone=resnet50", "method=baseline", *data, "data.image_size=224"))
    assert taught.step - alone.step == teacher.inference
    assert taught.training_parameters == alone.training_parameters


def test_counting_leaves_the_random_state_alone() -> None:
    counting._counted.clear()
    before = torch.get_rng_state()
    flops(config("backbone=resnet8", *SYNTHETIC))
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_knows_the_operations_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path, "data.holdout=16", "compute=deterministic")
    record = run.read_record()
    assert record is not None
    step = flops(run.read_config()).step
    assert record.cost["training_flops"] == step * (64 - 16) * 2 > 0, "48 images, two epochs"

    def unknown(config: Any) -> Any:
        raise RequestError("no image is there to see how large it is")

    monkeypatch.setattr(counting, "flops", unknown)
    other = finished_run(tmp_path, "seed=1").read_record()
    assert other is not None
    assert "training_flops" not in other.cost
