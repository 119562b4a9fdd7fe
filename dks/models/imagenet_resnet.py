"""ImageNet ResNets of He et al. (2016) as torchvision builds them.

Depth 18, 34, 50, 101 or 152, expecting 224x224 images.

The backbone is torchvision's own module, so its parameters have torchvision's names and its
published weights load as they are. Branches of the design "ours" are built from the same blocks,
with the same shortcuts: a 1x1 convolution and batch normalisation where the shape changes.
"""

from __future__ import annotations

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from dks.config.errors import RequestError
from dks.config.schema import Backbone, Stage
from dks.models.family import Family, Tap
from dks.models.parts import initialise_convolutions, pooled_head

NETWORKS = {
    18: models.resnet18,
    34: models.resnet34,
    50: models.resnet50,
    101: models.resnet101,
    152: models.resnet152,
}
# channels of the 3x3 convolutions; a bottleneck gives four times as many
PLANES = {"layer1": 64, "layer2": 128, "layer3": 256}


def block(config: Backbone) -> type[nn.Module]:
    """Two 3x3 convolutions up to 34 layers, bottlenecks from 50."""
    kind: type[nn.Module] = Bottleneck if config.depth >= 50 else BasicBlock
    return kind


def expansion(config: Backbone) -> int:
    """Output channels of a block over its width."""
    return 4 if block(config) is Bottleneck else 1


def stage(config: Backbone, in_channels: int, spec: Stage, stride: int) -> tuple[nn.Module, int]:
    """`spec.blocks` blocks of `spec.width` planes, the first with `stride`.

    Returns it and its channels.
    """
    channels = spec.width * expansion(config)
    blocks: list[nn.Module] = []
    for i in range(spec.blocks):
        before, step = (in_channels, stride) if i == 0 else (channels, 1)
        shortcut = None
        if step != 1 or before != channels:
            shortcut = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride=step, bias=False), nn.BatchNorm2d(channels)
            )
        blocks.append(block(config)(before, spec.width, step, shortcut))
    return nn.Sequential(*blocks), channels


def backbone(config: Backbone, num_classes: int) -> nn.Module:
    """torchvision's network, (N, 3, H, W) -> (N, num_classes), with fresh weights.

    Raises:
        RequestError: torchvision has no ResNet of that depth.
    """
    if config.depth not in NETWORKS:
        depths = ", ".join(map(str, NETWORKS))
        raise RequestError(
            f"backbone.depth={config.depth}: torchvision has no such ResNet; choose from {depths}"
        )
    network: nn.Module = NETWORKS[config.depth](weights=None, num_classes=num_classes)
    return network


def taps(config: Backbone) -> dict[str, Tap]:
    """c2 after Conv4_x, c3 after Conv3_x, c4 after Conv2_x, which torchvision calls layer3, layer2
    and layer1.
    """
    return {
        name: Tap(module, channels=PLANES[module] * expansion(config), downsamplings_left=left)
        for name, module, left in (("c2", "layer3", 1), ("c3", "layer2", 2), ("c4", "layer1", 3))
    }


FAMILY = Family(
    backbone=backbone,
    taps=taps,
    stage=stage,
    head=pooled_head,
    initialise=initialise_convolutions,
    block=(BasicBlock, Bottleneck),
)
