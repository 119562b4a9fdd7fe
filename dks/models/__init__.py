"""Backbones and their auxiliary branches.

The names of both are known without torch, which takes a second or more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dks.config.errors import RequestError
from dks.config.files import load_choice
from dks.config.schema import AuxDesign, AuxPositions, Backbone, Config, Data, DesignKind, Recipe
from dks.models import registry  # its function `family` has the name of a module here

if TYPE_CHECKING:
    from torch import nn

    from dks.models.family import Family
    from dks.models.network import SupervisedNetwork


def build(
    backbone: str, num_classes: int, aux_design: str = "none", aux_positions: Sequence[str] = ()
) -> SupervisedNetwork:
    """A network by the names of its parts, as `backbone=` and `aux_design=` on the command line
    name them.

    Args:
        backbone: for example "resnet32".
        num_classes: outputs K of every classifier.
        aux_design: "none", "ours", "narrow", "shallow", "ap_2fc" or "ap_conv_2fc" (Table 3 of the
            paper).
        aux_positions: any of "c2", "c3", "c4" (Table 4 of the paper).

    Returns:
        A module from images (N, 3, H, W) to logits {"c1": (N, K), ...}; its `strip()` gives the
        plain backbone.

    Raises:
        RequestError: a name is unknown, or the parts do not fit together.
    """
    design = load_choice("aux_design", aux_design, AuxDesign)
    if (design.kind == DesignKind.none) != (not aux_positions):
        raise RequestError(
            f"aux_design={aux_design} and aux_positions={tuple(aux_positions)}: give both or "
            f"neither"
        )
    return build_network(
        Config(
            backbone=load_choice("backbone", backbone, Backbone),
            aux_design=design,
            aux_positions=AuxPositions(list(aux_positions)),
            data=Data(source="", num_classes=num_classes),
        )
    )


def build_network(config: Config, initialise: bool = True) -> SupervisedNetwork:
    """The network of a resolved configuration, its weights drawn from torch's global generator.

    All of the backbone's weights are drawn first, so for one seed they are the same whatever
    branches it carries. Without `initialise` they are torch's defaults, which is enough to look at
    the structure.

    Raises:
        RequestError: the parts do not fit together.
    """
    from torch import nn

    from dks.models.branches import build_branch
    from dks.models.checkpointing import forget_activations
    from dks.models.network import SupervisedNetwork

    spec, num_classes = config.backbone, config.data.num_classes
    assert num_classes is not None, "a resolved configuration has its number of classes"
    kind = registry.family(spec.family)
    backbone = kind.backbone(spec, num_classes)
    if initialise:
        _initialise(backbone, kind, config.recipe)
    places = kind.taps(spec)
    branches: dict[str, nn.Module] = {}
    for position in sorted(config.aux_positions.at):
        if position not in places or position not in spec.branches:
            raise RequestError(
                f"aux_positions: {position} is not a place in this backbone; it has "
                f"{', '.join(sorted(places))}"
            )
        branches[position] = build_branch(
            config.aux_design, kind, spec, position, places[position], num_classes
        )
        if initialise:
            _initialise(branches[position], kind, config.recipe)
    if spec.activation_checkpointing:
        for module in (backbone, *branches.values()):
            forget_activations(module, kind.block)
    if config.aux_positions.alone:
        ((position, branch),) = branches.items()
        trunk = _until(backbone, places[position].module, spec.family, kind.in_order)
        return SupervisedNetwork(nn.Sequential(OrderedDict(trunk=trunk, branch=branch)), {}, {})
    return SupervisedNetwork(backbone, branches, {name: places[name].module for name in branches})


def _until(backbone: nn.Module, last: str, family: str, in_order: bool) -> nn.Module:
    """The children of a backbone that runs them one after another, up to the named one."""
    from torch import nn

    children = list(backbone.named_children())
    names = [name for name, _ in children]
    if not (in_order or isinstance(backbone, nn.Sequential)) or last not in names:
        raise RequestError(
            f"the path through one branch alone needs a backbone that is an nn.Sequential with "
            f"the layer {last}; "
            f"backbone.family={family} is none"
        )
    return nn.Sequential(OrderedDict(children[: names.index(last) + 1]))


def _initialise(module: nn.Module, family: Family, recipe: Recipe) -> None:
    """Draw the weights as the family does, or as the authors' WRN code does in what the recipe
    says.
    """
    from torch import nn

    family.initialise(module)
    for layer in module.modules():
        if recipe.fan_in and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif recipe.uniform_gamma and isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
