"""`backbone=pebble`: a network of three stages, small enough for seconds on a CPU."""

from collections import OrderedDict

from torch import nn

from dks import extend


def stage(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


@extend.backbone("pebble", version="1", taps={"c2": "stage2", "c3": "stage1"})
def pebble(num_classes: int, *, width: int = 8) -> nn.Module:
    """Images (N, 3, H, W) -> logits (N, num_classes).

    `width` is the channels of the first stage.
    """
    return nn.Sequential(
        OrderedDict(
            stage1=stage(3, width, 1),
            stage2=stage(width, 2 * width, 2),
            stage3=stage(2 * width, 4 * width, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * width, num_classes),
        )
    )
