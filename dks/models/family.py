"""What a family of backbones has to offer so that any branch design works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from dks.config.schema import AuxDesign, Backbone, Stage


@dataclass(frozen=True)
class Tap:
    """A place where a branch can start: the output of one module of the backbone."""

    module: str  # its name inside the backbone
    channels: int  # of the feature map there
    downsamplings_left: int  # between there and the backbone's own classifier
    # the map there is already halved for the next stage, as behind a DenseNet's transition
    behind_downsampling: bool = False


@dataclass(frozen=True)
class Place:
    """All that a branch is built from."""

    tap: Tap
    num_classes: int
    position: str  # the classifier, for example "c2"
    design: AuxDesign
    backbone: Backbone
    family: Family

    def stage(self, in_channels: int, spec: Stage, stride: int = 2) -> tuple[nn.Module, int]:
        """A stage of the backbone's own block, and the channels it ends with."""
        return self.family.stage(self.backbone, in_channels, spec, stride)

    def head(self, in_channels: int) -> nn.Module:
        """The backbone's own end of a classifier: a feature map -> logits (N, num_classes)."""
        return self.family.head(in_channels, self.num_classes)


@dataclass(frozen=True)
class Family:
    """A family of backbones. One file in `dks/models/` defines one.

    `registry.py` names the file.
    """

    # The plain network: images (N, 3, H, W) -> logits (N, K).
    backbone: Callable[[Backbone, int], nn.Module]
    # Where branches can start: classifier -> place.
    taps: Callable[[Backbone], dict[str, Tap]]
    # One stage of a branch, halving the resolution with stride 2: (backbone, in channels, spec,
    #     stride) -> module, channels.
    stage: Callable[[Backbone, int, Stage, int], tuple[nn.Module, int]]
    # The end of a classifier: (in channels, classes) -> module from a feature map to logits.
    head: Callable[[int, int], nn.Module]
    # Sets the initial weights of a backbone or a branch, in place.
    initialise: Callable[[nn.Module], None]
    # The kind(s) of module whose activations can be forgotten and computed again
    # (`backbone.activation_checkpointing`).
    block: type[nn.Module] | tuple[type[nn.Module], ...]
    # Does the network run its children one after another, as a single path needs it? Of an
    # `nn.Sequential` it is known anyway.
    in_order: bool = True
