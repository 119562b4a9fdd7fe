"""Branches on any image classifier, by the names of its layers."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision import models

import dks
from dks.config.errors import RequestError
from dks.models.network import SupervisedNetwork
from tests.conftest import ROOT


def resnet() -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = models.resnet18(weights=None, num_classes=10)
    return module


def attached(module: nn.Module | None = None) -> SupervisedNetwork:
    return dks.attach(
        module or resnet(), {"c2": "layer3", "c3": "layer2"}, example=torch.zeros(1, 3, 32, 32)
    )


def batch(side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, side, side, generator=generator), torch.randint(
        0, 10, (4,), generator=generator
    )


def step(net: Callable[[Tensor], dict[str, Tensor]]) -> Tensor:
    """One backward pass; the loss."""
    images, labels = batch()
    loss = dks.SynergyLoss("bidir")(net(images), labels).total
    loss.backward()
    return loss.detach()


def size_before_pooling(branch: nn.Module) -> list[tuple[int, ...]]:
    """Filled when the branch runs."""
    sizes: list[tuple[int, ...]] = []
    branch.get_submodule("head.pool").register_forward_pre_hook(
        lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:]))
    )
    return sizes


# The last name is the module whose output is the final feature map.
NETWORKS = (
    (models.resnet18, {"c2": "layer3", "c3": "layer2", "c4": "layer1"}, "layer4"),
    (models.mobilenet_v3_small, {"c2": "features.8", "c3": "features.3"}, "features"),
    (models.densenet121, {"c2": "features.denseblock3", "c3": "features.denseblock2"}, "features"),
    (models.squeezenet1_1, {"c2": "features.7", "c3": "features.4"}, "features"),
    (models.shufflenet_v2_x0_5, {"c2": "stage3", "c3": "stage2"}, "conv5"),
    (models.convnext_tiny, {"c2": "features.5", "c3": "features.3"}, "features"),
)


@pytest.mark.rest_slow(3)
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 64), (65, 97)])
@pytest.mark.parametrize(
    ("build", "taps", "last"), NETWORKS, ids=[build.__name__ for build, _, _ in NETWORKS]
)
def test_every_branch_ends_at_the_final_resolution(
    build: Callable[..., nn.Module], taps: dict[str, str], last: str, size: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, *size)
    net = dks.attach(build(num_classes=7).eval(), taps, example=images)
    final: list[tuple[int, ...]] = []
    net.backbone.get_submodule(last).register_forward_hook(
        lambda *call: final.append(tuple(call[2].shape[-2:]))
    )
    ends = {name: size_before_pooling(branch) for name, branch in net.branches.items()}
    logits = net(images)
    assert {name: tuple(z.shape) for name, z in logits.items()} == dict.fromkeys(
        ["c1", *taps], (2, 7)
    )
    for (sizes,) in ends.values():
        assert max(abs(a - b) for a, b in zip(sizes, final[0], strict=True)) <= 1


def test_a_branch_is_convolutions_of_stride_2_that_double_the_channels() -> None:
    net = dks.attach(
        resnet(), {"c2": "layer3", "c3": "layer2", "c4": "layer1"}, torch.zeros(1, 3, 64, 64)
    )
    convolutions = {
        name: [
            (m.in_channels, m.out_channels, m.stride[0])
            for m in branch.modules()
            if isinstance(m, nn.Conv2d)
        ]
        for name, branch in net.branches.items()
    }
    assert convolutions == {
        "c2": [(256, 512, 2)],
        "c3": [(128, 256, 2), (256, 512, 2)],
        "c4": [(64, 128, 2), (128, 256, 2), (256, 512, 2)],
    }
    assert str(net.branches["c2"].get_submodule("stage1.relu")) == "ReLU(inplace=True)"
    assert net.branches["c4"].get_submodule("head.fc").in_features == 512


class Gate(nn.Module):
    """Squeeze-and-excitation: a map whose resolution says nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.fc = nn.AvgPool2d(8), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(self.squeeze(x)).sigmoid()


@pytest.mark.parametrize(
    ("end", "stages"),
    [
        ([], 1),
        ([nn.MaxPool2d(2)], 2),
        ([Gate(8)], 1),
        ([nn.AvgPool2d(8), nn.Conv2d(8, 8, 1)], 1),
        ([nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)], 1),
        ([nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1)], 2),
    ],
    ids=[
        "none",
        "max pooling",
        "gate",
        "global pooling, convolution",
        "adaptive pooling, convolution",
        "average pooling",
    ],
)
def test_global_pooling_is_no_downsampling(end: list[nn.Module], stages: int) -> None:
    """16x16 at the tapped layer, 8x8 after the next convolution, then what `end` makes of it."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        *end,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    net = dks.attach(module, {"c2": "0"}, torch.zeros(1, 3, 16, 16))
    assert len([m for m in net.branches.modules() if isinstance(m, nn.Conv2d)]) == stages


def test_a_layer_at_the_final_resolution_gets_a_linear_classifier() -> None:
    net = dks.attach(resnet(), {"c2": "layer4.0"}, torch.zeros(1, 3, 64, 64))
    assert [name for name, _ in net.branches["c2"].named_children()] == ["head"]
    assert net(batch()[0])["c2"].shape == (4, 10)


def test_attach_leaves_the_module_as_it_was() -> None:
    module = resnet()
    module.get_submodule("layer1.0.bn1").eval()  # frozen
    before = copy.deepcopy(module.state_dict())
    modes = [layer.training for layer in module.modules()]
    net = attached(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [layer.training for layer in module.modules()] == modes
    assert net.training and all(layer.training for layer in net.branches.modules())
    assert [name for name, layer in module.named_modules() if layer._forward_hooks] == [
        "layer2",
        "layer3",
    ]
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in module.parameters()
    )


def test_branches_are_in_the_mode_and_of_the_type_of_the_module() -> None:
    net = dks.attach(
        resnet().double().eval(), {"c2": "layer3"}, torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    )
    assert not any(layer.training for layer in net.modules())
    assert {tensor.dtype for tensor in net.parameters()} == {torch.float64}
    assert net(batch()[0].double())["c2"].dtype == torch.float64


def test_strip_gives_the_original_object_without_a_hook() -> None:
    module = resnet().eval()
    images, _ = batch()
    expected = module(images)
    net = attached(module)
    assert torch.equal(net(images)["c1"], expected)
    assert net.strip() is module
    assert not any(layer._forward_hooks for layer in module.modules())
    assert torch.equal(module(images), expected)


def test_a_branch_teaches_the_layers_before_its_place() -> None:
    net = attached()
    net(batch()[0])["c3"].square().sum().backward()
    reached = {
        name
        for name, layer in net.backbone.named_children()
        if any(p.grad is not None for p in layer.parameters())
    }
    assert reached == {"conv1", "bn1", "layer1", "layer2"}


def test_without_a_layer_there_is_the_plain_classifier() -> None:
    net = dks.attach(resnet(), {}, torch.zeros(1, 3, 32, 32))
    assert list(net(batch()[0])) == ["c1"]


class Functional(nn.Module):
    """Gives back what it is told, from layers of every kind."""

    def __init__(self, out: str = "logits") -> None:
        super().__init__()
        self.out = out
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.tokens, self.pair, self.idle = nn.Flatten(2), Pair(), nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.channels_last = ChannelsLast()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> object:
        x = self.conv(x)
        self.tokens(x), self.pair(x), self.channels_last(x)
        logits = self.fc(self.pool(x).flatten(1))
        return {"logits": logits, "dict": {"logits": logits}, "map": x}[self.out]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"c1": "layer3"}, "'c1' is no name for a branch; they are c2 (the deepest), c3, ... c9"),
        ({"aux": "layer3"}, "'aux' is no name for a branch"),
        ({"c2": "layr3"}, "c2: the module has no layer 'layr3'; did you mean layer3, layer"),
        ({"c2": "layer3.0.conv9"}, "did you mean layer3.0.conv"),
        (
            {"c2": "?"},
            "no layer '?'; it has conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4, "
            "avgpool, fc",
        ),
        ({"c2": ""}, "c2: the module has no layer ''"),
        (
            {"c2": "layer2", "c3": "layer3"},
            "c2 has to be the deepest layer, c3 one before it, and so on; not c2 = layer2, ",
        ),
        ({"c2": "avgpool"}, "c2: the layer avgpool lies behind the last feature map"),
        ({"c2": "fc"}, "c2: the layer fc gives a tensor (1, 10), not a feature map (N, C, H, W)"),
    ],
)
def test_wrong_taps_are_refused_in_one_line_and_nothing_is_left_behind(
    taps: dict[str, str], message: str
) -> None:
    module = resnet()
    with pytest.raises(RequestError, match=re.escape(message)) as refused:
        dks.attach(module, taps, torch.zeros(1, 3, 64, 64))
    assert str(refused.value).startswith("attach: ") and "\n" not in str(refused.value)
    assert not any(layer._forward_hooks for layer in module.modules())
    assert all(layer.training for layer in module.modules())


@pytest.mark.parametrize(
    ("module", "layer", "message"),
    [
        (Functional(), "tokens", "the layer tokens gives a tensor (1, 4, 64), not a feature map"),
        (Functional(), "pair", "the layer pair gives a tuple, not a feature map"),
        (
            Functional(),
            "channels_last",
            "a tensor (1, 8, 8, 4), not a feature map (N, C, H, W) in the proportions of",
        ),
        (Functional(), "idle", "c2: the layer idle does not run when the module does"),
        (Functional("dict"), "conv", "the module gives a dict, not logits (N, K)"),
        (Functional("map"), "conv", "the module gives a tensor (1, 4, 8, 8), not logits (N, K)"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3)),
            "0",
            "the module fails on the example (1, 3, 8, 8): Given groups=1, ",
        ),
    ],
)
def test_modules_that_are_no_convolutional_classifier_are_refused(
    module: nn.Module, layer: str, message: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as refused:
        dks.attach(module, {"c2": layer}, torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(refused.value)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_transformers_are_refused() -> None:
    vit = models.vision_transformer.VisionTransformer(32, 16, 2, 2, 16, 16, num_classes=10)
    with pytest.raises(
        RequestError, match=r"encoder_layer_0 gives a tensor \(1, 5, 16\), not a feature map"
    ):
        dks.attach(vit, {"c2": "encoder.layers.encoder_layer_0"}, torch.zeros(1, 3, 32, 32))
    swin = models.swin_t(weights=None, num_classes=10)
    with pytest.raises(
        RequestError, match=r"features.3 gives a tensor \(1, 8, 8, 192\), not a feature map"
    ):
        dks.attach(swin, {"c2": "features.3"}, torch.zeros(1, 3, 64, 64))


def test_the_number_of_classes_is_the_modules_own() -> None:
    example = torch.zeros(1, 3, 32, 32)
    net = dks.attach(resnet(), {"c2": "layer3"}, example, num_classes=10)
    assert net.branches["c2"].get_submodule("head.fc").out_features == 10
    with pytest.raises(RequestError, match="num_classes=100, but the module gives 10 logits"):
        dks.attach(resnet(), {"c2": "layer3"}, example, num_classes=100)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_whole_network_compiles_to_one_graph(backend: str) -> None:
    plain = attached()
    compiled = copy.deepcopy(plain)
    torch._dynamo.reset()
    loss = step(torch.compile(compiled, backend=backend, fullgraph=True))
    torch.testing.assert_close(loss, step(plain))
    torch.testing.assert_close(gradients(compiled), gradients(plain))
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(plain.named_buffers()))


def test_autocast_to_bfloat16() -> None:
    net, (images, labels) = attached(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images)
        loss = dks.SynergyLoss("bidir")(logits, labels).total
    assert {z.dtype for z in logits.values()} == {torch.bfloat16}
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(
        bool(gradient.isfinite().all()) and gradient.dtype == torch.float32
        for gradient in gradients(net).values()
    )
    torch.testing.assert_close(loss.detach(), step(attached()), rtol=0.05, atol=0)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel_trains_every_parameter(process_group: None) -> None:
    plain = attached()
    replica = copy.deepcopy(plain)
    wrapped = DistributedDataParallel(replica)
    # the second step would fail if the first had left a parameter without gradient
    for _ in range(2):
        loss = step(wrapped)
        assert torch.equal(loss, step(plain))
    torch.testing.assert_close(gradients(replica), gradients(plain))


@pytest.mark.slow
def test_the_example_trains_in_a_plain_loop_of_less_than_60_lines(tmp_path: Path) -> None:
    script = ROOT / "examples" / "mobilenet_v3.py"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    *epochs, last = done.stdout.splitlines()
    assert [line.split(":")[0] for line in epochs] == ["epoch 1", "epoch 2", "epoch 3"]
    assert all(
        re.search(r"loss_ce [\d.]+, loss_aux [\d.]+, loss_synergy [\d.]+$", line) for line in epochs
    )
    error = float(
        re.fullmatch(r"top-1 test error of the plain " r"network: " r"([\d.]+) %", last)[1]
    )  # type: ignore[index]
    assert error < 50, "chance is 90 %"
