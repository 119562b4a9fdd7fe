"""Every combination of network, design, positions and strategy.

It makes a training step, or it is refused with a reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from dks.config.compose import Composed
from dks.config.errors import RequestError
from dks.config.files import choices, load_choice
from dks.config.schema import (
    AuxDesign,
    AuxPositions,
    Backbone,
    Config,
    Data,
    MatchingStrategy,
    Recipe,
    Strategy,
    Tracking,
    TrackingKind,
)
from dks.models import build_network
from dks.objectives import SynergyLoss
from dks.training.resolver import resolve
from tests.conftest import sampled

# On the meta device: too large for a step on a CPU. The largest ones take long even there.
GIANTS = {
    "resnet110",
    "resnet1202",
    "densenet100_12",
    "wrn28_4",
    "wrn28_10",
    "wrn28_10_dropout",
    "resnet50",
    "resnet152",
}
LONG = {
    "densenet100_12",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet50",
    "resnet110",
    "resnet152",
    "resnet1202",
}
LONG |= {"mobilenet", "densenet40_12", "wrn28_4", "wrn28_10", "wrn28_10_dropout"}
NETWORKS = [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
    for name in choices("backbone")
]


Axes = tuple[list[str], list[str], list[Strategy]]  # designs, positions, strategies


def axes_for(backbone: str) -> Axes:
    """What is combined with it.

    Of a giant one combination that trains and one that is refused, for dozens take minutes, and its
    small sisters go through all of them.
    """
    everything = choices("aux_design"), choices("aux_positions"), list(Strategy)
    return (
        everything
        if backbone not in GIANTS
        else sampled(everything, (["ours"], ["c2", "none"], [Strategy.bidir]))
    )


def combinations(backbone: str) -> Iterator[tuple[str, str, Strategy, Config]]:
    spec = load_choice("backbone", backbone, Backbone)
    spec.activation_checkpointing = False  # the meta device keeps nothing that could be forgotten
    for design, positions, strategy in itertools.product(*axes_for(backbone)):
        yield (
            design,
            positions,
            strategy,
            Config(
                backbone=spec,
                aux_design=load_choice("aux_design", design, AuxDesign),
                aux_positions=load_choice("aux_positions", positions, AuxPositions),
                matching_strategy=MatchingStrategy(strategy),
                data=Data(
                    source="synthetic", num_classes=10, image_size=16, train_images=8, test_images=8
                ),
                recipe=load_choice("recipe", "digits", Recipe),
                tracking=Tracking(TrackingKind.off),
            ),
        )


def admitted(backbone: str, design: str, positions: str, strategy: Strategy) -> bool:
    """The rules, said again.

    Branches and positions go together, a strategy needs both, c4 needs four stages.
    """
    if "c4" in positions and not backbone.startswith(("resnet18", "resnet50", "resnet152")):
        return False
    if design == "none" or positions == "none":
        return design == positions == "none" and strategy == Strategy.none
    return True


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backbone", NETWORKS)
def test_every_combination_trains_or_is_refused(backbone: str) -> None:
    device = torch.device("meta" if backbone in GIANTS else "cpu")
    images = torch.randn(2, 3, 32, 32, device=device)
    labels = torch.tensor([1, 2], device=device)
    logits: dict[str, torch.Tensor] = {}
    built: tuple[str, str] | None = None
    trained = refused = 0
    for design, positions, strategy, config in combinations(backbone):
        where = f"{backbone} {design} {positions} {strategy.value}"
        if not admitted(backbone, design, positions, strategy):
            with pytest.raises(RequestError) as problem:
                resolve(Composed(config, {}))
            assert all(len(line) > 20 for line in problem.value.problems), where
            refused += 1
            continue
        resolved = resolve(Composed(config, {}))
        if built != (design, positions):  # strategies share the forward pass
            with device:
                network = build_network(resolved, initialise=False).train()
            logits, built = network(images), (design, positions)
        before = (
            [parameter.detach().clone() for parameter in network.parameters()]
            if device.type == "cpu"
            else []
        )
        loss = SynergyLoss(strategy)(logits, labels)
        gradients = torch.autograd.grad(loss.total, list(network.parameters()), retain_graph=True)
        assert loss.total.shape == (), where
        assert all(
            gradient.shape == p.shape
            for gradient, p in zip(gradients, network.parameters(), strict=True)
        ), where
        if before:
            assert torch.isfinite(loss.total), where
            assert all(torch.isfinite(gradient).all() for gradient in gradients), where
            assert any((p - 0.1 * g).ne(p).any() for p, g in zip(before, gradients, strict=True)), (
                where
            )
        trained += 1
    four_stages = backbone.startswith(("resnet18", "resnet50", "resnet152"))
    if len(axes_for(backbone)[0]) == 1:
        assert (trained, refused) == (1, 1)
        return
    designs = len(choices("aux_design"))
    assert trained == 1 + (designs - 1) * (5 if four_stages else 3) * 4
    assert trained + refused == designs * 6 * 4
