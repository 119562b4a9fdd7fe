"""Auxiliary branches.

The five designs of Table 3 of the paper, and extensions, for any family of backbones.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import nn

from dks.config.errors import RequestError
from dks.config.registry import find
from dks.config.schema import AuxDesign, Backbone, DesignKind, Stage
from dks.models.family import Family, Place, Tap


def build_branch(
    design: AuxDesign, family: Family, backbone: Backbone, position: str, tap: Tap, num_classes: int
) -> nn.Module:
    """One branch: a feature map (N, tap.channels, H, W) -> logits (N, num_classes).

    Raises:
        RequestError: the path to this classifier would have another number of down-samplings than
            the backbone's own, or the extension cannot be loaded.
    """
    if design.kind not in list(DesignKind):
        built = find("aux_design", design.kind, DesignKind).component.value
        return cast(nn.Module, built(Place(tap, num_classes, position, design, backbone, family)))
    if design.kind == DesignKind.fc:
        return _fully_connected(design, tap.channels, num_classes)
    stages = backbone.branches[position].stages
    needed = tap.downsamplings_left + tap.behind_downsampling
    if len(stages) != needed:
        raise RequestError(
            f"backbone.branches.{position} has {len(stages)} stage(s) and needs {needed}: every "
            f"path from the input to a "
            "classifier has the same number of down-samplings"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = tap.channels
    for number, stage in enumerate(stages, start=1):
        stride = 1 if number == 1 and tap.behind_downsampling else 2
        layers[f"stage{number}"], channels = family.stage(
            backbone, channels, _scaled(stage, design), stride
        )
    layers["head"] = family.head(channels, num_classes)
    return nn.Sequential(layers)


def _scaled(stage: Stage, design: AuxDesign) -> Stage:
    blocks = stage.blocks if design.max_blocks is None else min(stage.blocks, design.max_blocks)
    return Stage(blocks=blocks, width=max(1, round(stage.width * design.width)))


def _fully_connected(design: AuxDesign, channels: int, num_classes: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(pool=nn.AdaptiveAvgPool2d(design.pool))
    if design.conv_channels is not None:
        layers["conv"] = nn.Conv2d(channels, design.conv_channels, 1, bias=False)
        layers["bn"] = nn.BatchNorm2d(design.conv_channels)
        layers["relu"] = nn.ReLU(inplace=True)
        channels = design.conv_channels
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * design.pool**2, design.hidden)
    layers["fc1_relu"] = nn.ReLU()
    layers["fc2"] = nn.Linear(design.hidden, num_classes)
    return nn.Sequential(layers)
