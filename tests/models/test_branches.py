"""What a branch computes, and at which resolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dks


@pytest.mark.parametrize("design", ["ap_2fc", "ap_conv_2fc"])
def test_a_fully_connected_branch_is_its_formula(design: str) -> None:
    """Pooling, with a convolution: its ReLU; a linear layer, a ReLU, a linear layer."""
    torch.manual_seed(0)
    branch = dks.build("resnet8", 10, design, ("c3",)).eval().branches["c3"]
    weights = dict(branch.named_parameters())
    x = torch.randn(2, 16, 32, 32)
    pooled = F.adaptive_avg_pool2d(x, 4)
    if design == "ap_conv_2fc":
        # the batch normalisation of a new network in evaluation: division by sqrt(1 + 1e-5)
        pooled = (F.conv2d(pooled, weights["conv.weight"]) / (1 + 1e-5) ** 0.5).relu()
    hidden = F.linear(pooled.flatten(1), weights["fc1.weight"], weights["fc1.bias"])
    assert (hidden < 0).any(), "the ReLU has something to cut"
    expected = F.linear(hidden.relu(), weights["fc2.weight"], weights["fc2.bias"])
    torch.testing.assert_close(branch(x), expected)


@pytest.mark.parametrize("design", ["ours", "narrow", "shallow"])
@pytest.mark.parametrize(
    ("backbone", "position", "side", "sides"),
    [
        ("resnet32", "c2", 32, [8]),
        ("resnet32", "c3", 32, [16, 8]),
        ("wrn28_4", "c2", 32, [8]),
        ("wrn28_4", "c3", 32, [16, 8]),
        ("densenet40_12", "c2", 32, [8]),
        ("densenet40_12", "c3", 32, [16, 8]),
        ("resnet18", "c2", 224, [7]),
        ("resnet18", "c3", 224, [14, 7]),
        ("resnet18", "c4", 224, [28, 14, 7]),
    ],
)
def test_the_maps_of_a_branch_shrink_as_those_of_the_backbone(
    backbone: str, position: str, side: int, sides: list[int], design: str
) -> None:
    """The side of the map behind every stage: the last is that of the backbone's last stage."""
    with torch.device("meta"):
        network = dks.build(backbone, 10, design, (position,))
    found: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert output.shape[2] == output.shape[3]
        found.append(output.shape[2])

    branch = network.branches[position]
    for name, layer in branch.named_children():
        if name.startswith("stage"):
            layer.register_forward_hook(note)
    network(torch.empty(2, 3, side, side, device="meta"))
    assert found == sides
