"""MobileNet of Howard et al. (2017) for small images.

A 3x3 convolution and 13 depthwise-separable blocks, 28 layers in all.

Only the blocks that first reach 512 and 1024 channels halve the resolution; the other halvings of
the ImageNet network are left out. Branches of the design "ours" are built from the same blocks.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.schema import Backbone, Stage
from dks.models.family import Family, Tap
from dks.models.parts import pooled_head

STEM_WIDTH = 32
WIDTHS = ((64, 128, 128, 256, 256), (512,) * 6, (1024,) * 2)  # of every block, stage by stage
DEPTH = 2 + 2 * sum(len(widths) for widths in WIDTHS)  # 28: a block counts as two layers


class SeparableBlock(nn.Module):
    """Depthwise conv3x3-BN-ReLU, then conv1x1-BN-ReLU.

    (N, C, H, W) -> (N, width, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.depthwise(x)), inplace=True)
        return F.relu(self.bn2(self.pointwise(out)), inplace=True)


def stage(config: Backbone, in_channels: int, spec: Stage, stride: int) -> tuple[nn.Module, int]:
    """`spec.blocks` blocks of `spec.width` channels, the first with `stride`.

    Returns it and its channels.
    """
    return _blocks(in_channels, (spec.width,) * spec.blocks, stride), spec.width


def backbone(config: Backbone, num_classes: int) -> nn.Module:
    """The plain network, (N, 3, H, W) -> (N, num_classes).

    Raises:
        RequestError: there is no network of that depth.
    """
    if config.depth != DEPTH:
        raise RequestError(
            f"backbone.depth={config.depth} must be {DEPTH} for a MobileNet, which has no other"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, STEM_WIDTH, 3, padding=1, bias=False),
                bn=nn.BatchNorm2d(STEM_WIDTH),
                relu=nn.ReLU(inplace=True),
            )
        )
    )
    channels = STEM_WIDTH
    for number, widths in enumerate(WIDTHS, start=1):
        layers[f"stage{number}"] = _blocks(channels, widths, stride=1 if number == 1 else 2)
        channels = widths[-1]
    layers["head"] = pooled_head(channels, num_classes)
    return nn.Sequential(layers)


def initialise(module: nn.Module) -> None:
    """He initialisation of every convolution (fan-out, ReLU).

    Batch normalisation starts at the identity.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # A depthwise channel has the same fan-out as fan-in; torch counts all channels into the
            # fan-out.
            depthwise = layer.groups > 1
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_in" if depthwise else "fan_out", nonlinearity="relu"
            )


def taps(config: Backbone) -> dict[str, Tap]:
    """c3 after the blocks of 256 channels, c2 after those of 512.

    Both before the next down-sampling.
    """
    return {
        "c2": Tap("stage2", channels=WIDTHS[1][-1], downsamplings_left=1),
        "c3": Tap("stage1", channels=WIDTHS[0][-1], downsamplings_left=2),
    }


def _blocks(in_channels: int, widths: tuple[int, ...], stride: int) -> nn.Module:
    before = (in_channels, *widths[:-1])
    return nn.Sequential(
        *(
            SeparableBlock(c, width, stride if i == 0 else 1)
            for i, (c, width) in enumerate(zip(before, widths, strict=True))
        )
    )


FAMILY = Family(
    backbone=backbone,
    taps=taps,
    stage=stage,
    head=pooled_head,
    initialise=initialise,
    block=SeparableBlock,
)
