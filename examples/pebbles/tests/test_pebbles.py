"""The parts of the package, each by itself: what is decorated stays a plain function."""

import torch
from dks_pebbles.images import CLASSES, stripes
from dks_pebbles.matching import neighbours
from dks_pebbles.network import pebble

import dks


def test_neighbours_are_next_to_each_other() -> None:
    assert neighbours(["c1", "c2", "c3"]) == [
        ("c1", "c2"),
        ("c2", "c1"),
        ("c2", "c3"),
        ("c3", "c2"),
    ]
    assert len(neighbours(["c1", "c2", "c3"], distance=2)) == 6


def test_a_pebble_tells_classes_apart() -> None:
    assert pebble(5, width=4)(torch.zeros(2, 3, 12, 12)).shape == (2, 5)


def test_every_direction_is_as_frequent_as_the_others() -> None:
    (images, labels), (tested, _) = stripes(images=64)
    assert images.shape == (64, 3, 12, 12) and len(tested) == 32
    assert torch.bincount(labels).tolist() == [64 // CLASSES] * CLASSES


def test_dks_knows_it_by_its_names() -> None:
    """Where the package is installed."""
    net = dks.build(
        "pebble_wide", num_classes=CLASSES, aux_design="linear_probe", aux_positions=("c2", "c3")
    )
    assert net(torch.zeros(2, 3, 12, 12))["c3"].shape == (2, CLASSES)
    loss = dks.SynergyLoss("neighbours", options={"distance": 2})(
        net(torch.zeros(2, 3, 12, 12)), torch.tensor([0, 1])
    )
    assert loss.parts.keys() == {"loss_ce", "loss_aux", "loss_synergy"}
