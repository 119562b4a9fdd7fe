"""Parts that several families of backbones share."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def pooled_head(in_channels: int, num_classes: int) -> nn.Module:
    """Global average pooling and one linear layer: (N, C, H, W) -> (N, K)."""
    return nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(in_channels, num_classes),
        )
    )


def activated_head(in_channels: int, num_classes: int) -> nn.Module:
    """BN-ReLU, global average pooling and one linear layer, for pre-activation networks.

    (N, C, H, W) -> (N, K).
    """
    return nn.Sequential(
        OrderedDict(
            bn=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(in_channels, num_classes),
        )
    )


def initialise_convolutions(module: nn.Module) -> None:
    """He initialisation of every convolution (fan-out, ReLU).

    Batch normalisation starts at the identity.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
