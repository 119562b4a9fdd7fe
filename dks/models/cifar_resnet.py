"""CIFAR ResNets of He et al. (2016).

Depth 6n+2, three stages of n basic blocks, widths 16, 32 and 64.

Shortcuts are parameter-free (option A): where a block halves the resolution the shortcut is a 2x2
average pooling, and the new channels are zeros appended after the real ones. Branches of the design
"ours" are built from the same blocks.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.schema import Backbone, Stage
from dks.models.family import Family, Tap
from dks.models.parts import initialise_convolutions, pooled_head

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an option-A shortcut.

    (N, C, H, W) -> (N, width, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        if width < in_channels:
            raise RequestError(
                f"a block of {width} channels on {in_channels} has no parameter-free shortcut; "
                f"use a larger aux_design.width"
            )
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        # ceil_mode agrees with a padded stride-2 convolution on odd sizes.
        shortcut = F.avg_pool2d(x, 2, ceil_mode=True) if self.stride == 2 else x
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(out.add_(shortcut), inplace=True)


def stage(config: Backbone, in_channels: int, spec: Stage, stride: int) -> tuple[nn.Module, int]:
    """`spec.blocks` basic blocks of `spec.width` channels, the first with `stride`.

    Returns it and its channels.
    """
    blocks = [
        BasicBlock(in_channels if i == 0 else spec.width, spec.width, stride if i == 0 else 1)
        for i in range(spec.blocks)
    ]
    return nn.Sequential(*blocks), spec.width


def backbone(config: Backbone, num_classes: int) -> nn.Module:
    """The plain network, (N, 3, H, W) -> (N, num_classes).

    Raises:
        RequestError: there is no network of that depth.
    """
    if config.depth < 8 or (config.depth - 2) % 6:
        raise RequestError(
            f"backbone.depth={config.depth} must be 6n+2 for a CIFAR ResNet, for example 8, 20, "
            f"32, 56 or 110"
        )
    blocks = (config.depth - 2) // 6
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False),
                bn=nn.BatchNorm2d(WIDTHS[0]),
                relu=nn.ReLU(inplace=True),
            )
        )
    )
    channels = WIDTHS[0]
    for number, width in enumerate(WIDTHS, start=1):
        layers[f"stage{number}"], channels = stage(
            config, channels, Stage(blocks, width), stride=1 if number == 1 else 2
        )
    layers["head"] = pooled_head(channels, num_classes)
    return nn.Sequential(layers)


def taps(config: Backbone) -> dict[str, Tap]:
    """c3 after the first stage, c2 after the second; both before the next down-sampling."""
    return {
        "c2": Tap("stage2", channels=WIDTHS[1], downsamplings_left=1),
        "c3": Tap("stage1", channels=WIDTHS[0], downsamplings_left=2),
    }


FAMILY = Family(
    backbone=backbone,
    taps=taps,
    stage=stage,
    head=pooled_head,
    initialise=initialise_convolutions,
    block=BasicBlock,
)
