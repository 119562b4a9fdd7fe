"""`aux_design=linear_probe`: what a linear classifier can read from a feature map."""

from torch import nn

from dks import extend


@extend.aux_design("linear_probe", version="1")
def linear_probe(place: extend.Place, *, pool: int = 2) -> nn.Module:
    """A feature map (N, C, H, W) -> logits (N, K).

    An average over `pool` x `pool` fields, and one layer.
    """
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(pool),
        nn.Flatten(),
        nn.Linear(place.tap.channels * pool**2, place.num_classes),
    )
