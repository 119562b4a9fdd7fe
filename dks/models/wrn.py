"""Wide ResNets of Zagoruyko and Komodakis (2016).

Depth 6n+4, three stages of n pre-activation blocks, widths 16k, 32k and 64k.

Shortcuts are the identity, or where the shape changes a 1x1 convolution of the activated input (the
batch normalisation and ReLU before the block's first convolution serve both). Dropout, if any, lies
right before the second convolution, in the branches too. Every classifier has its own batch
normalisation and ReLU before the pooling.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.schema import Backbone, Stage
from dks.models.family import Family, Tap
from dks.models.parts import activated_head, initialise_convolutions

STEM_WIDTH = 16
WIDTHS = (16, 32, 64)  # times k


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv3x3 twice, around a shortcut.

    (N, C, H, W) -> (N, width, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        # In the published networks every stride comes with a new width; in a narrow branch it need
        # not.
        same_shape = in_channels == width and stride == 1
        self.shortcut = (
            None if same_shape else nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        out: Tensor = self.conv2(
            self.dropout(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        )
        return out.add_(x if self.shortcut is None else self.shortcut(activated))


def stage(config: Backbone, in_channels: int, spec: Stage, stride: int) -> tuple[nn.Module, int]:
    """`spec.blocks` blocks of `spec.width` channels, the first with `stride`.

    Returns it and its channels.
    """
    blocks = [
        PreActivationBlock(
            in_channels if i == 0 else spec.width,
            spec.width,
            stride if i == 0 else 1,
            config.dropout,
        )
        for i in range(spec.blocks)
    ]
    return nn.Sequential(*blocks), spec.width


def backbone(config: Backbone, num_classes: int) -> nn.Module:
    """The plain network, (N, 3, H, W) -> (N, num_classes).

    Raises:
        RequestError: there is no network of that depth or width, or the dropout is no probability
            below 1.
    """
    if config.depth < 10 or (config.depth - 4) % 6:
        raise RequestError(
            f"backbone.depth={config.depth} must be 6n+4 for a WRN, for example 10, 16, 28 or 40"
        )
    if not 0 <= config.dropout < 1:
        raise RequestError(f"backbone.dropout={config.dropout} must be at least 0 and below 1")
    blocks = (config.depth - 4) // 6
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(OrderedDict(conv=nn.Conv2d(3, STEM_WIDTH, 3, padding=1, bias=False)))
    )
    channels = STEM_WIDTH
    for number, width in enumerate(_widths(config), start=1):
        layers[f"stage{number}"], channels = stage(
            config, channels, Stage(blocks, width), stride=1 if number == 1 else 2
        )
    layers["head"] = activated_head(channels, num_classes)
    return nn.Sequential(layers)


def initialise(module: nn.Module) -> None:
    """He initialisation (convolutions fan-out, linear layers fan-in, biases 0).

    Batch normalisation starts at the identity.
    """
    initialise_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def taps(config: Backbone) -> dict[str, Tap]:
    """c3 after the first stage, c2 after the second; both before the next down-sampling."""
    first, second, _ = _widths(config)
    return {
        "c2": Tap("stage2", channels=second, downsamplings_left=1),
        "c3": Tap("stage1", channels=first, downsamplings_left=2),
    }


def _widths(config: Backbone) -> list[int]:
    if config.width is None or config.width < 1:
        raise RequestError(
            f"backbone.width={config.width} must be at least 1 for a WRN (the factor k), for "
            f"example 4 or 10"
        )
    return [width * config.width for width in WIDTHS]


FAMILY = Family(
    backbone=backbone,
    taps=taps,
    stage=stage,
    head=activated_head,
    initialise=initialise,
    block=PreActivationBlock,
)
