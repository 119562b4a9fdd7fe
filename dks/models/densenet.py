"""DenseNets of Huang et al. (2017) for small images.

Depth 3n+4, three stages of n layers that add `growth` channels each.

The plain form: no bottlenecks, no compression, 16 channels in the first convolution. A transition
lies between two stages and halves the resolution. Branches start behind a transition, so their
first stage keeps the resolution they find.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.schema import Backbone, Stage
from dks.models.family import Family, Tap
from dks.models.parts import activated_head, initialise_convolutions

STEM_WIDTH = 16


class DenseLayer(nn.Module):
    """BN-ReLU-conv3x3, appended to its input: (N, C, H, W) -> (N, C + growth, H, W)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x), inplace=True))], dim=1)


def transition(channels: int) -> nn.Module:
    """BN-ReLU-conv1x1 and a 2x2 average pooling: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2))."""
    return nn.Sequential(
        OrderedDict(
            bn=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels, 1, bias=False),
            # an odd border is averaged over the pixels it has
            pool=nn.AvgPool2d(2, ceil_mode=True),
        )
    )


def stage(config: Backbone, in_channels: int, spec: Stage, stride: int) -> tuple[nn.Module, int]:
    """`spec.blocks` layers of growth `spec.width`, behind a transition if `stride` is 2.

    Returns it and its channels.
    """
    layers = [transition(in_channels)] if stride == 2 else []
    layers += [DenseLayer(in_channels + i * spec.width, spec.width) for i in range(spec.blocks)]
    return nn.Sequential(*layers), in_channels + spec.blocks * spec.width


def backbone(config: Backbone, num_classes: int) -> nn.Module:
    """The plain network, (N, 3, H, W) -> (N, num_classes).

    Raises:
        RequestError: there is no network of that depth or growth.
    """
    blocks, growth = _stage(config)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(OrderedDict(conv=nn.Conv2d(3, STEM_WIDTH, 3, padding=1, bias=False)))
    )
    channels = STEM_WIDTH
    for number in (1, 2, 3):
        layers[f"stage{number}"], channels = stage(
            config, channels, Stage(blocks, growth), stride=1
        )
        if number < 3:
            layers[f"transition{number}"] = transition(channels)
    layers["head"] = activated_head(channels, num_classes)
    return nn.Sequential(layers)


def initialise(module: nn.Module) -> None:
    """He initialisation of every convolution (fan-out, ReLU), linear biases 0.

    Batch normalisation starts at the identity.
    """
    initialise_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)


def taps(config: Backbone) -> dict[str, Tap]:
    """c3 behind the first transition, c2 behind the second."""
    blocks, growth = _stage(config)
    first, second = STEM_WIDTH + blocks * growth, STEM_WIDTH + 2 * blocks * growth
    return {
        "c2": Tap("transition2", channels=second, downsamplings_left=0, behind_downsampling=True),
        "c3": Tap("transition1", channels=first, downsamplings_left=1, behind_downsampling=True),
    }


def _stage(config: Backbone) -> tuple[int, int]:
    """Layers of a stage, and the channels that each adds."""
    if config.depth < 7 or (config.depth - 4) % 3:
        raise RequestError(
            f"backbone.depth={config.depth} must be 3n+4 for a DenseNet, for example 40 or 100"
        )
    if config.growth is None or config.growth < 1:
        raise RequestError(
            f"backbone.growth={config.growth} must be at least 1 for a DenseNet, for example 12"
        )
    return (config.depth - 4) // 3, config.growth


FAMILY = Family(
    backbone=backbone,
    taps=taps,
    stage=stage,
    head=activated_head,
    initialise=initialise,
    block=DenseLayer,
)
