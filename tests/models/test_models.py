"""Networks and branches: parameter counts of the specification, structure, gradients, stripping."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dks
from dks.config.errors import RequestError
from dks.models.cifar_resnet import BasicBlock
from dks.models.network import SupervisedNetwork

DESIGNS = ("ours", "narrow", "shallow", "ap_2fc", "ap_conv_2fc")
POSITIONS = (("c2",), ("c3",), ("c2", "c3"))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Trainable parameters for 100 classes, as the specification counts them.
@pytest.mark.parametrize(
    ("name", "bare", "whole"),
    [("resnet32", 470_004, 2_147_644), ("resnet110", 1_733_812, 7_770_108)],
)
def test_parameter_counts_of_the_specification(name: str, bare: int, whole: int) -> None:
    with torch.device("meta"):
        assert parameters(dks.build(name, 100)) == bare
        net = dks.build(name, 100, "ours", ("c2", "c3"))
    assert parameters(net) == whole
    assert parameters(net.strip()) == bare


@pytest.mark.parametrize(("depth", "bare"), [(8, 75_290), (20, 269_722)])
def test_parameter_counts_of_the_small_ones(depth: int, bare: int) -> None:
    """For 10 classes; by hand.

    3x3 convolutions and their batch normalisations, no shortcut parameters, one linear layer.
    """
    n = (depth - 2) // 6
    by_hand = 27 * 16 + 32 + 64 * 10 + 10
    for before, width in ((16, 16), (16, 32), (32, 64)):
        by_hand += 9 * before * width + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
    assert parameters(dks.build(f"resnet{depth}", 10)) == by_hand == bare


@pytest.mark.rest_slow(31)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("side", [8, 9, 32])
def test_every_design_at_every_position_gives_logits_of_every_classifier(
    design: str, positions: tuple[str, ...], side: int
) -> None:
    net = dks.build("resnet8", 7, design, positions)
    logits = net(torch.randn(3, 3, side, side))
    assert list(logits) == ["c1", *positions] == list(net.classifiers)
    assert {tuple(z.shape) for z in logits.values()} == {(3, 7)}
    torch.stack([z.square().sum() for z in logits.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_designs_differ_as_their_names_say() -> None:
    def convolutions(design: str) -> list[tuple[int, int]]:
        net = dks.build("resnet32", 10, design, ("c3",))
        return [
            (m.in_channels, m.out_channels)
            for m in net.branches["c3"].modules()
            if isinstance(m, nn.Conv2d)
        ]

    assert convolutions("ours") == [(16, 32)] + 9 * [(32, 32)] + [(32, 64)] + 5 * [(64, 64)]
    assert convolutions("narrow") == 10 * [(16, 16)] + [(16, 32)] + 5 * [(32, 32)]
    assert convolutions("shallow") == [(16, 32), (32, 32), (32, 64), (64, 64)]
    assert convolutions("ap_2fc") == []
    assert convolutions("ap_conv_2fc") == [(16, 128)]


def test_strip_leaves_exactly_the_plain_backbone() -> None:
    torch.manual_seed(0)
    plain = dks.build("resnet8", 10).strip()
    torch.manual_seed(0)
    net = dks.build("resnet8", 10, "ours", ("c2", "c3"))
    images = torch.randn(4, 3, 32, 32)
    before = net.eval()(images)["c1"]
    stripped = net.strip()
    assert list(stripped.state_dict()) == list(plain.state_dict())
    assert str(stripped) == str(plain)
    assert not any(module._forward_hooks for module in stripped.modules())
    # One seed gives the backbone the same initial weights with and without branches.
    assert all(
        torch.equal(a, b)
        for a, b in zip(stripped.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert torch.equal(stripped(images), before)
    assert torch.equal(stripped(images), plain.eval()(images))


@pytest.mark.parametrize(
    ("classifier", "feeds", "does_not"),
    [
        ("c3", ("stem", "stage1"), ("stage2", "stage3", "head")),
        ("c2", ("stem", "stage1", "stage2"), ("stage3", "head")),
    ],
)
def test_a_branch_depends_on_the_layers_before_its_place_and_no_deeper_one(
    classifier: str, feeds: tuple[str, ...], does_not: tuple[str, ...]
) -> None:
    net = dks.build("resnet20", 10, "ours", ("c2", "c3"))
    net(torch.randn(4, 3, 16, 16))[classifier].square().sum().backward()
    for name, module in net.backbone.named_children():
        gradients = [
            parameter.grad is not None and bool(parameter.grad.any())
            for parameter in module.parameters()
        ]
        assert name in feeds + does_not
        assert all(gradients) if name in feeds else not any(gradients)


def test_the_shortcut_is_option_a() -> None:
    """2x2 average pooling, then zero channels behind the real ones.

    Seen by switching the residual path off.
    """
    block = BasicBlock(2, 5, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.allclose(out[:, :2], nn.functional.avg_pool2d(x, 2))
    assert not out[:, 2:].any()
    assert BasicBlock(2, 5, stride=2)(torch.rand(1, 2, 5, 5)).shape == (1, 5, 3, 3)


def test_convolutions_start_with_he_initialisation() -> None:
    torch.manual_seed(0)
    net = dks.build("resnet110", 10, "ours", ("c2",))
    convolution = net.branches["c2"].get_submodule("stage1.1.conv1")
    assert isinstance(convolution, nn.Conv2d)
    assert float(convolution.weight.detach().std()) == pytest.approx(
        (2 / (9 * convolution.out_channels)) ** 0.5, rel=0.02
    )


def test_a_network_can_be_copied_and_the_copy_lives_alone() -> None:
    net = dks.build("resnet8", 10, "ours", ("c3",)).eval()
    twin = copy.deepcopy(net)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        next(iter(twin.branches["c3"].parameters())).zero_()
        assert torch.equal(net(images)["c1"], twin(images)["c1"])
        assert not torch.equal(net(images)["c3"], twin(images)["c3"])


def test_any_module_can_carry_branches() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    net = SupervisedNetwork(backbone, {"c2": head}, {"c2": "1"})
    logits = net(torch.randn(2, 3, 8, 8))
    assert list(logits) == ["c1", "c2"]
    assert net.strip() is backbone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet33", 10), "backbone=resnet33: no such choice; choose from"),
        (("resnet8", 10, "oars", ("c2",)), "aux_design=oars: no such choice"),
        (("resnet8", 10, "ours", ("c4",)), "c4 is not a place in this backbone; it has c2, c3"),
        (("resnet8", 10, "ours", ()), "give both or neither"),
        (("resnet8", 10, "none", ("c2",)), "give both or neither"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        dks.build(*arguments)  # type: ignore[arg-type]


def test_the_number_of_downsamplings_is_checked() -> None:
    from dks.config.files import load_choice
    from dks.config.schema import AuxDesign, AuxPositions, Backbone, Branch, Config, Data, Stage
    from dks.models import build_network

    backbone = load_choice("backbone", "resnet8", Backbone)
    backbone.branches["c3"] = Branch([Stage(1, 32)])
    config = Config(
        backbone=backbone,
        aux_design=load_choice("aux_design", "ours", AuxDesign),
        aux_positions=AuxPositions(["c3"]),
        data=Data(num_classes=10),
    )
    with pytest.raises(RequestError, match="same number of down-samplings"):
        build_network(config)
