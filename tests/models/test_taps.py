"""What a branch gets.

The value of the named layer at the moment at which it runs, whatever happens to it afterwards.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision import models
from torchvision.models.vgg import make_layers

import dks
from dks.config.errors import RequestError
from dks.models.network import SupervisedNetwork
from tests.models.test_attach import gradients

CLASSES, SIDE = 5, 8


class Twice(nn.Module):
    """Changes what it is given through a view."""

    def forward(self, x: Tensor) -> Tensor:
        x.flatten().mul_(2)
        return x


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x


class OnlyInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(3) if self.training else x


CHANGES: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "view": Twice,
    "sum": Plus,
    "training": OnlyInTraining,
}


def classifier(follower: nn.Module) -> nn.Sequential:
    """Its layer 1 is followed by that one."""
    torch.manual_seed(0)
    first = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        follower,
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
    ]
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))


def attached(module: nn.Module, **taps: str) -> SupervisedNetwork:
    torch.manual_seed(1)
    return dks.attach(module, taps or {"c2": "1"}, torch.zeros(1, 3, SIDE, SIDE))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, SIDE, SIDE, generator=draw), torch.randint(
        0, CLASSES, (4,), generator=draw
    )


def step(net: SupervisedNetwork, seed: int = 0) -> Tensor:
    images, labels = batch(seed)
    net.zero_grad()
    loss = dks.SynergyLoss("bidir")(net(images), labels).total
    loss.backward()
    return loss.detach()


def given_to(net: SupervisedNetwork, name: str = "c2") -> list[Tensor]:
    """Receives what the branch is given in every pass."""
    given: list[Tensor] = []
    net.branches[name].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    return given


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_a_branch_gets_the_layers_output_though_the_next_layer_works_in_place(
    change: str, context: Callable[[], Any]
) -> None:
    net = attached(classifier(CHANGES[change]()))
    given = given_to(net)
    images, _ = batch()
    for training in (False, True, True, False):
        net.train(training)
        expected = copy.deepcopy(net.backbone[:2])(images)  # type: ignore[index]  # with the statistics of before this pass
        with context():
            net(images)
        assert torch.equal(given.pop(), expected)
        assert bool((expected < 0).any())  # or ReLU would change nothing


def test_the_branch_of_a_vgg_sees_what_is_below_zero() -> None:
    torch.manual_seed(0)
    # Conv, BN, ReLU(inplace), MaxPool, Conv, BN, ReLU(inplace)
    features = make_layers([4, "M", 8], batch_norm=True)
    module = nn.Sequential(
        features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    ).eval()
    net = attached(module, c2="0.5", c3="0.1")
    seen = {name: given_to(net, name) for name in ("c2", "c3")}
    images, _ = batch()
    net(images)
    assert torch.equal(seen["c3"][0], features[:2](images))
    assert torch.equal(seen["c2"][0], features[:6](images))
    assert seen["c2"][0].min() < 0 and seen["c3"][0].min() < 0


def test_training_is_that_of_a_network_without_anything_in_place() -> None:
    """In the first pass, in which it is found out, as in those behind it."""
    net, plain = (attached(classifier(nn.ReLU(inplace=inplace))) for inplace in (True, False))
    for seed in range(3):
        assert torch.equal(step(net, seed), step(plain, seed))
        torch.testing.assert_close(gradients(net), gradients(plain), rtol=1e-6, atol=1e-7)


def test_the_network_of_a_family_is_no_exception() -> None:
    module = classifier(nn.ReLU(inplace=True)).eval()
    net = SupervisedNetwork(module, {"c2": nn.Flatten()}, {"c2": "1"})
    images, _ = batch()
    assert torch.equal(net(images)["c2"], module[:2](images).flatten(1))


def test_a_layer_that_itself_works_in_place_hands_over_what_it_gives() -> None:
    module = classifier(nn.ReLU(inplace=True)).eval()
    net = attached(module, c2="2", c3="1")
    after, before = given_to(net, "c2"), given_to(net, "c3")
    images, _ = batch()
    for _ in range(2):
        net(images)
        assert torch.equal(after.pop(), module[:3](images))
        assert torch.equal(before.pop(), module[:2](images))


def test_nothing_is_copied_where_nothing_works_in_place() -> None:
    module = classifier(nn.ReLU())
    net = attached(module)
    given, outputs = given_to(net), []
    module[1].register_forward_hook(lambda _, inputs, output: outputs.append(output))
    for _ in range(2):
        step(net)
        assert given.pop() is outputs.pop()


def test_what_was_never_changed_and_then_is_stops_with_the_layers_name() -> None:
    module = classifier(nn.Identity())
    net = attached(module)
    step(net)
    module[2].register_forward_hook(lambda _, inputs, output: output.add_(1))
    with pytest.raises(
        RequestError, match=r"c2: what the layer 1 gives was changed in place by a later one"
    ):
        step(net)


def test_several_hooks_on_one_layer_do_not_disturb_each_other() -> None:
    module = classifier(nn.ReLU(inplace=True))
    # a user's own, before ours
    module[1].register_forward_hook(lambda _, inputs, output: output + 1)
    first = attached(module)
    second = attached(module, c3="1", c2="3")
    given, other = given_to(first), given_to(second, "c3")
    images, _ = batch()
    module.eval()
    expected = nn.Sequential(*module[:2])(images)
    for _ in range(2):
        first.eval()(images)
        second.eval()(images)
        assert torch.equal(given.pop(), expected) and torch.equal(other.pop(), expected)
        assert not given and not other  # a network's pass is nothing to the other one
    second.strip()
    first(images)
    assert torch.equal(given.pop(), expected)


@pytest.mark.slow
def test_in_place_layers_compile_to_one_graph() -> None:
    net, plain = (attached(classifier(nn.ReLU(inplace=inplace))) for inplace in (True, False))
    torch._dynamo.reset()
    images, labels = batch()
    logits = torch.compile(net, backend="aot_eager", fullgraph=True)(images)
    dks.SynergyLoss("bidir")(logits, labels).total.backward()
    step(plain)
    torch.testing.assert_close(gradients(net), gradients(plain))


# --- activation checkpointing inside the module


class Checkpointed(nn.Module):
    """Its first layers forget their activations; inner.

    They do so one by one, so that a place is at the end of a part.
    """

    def __init__(self, reentrant: bool | None, whole: bool = True) -> None:
        super().__init__()
        layers = classifier(nn.ReLU(inplace=True))
        self.start, self.block, self.end = layers[0], nn.Sequential(*layers[1:3]), layers[3:]
        self.reentrant, self.whole = reentrant, whole

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        if self.reentrant is None or not self.training:
            return self.end(self.block(x))  # type: ignore[no-any-return]
        for part in [self.block] if self.whole else self.block:
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return self.end(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("reentrant", "tap"), [(False, "block.0"), (False, "block"), (True, "block")]
)
def test_a_branch_inside_a_checkpointed_block_teaches_as_without(reentrant: bool, tap: str) -> None:
    net, plain = attached(Checkpointed(reentrant), c2=tap), attached(Checkpointed(None), c2=tap)
    for seed in range(2):
        assert torch.equal(step(net, seed), step(plain, seed))
        torch.testing.assert_close(gradients(net), gradients(plain), rtol=1e-6, atol=1e-7)
        # The block ran again in the backward pass, and what it gave then is kept by nobody.
        assert not [
            tap
            for tap in vars(net)["_taps"].values()
            if tap.output is not None or tap.copy is not None
        ]


@pytest.mark.parametrize("whole", [True, False])
def test_a_branch_that_could_teach_nothing_is_refused(whole: bool) -> None:
    """A block under checkpointing of the older kind runs without gradients.

    The place is cut off from what is before it.
    """
    net = attached(Checkpointed(True, whole), c2="block.0")
    with pytest.raises(RequestError) as refused:
        step(net)
    assert str(refused.value) == (
        "c2: the layer block.0 runs without gradients, as in torch.utils.checkpoint with "
        "use_reentrant=True, so its branch "
        "could teach nothing before it; set use_reentrant=False"
    )
    with torch.no_grad():
        assert list(net.eval()(batch()[0])) == ["c1", "c2"]


# --- auxiliary outputs of the module's own


class Pair(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class WithAuxiliary(nn.Module):
    """As torchvision's Inception v3: two outputs in training, one in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = classifier(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor | Pair:
        logits = self.layers(x)
        return Pair(logits, logits) if self.training else logits


def googlenet(**options: bool) -> nn.Module:
    return models.GoogLeNet(num_classes=CLASSES, init_weights=False, **options)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("build", "tap", "given"),
    [(WithAuxiliary, "layers.1", "Pair"), (googlenet, "inception4a", "GoogLeNetOutputs")],
)
def test_auxiliary_outputs_are_refused_with_what_to_do(
    build: Callable[[], nn.Module], tap: str, given: str
) -> None:
    net = dks.attach(build(), {"c2": tap}, torch.zeros(1, 3, 64, 64))
    with pytest.raises(RequestError) as refused:
        net(torch.zeros(2, 3, 64, 64))
    assert str(refused.value) == (
        f"in training the network gives a {given}, not logits (N, K); build it without auxiliary "
        f"outputs of its own, "
        "in torchvision with aux_logits=False"
    )
    assert list(net.eval()(torch.zeros(2, 3, 64, 64))) == ["c1", "c2"]


def test_without_them_the_same_network_trains() -> None:
    net = dks.attach(googlenet(aux_logits=False), {"c2": "inception4a"}, torch.zeros(1, 3, 64, 64))
    logits = net(torch.zeros(2, 3, 64, 64))
    assert re.fullmatch(
        r"c1 \(2, 5\) c2 \(2, 5\)",
        " ".join(f"{name} {tuple(z.shape)}" for name, z in logits.items()),
    )
