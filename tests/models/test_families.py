"""DenseNets, WRNs and MobileNet.

Parameter counts of the specification, structure, and all of them against plain formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dks
from dks.config.errors import RequestError
from dks.config.files import load_choice
from dks.config.schema import AuxDesign, AuxPositions, Backbone, Branch, Config, Data, Stage
from dks.models import build_network
from dks.models.mobilenet import SeparableBlock
from dks.models.network import SupervisedNetwork
from dks.models.wrn import PreActivationBlock

BACKBONES = ("densenet40_12", "wrn28_4", "mobilenet")  # the smallest of each family
DESIGNS = ("ours", "narrow", "shallow", "ap_2fc", "ap_conv_2fc")
POSITIONS = (("c2",), ("c3",), ("c2", "c3"))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def network(spec: Backbone, positions: tuple[str, ...] = ("c2", "c3")) -> SupervisedNetwork:
    """A network that no configuration file describes, with branches of the design "ours" and 5
    classes.
    """
    design = load_choice("aux_design", "ours" if positions else "none", AuxDesign)
    torch.manual_seed(0)
    return build_network(
        Config(
            backbone=spec,
            aux_design=design,
            aux_positions=AuxPositions(list(positions)),
            data=Data(source="", num_classes=5),
        )
    )


def wrn(depth: int, k: int, dropout: float = 0.0) -> Backbone:
    """A small WRN, its branches in the proportions of the specification."""
    n = (depth - 4) // 6
    c3 = Branch([Stage(n, 32 * k), Stage(max(n // 2, 1), 64 * k)])
    return Backbone(
        "wrn",
        depth,
        width=k,
        dropout=dropout,
        branches={"c3": c3, "c2": Branch([Stage(n, 128 * k)])},
    )


def densenet(depth: int, growth: int) -> Backbone:
    """A small DenseNet, its branches in the proportions of DenseNet-40-12."""
    n = (depth - 4) // 3
    c3 = Branch([Stage(n, growth), Stage(max(n // 2, 1), growth)])
    return Backbone(
        "densenet", depth, growth=growth, branches={"c3": c3, "c2": Branch([Stage(n, 3 * growth)])}
    )


# Trainable parameters for 100 classes, as the specification counts them; its table gives the
# branches in millions.
@pytest.mark.parametrize(
    ("name", "bare", "whole", "c3", "c2"),
    [
        ("densenet40_12", 1_060_132, 3_749_364, 0.65, 2.04),
        ("densenet100_12", 7_084_852, 23_776_604, 2.49, 14.20),
        ("wrn28_4", 5_872_180, 26_343_548, 3.24, 17.23),
        ("wrn28_10", 36_536_884, 164_146_364, 20.15, 107.46),
        ("wrn28_10_dropout", 36_536_884, 164_146_364, 20.15, 107.46),
        ("mobilenet", 3_309_476, 11_431_276, 2.64, 5.48),
    ],
)
def test_parameter_counts_of_the_specification(
    name: str, bare: int, whole: int, c3: float, c2: float
) -> None:
    with torch.device("meta"):
        assert parameters(dks.build(name, 100)) == bare
        net = dks.build(name, 100, "ours", ("c2", "c3"))
    assert parameters(net) == whole
    assert round(parameters(net.branches["c3"]) / 1e6, 2) == c3
    assert round(parameters(net.branches["c2"]) / 1e6, 2) == c2
    assert parameters(net.strip()) == bare


@pytest.mark.rest_slow(6)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_design_at_every_position_trains_every_parameter(
    name: str, design: str, positions: tuple[str, ...]
) -> None:
    net = dks.build(name, 7, design, positions)
    logits = net(torch.randn(2, 3, 8, 8))
    assert list(logits) == ["c1", *positions] == list(net.classifiers)
    assert {tuple(z.shape) for z in logits.values()} == {(2, 7)}
    torch.stack([z.square().sum() for z in logits.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("name", BACKBONES)
def test_odd_sizes_work(name: str) -> None:
    net = dks.build(name, 7, "ours", ("c2", "c3"))
    for height, width in ((1, 1), (5, 9), (7, 6)):
        assert {tuple(z.shape) for z in net(torch.randn(2, 3, height, width)).values()} == {(2, 7)}


# Channels and side of the map where a branch starts, for images of 16x16, and the channels that
# each classifier pools.
@pytest.mark.parametrize(
    ("name", "c3", "c2", "pooled"),
    [
        ("densenet40_12", (160, 8), (304, 4), {"c1": 448, "c2": 736, "c3": 376}),
        ("wrn28_4", (64, 16), (128, 8), {"c1": 256, "c2": 512, "c3": 256}),
        ("mobilenet", (256, 16), (512, 8), {"c1": 1024, "c2": 2048, "c3": 1024}),
    ],
)
def test_places_and_final_resolution(
    name: str, c3: tuple[int, int], c2: tuple[int, int], pooled: dict[str, int]
) -> None:
    """Every classifier, the backbone's own too, pools a map of a quarter of the image's side."""
    net = dks.build(name, 7, "ours", ("c2", "c3")).eval()
    seen: dict[str, tuple[int, ...]] = {}

    def look(key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: seen.update({key: tuple(inputs[0].shape)})

    for classifier, module in (("c1", net.backbone), *net.branches.items()):
        module.get_submodule("head.pool").register_forward_pre_hook(look(f"pool of {classifier}"))
    for classifier, branch in net.branches.items():
        branch.register_forward_pre_hook(look(classifier))
    net(torch.randn(2, 3, 16, 16))
    assert seen == {
        "c3": (2, c3[0], c3[1], c3[1]),
        "c2": (2, c2[0], c2[1], c2[1]),
        **{f"pool of {classifier}": (2, channels, 4, 4) for classifier, channels in pooled.items()},
    }


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("densenet", {"depth": 41}, "backbone.depth=41 must be 3n\\+4 for a DenseNet"),
        ("densenet", {"depth": 4}, "backbone.depth=4 must be 3n\\+4"),
        ("densenet", {"growth": None}, "backbone.growth=None must be at least 1"),
        ("densenet", {"growth": 0}, "backbone.growth=0 must be at least 1"),
        ("wrn", {"depth": 20}, "backbone.depth=20 must be 6n\\+4 for a WRN"),
        ("wrn", {"depth": 4}, "backbone.depth=4 must be 6n\\+4"),
        ("wrn", {"width": None}, "backbone.width=None must be at least 1"),
        ("wrn", {"width": 0}, "backbone.width=0 must be at least 1"),
        ("wrn", {"dropout": 1.0}, "backbone.dropout=1.0 must be at least 0 and below 1"),
        ("wrn", {"dropout": -0.1}, "backbone.dropout=-0.1 must be at least 0"),
        ("wrn", {"dropout": float("nan")}, "backbone.dropout=nan must be at least 0"),
        ("mobilenet", {"depth": 27}, "backbone.depth=27 must be 28"),
    ],
)
def test_networks_that_do_not_exist_are_refused_in_one_line(
    family: str, changes: dict[str, object], message: str
) -> None:
    name = {"densenet": "densenet40_12", "wrn": "wrn28_4", "mobilenet": "mobilenet"}[family]
    spec = load_choice("backbone", name, Backbone)
    for key, value in changes.items():
        setattr(spec, key, value)
    with pytest.raises(RequestError, match=message) as refused:
        network(spec)
    assert "\n" not in str(refused.value)


@pytest.mark.rest_slow(3)
@pytest.mark.parametrize(
    ("name", "classifier", "feeds"),
    [
        ("densenet40_12", "c3", {"stem", "stage1", "transition1"}),
        ("densenet40_12", "c2", {"stem", "stage1", "transition1", "stage2", "transition2"}),
        ("wrn28_4", "c3", {"stem", "stage1"}),
        ("wrn28_4", "c2", {"stem", "stage1", "stage2"}),
        ("mobilenet", "c3", {"stem", "stage1"}),
        ("mobilenet", "c2", {"stem", "stage1", "stage2"}),
    ],
)
def test_a_branch_depends_on_the_layers_before_its_place_and_no_deeper_one(
    name: str, classifier: str, feeds: set[str]
) -> None:
    net = dks.build(name, 10, "ours", ("c2", "c3"))
    net(torch.randn(4, 3, 8, 8))[classifier].square().sum().backward()
    assert feeds < {child for child, _ in net.backbone.named_children()}
    for child, module in net.backbone.named_children():
        gradients = [
            parameter.grad is not None and bool(parameter.grad.any())
            for parameter in module.parameters()
        ]
        assert all(gradients) if child in feeds else not any(gradients)


@pytest.mark.parametrize("name", BACKBONES)
def test_strip_leaves_exactly_the_plain_backbone(name: str) -> None:
    torch.manual_seed(0)
    plain = dks.build(name, 10).strip()
    torch.manual_seed(0)
    net = dks.build(name, 10, "ours", ("c2", "c3"))
    images = torch.randn(4, 3, 8, 8)
    before = net.eval()(images)["c1"]
    stripped = net.strip()
    assert list(stripped.state_dict()) == list(plain.state_dict())
    assert str(stripped) == str(plain.eval())
    assert not any(module._forward_hooks for module in stripped.modules())
    # One seed gives the backbone the same initial weights with and without branches.
    assert all(
        torch.equal(a, b)
        for a, b in zip(stripped.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert torch.equal(stripped(images), before)
    assert torch.equal(stripped(images), plain(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_initial_weights(name: str) -> None:
    """He: a standard deviation of sqrt(2 / fan-out).

    9 connections leave a channel of a depthwise convolution.
    """
    torch.manual_seed(0)
    net = dks.build(name, 10, "ours", ("c2", "c3"))
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert {m.groups > 1 for m in convolutions} == (
        {False, True} if name == "mobilenet" else {False}
    )
    for m in convolutions:
        if m.weight.numel() > 2000:
            fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
            assert float(m.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        assert m.bias is None
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool((m.weight == 1).all()) and not m.bias.any() for m in norms)
    if name != "mobilenet":
        assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.Linear))


def test_a_narrow_wrn_branch_halves_the_resolution_without_a_new_width() -> None:
    """64 channels on 64 with stride 2: the shortcut has to be a convolution there, too."""
    first = dks.build("wrn28_4", 7, "narrow", ("c3",)).branches["c3"].get_submodule("stage1.0")
    assert isinstance(first, PreActivationBlock) and first.shortcut is not None
    assert first(torch.randn(2, 64, 8, 8)).shape == (2, 64, 4, 4)


def test_the_separable_block_is_depthwise_then_pointwise() -> None:
    """A channel of the input reaches only its own channel before the 1x1 convolution, and the 1x1
    only its own pixel.
    """
    block = SeparableBlock(4, 6, stride=1).eval()
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    (per_channel,) = torch.autograd.grad(block.depthwise(x)[0, 2].sum(), x)
    assert [bool(per_channel[0, c].any()) for c in range(4)] == [False, False, True, False]
    (per_pixel,) = torch.autograd.grad(block.pointwise(x)[0, :, 2, 3].sum(), x)
    assert per_pixel[0].any(dim=0).nonzero().tolist() == [[2, 3]]


def test_dropout_is_active_in_training_only_and_in_the_branches_too() -> None:
    net = network(wrn(10, 1, dropout=0.3))
    features = {"c2": torch.randn(4, 32, 8, 8), "c3": torch.randn(4, 16, 8, 8)}
    images = torch.randn(4, 3, 8, 8)
    for module, x in (
        (net.backbone, images),
        *((net.branches[name], features[name]) for name in ("c2", "c3")),
    ):
        module.train()
        assert not torch.equal(module(x), module(x))
        module.eval()
        assert torch.equal(module(x), module(x))
    blocks = [m for m in net.modules() if isinstance(m, PreActivationBlock)]
    assert len(blocks) == 3 + 2 + 1
    assert {block.dropout.p for block in blocks} == {0.3}
    # At test time it is as if it were not there.
    without = network(wrn(10, 1)).eval()
    without.load_state_dict(net.state_dict())
    assert all(torch.equal(net.eval()(images)[name], z) for name, z in without(images).items())


def test_dropout_lies_right_before_the_second_convolution() -> None:
    torch.manual_seed(0)
    block = PreActivationBlock(8, 8, stride=1, dropout=0.25).train()
    seen: dict[str, Tensor] = {}
    block.bn2.register_forward_hook(lambda module, inputs, output: seen.update(bn2=output))
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.update(conv2=inputs[0]))
    block(torch.randn(8, 8, 8, 8))
    activated = F.relu(seen["bn2"])
    kept = seen["conv2"] != 0
    assert torch.allclose(seen["conv2"][kept], activated[kept] / 0.75)
    assert float(kept.sum() / (activated > 0).sum()) == pytest.approx(0.75, abs=0.03)


def test_the_choices_set_dropout_where_the_paper_does() -> None:
    for name, dropout in (("wrn28_4", 0.0), ("wrn28_10", 0.0), ("wrn28_10_dropout", 0.3)):
        with torch.device("meta"):
            net = dks.build(name, 100, "ours", ("c2", "c3"))
        for part in (net.backbone, *net.branches.values()):
            assert {m.p for m in part.modules() if isinstance(m, nn.Dropout)} == {dropout}


class Formulas:
    """The networks of the specification written once more, as plain formulas over a dict of
    weights.

    Nothing here looks at the modules: which layers exist follows from the specification alone, and
    a weight that the network has and the formulas do not use is found out by its missing gradient.
    """

    def __init__(self, net: nn.Module, training: bool) -> None:
        self.weights = {
            name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()
        }
        self.statistics = {name: b.detach().clone() for name, b in net.named_buffers()}
        self.training = training

    def bn(self, x: Tensor, name: str) -> Tensor:
        mean, var = self.statistics[f"{name}.running_mean"], self.statistics[f"{name}.running_var"]
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.batch_norm(
            x, mean, var, weight, bias, training=self.training, momentum=0.1, eps=1e-5
        )

    def bn_relu(self, x: Tensor, name: str) -> Tensor:
        return self.bn(x, name).clamp(min=0)

    def conv(
        self, x: Tensor, name: str, stride: int = 1, padding: int = 1, groups: int = 1
    ) -> Tensor:
        return F.conv2d(
            x, self.weights[f"{name}.weight"], stride=stride, padding=padding, groups=groups
        )

    def classify(self, x: Tensor, name: str) -> Tensor:
        return (
            x.mean(dim=(2, 3)) @ self.weights[f"{name}.fc.weight"].T
            + self.weights[f"{name}.fc.bias"]
        )

    def wrn(self, images: Tensor, depth: int, k: int) -> dict[str, Tensor]:
        n = (depth - 4) // 6

        def group(
            x: Tensor, name: str, before: int, width: int, blocks: int, stride: int
        ) -> Tensor:
            for i in range(blocks):
                o1 = self.bn_relu(x, f"{name}.{i}.bn1")
                y = self.conv(o1, f"{name}.{i}.conv1", stride=stride if i == 0 else 1)
                o2 = self.bn_relu(y, f"{name}.{i}.bn2")
                z = self.conv(o2, f"{name}.{i}.conv2")
                widens = i == 0 and before != width
                x = z + (
                    self.conv(o1, f"{name}.{i}.shortcut", stride=stride, padding=0) if widens else x
                )
            return x

        def end(x: Tensor, name: str) -> Tensor:
            return self.classify(self.bn_relu(x, f"{name}.bn"), name)

        g1 = group(self.conv(images, "backbone.stem.conv"), "backbone.stage1", 16, 16 * k, n, 1)
        g2 = group(g1, "backbone.stage2", 16 * k, 32 * k, n, 2)
        g3 = group(g2, "backbone.stage3", 32 * k, 64 * k, n, 2)
        c3 = group(g1, "branches.c3.stage1", 16 * k, 32 * k, n, 2)
        c3 = group(c3, "branches.c3.stage2", 32 * k, 64 * k, max(n // 2, 1), 2)
        c2 = group(g2, "branches.c2.stage1", 32 * k, 128 * k, n, 2)
        return {
            "c1": end(g3, "backbone.head"),
            "c2": end(c2, "branches.c2.head"),
            "c3": end(c3, "branches.c3.head"),
        }

    def densenet(self, images: Tensor, depth: int) -> dict[str, Tensor]:
        n = (depth - 4) // 3

        def dense(x: Tensor, name: str, layers: int, first: int = 0) -> Tensor:
            for i in range(first, first + layers):
                x = torch.cat(
                    (x, self.conv(self.bn_relu(x, f"{name}.{i}.bn"), f"{name}.{i}.conv")), dim=1
                )
            return x

        def transition(x: Tensor, name: str) -> Tensor:
            return F.avg_pool2d(
                self.conv(self.bn_relu(x, f"{name}.bn"), f"{name}.conv", padding=0), 2
            )

        def end(x: Tensor, name: str) -> Tensor:
            return self.classify(self.bn_relu(x, f"{name}.bn"), name)

        t1 = transition(
            dense(self.conv(images, "backbone.stem.conv"), "backbone.stage1", n),
            "backbone.transition1",
        )
        t2 = transition(dense(t1, "backbone.stage2", n), "backbone.transition2")
        c3 = transition(dense(t1, "branches.c3.stage1", n), "branches.c3.stage2.0")
        return {
            "c1": end(dense(t2, "backbone.stage3", n), "backbone.head"),
            "c2": end(dense(t2, "branches.c2.stage1", n), "branches.c2.head"),
            "c3": end(dense(c3, "branches.c3.stage2", max(n // 2, 1), first=1), "branches.c3.head"),
        }

    def mobilenet(self, images: Tensor) -> dict[str, Tensor]:
        def blocks(x: Tensor, name: str, *strides: int) -> Tensor:
            for i, stride in enumerate(strides):
                y = self.conv(x, f"{name}.{i}.depthwise", stride=stride, groups=x.shape[1])
                y = self.bn_relu(y, f"{name}.{i}.bn1")
                x = self.bn_relu(
                    self.conv(y, f"{name}.{i}.pointwise", padding=0), f"{name}.{i}.bn2"
                )
            return x

        stem = self.bn_relu(self.conv(images, "backbone.stem.conv"), "backbone.stem.bn")
        x256 = blocks(stem, "backbone.stage1", 1, 1, 1, 1, 1)
        x512 = blocks(x256, "backbone.stage2", 2, 1, 1, 1, 1, 1)
        c3 = blocks(blocks(x256, "branches.c3.stage1", 2, 1, 1, 1), "branches.c3.stage2", 2, 1)
        return {
            "c1": self.classify(blocks(x512, "backbone.stage3", 2, 1), "backbone.head"),
            "c2": self.classify(blocks(x512, "branches.c2.stage1", 2, 1), "branches.c2.head"),
            "c3": self.classify(c3, "branches.c3.head"),
        }


def synergy_by_hand(logits: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Equation (4) with all six ordered pairs, written with exponentials and logarithms."""
    p = {name: z.exp() / z.exp().sum(dim=1, keepdim=True) for name, z in logits.items()}
    supervised = sum(-f[torch.arange(len(targets)), targets].log().mean() for f in p.values())
    matched = sum(-(p[m].detach() * p[n].log()).sum(dim=1).mean() for m, n in permutations(p, 2))
    return torch.as_tensor(supervised + matched)


@pytest.mark.rest_slow(2)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("spec", "formula"),
    [
        (wrn(10, 1), lambda by_hand, x: by_hand.wrn(x, 10, 1)),
        # with a shortcut convolution in the first stage
        (wrn(10, 2), lambda by_hand, x: by_hand.wrn(x, 10, 2)),
        (wrn(16, 1), lambda by_hand, x: by_hand.wrn(x, 16, 1)),
        (densenet(10, 4), lambda by_hand, x: by_hand.densenet(x, 10)),
        (load_choice("backbone", "mobilenet", Backbone), lambda by_hand, x: by_hand.mobilenet(x)),
    ],
    ids=["wrn10_1", "wrn10_2", "wrn16_1", "densenet10_4", "mobilenet"],
)
def test_networks_are_the_formulas_of_the_specification(
    spec: Backbone, formula: Callable[[Formulas, Tensor], dict[str, Tensor]], training: bool
) -> None:
    """Logits, DKS loss, the gradient of every parameter and the running statistics, in double
    precision.
    """
    net = network(spec).double().train(training)
    with torch.no_grad():  # away from values, such as 1 and 0, that hide a layer
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
                module.running_mean.normal_(std=0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            elif isinstance(module, nn.Linear):
                module.bias.normal_(std=0.2)
    by_hand = Formulas(net, training)
    images, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])

    logits, expected = net(images), formula(by_hand, images)
    assert list(logits) == list(expected) == ["c1", "c2", "c3"]
    loss = dks.SynergyLoss("bidir")(logits, targets).total
    expected_loss = synergy_by_hand(expected, targets)
    loss.backward()
    expected_loss.backward()

    def same(a: Tensor, b: Tensor) -> bool:
        """To 1e-9 of the largest entry."""
        return float((a - b).detach().abs().max()) <= 1e-9 * max(
            float(b.detach().abs().max()), 1e-3
        )

    assert logits["c1"].dtype == torch.float64
    assert all(same(logits[name], expected[name]) for name in expected)
    assert same(loss, expected_loss)
    missing = [name for name, weight in by_hand.weights.items() if weight.grad is None]
    assert not missing
    wrong = [
        name
        for name, p in net.named_parameters()
        if p.grad is None or not same(p.grad, by_hand.weights[name].grad)
    ]
    assert not wrong
    buffers = {
        name: b for name, b in net.named_buffers() if not name.endswith("num_batches_tracked")
    }
    assert buffers and not [
        name for name, b in buffers.items() if not same(b, by_hand.statistics[name])
    ]
