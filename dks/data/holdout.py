"""Training images that are kept out of training, for choices that must be made before the test."""

from __future__ import annotations

import torch

from dks.config.errors import RequestError
from dks.data.images import Images
from dks.data.seeds import generator


def hold_out(train: Images, count: int, seed: int) -> tuple[Images, Images | None]:
    """The images to train on and the `count` ones that are held out, both in their old order; None where there are none.

    Which ones is drawn by the seed alone.

    Raises:
        RequestError: nothing would be left to train on.
    """
    if count == 0:
        return train, None
    if count >= len(train):
        raise RequestError(f"data.holdout={count} leaves none of the {len(train)} training images; hold out fewer")
    order = torch.randperm(len(train), generator=generator(seed, "holdout"))
    return train.subset(order[count:].sort().values), train.subset(order[:count].sort().values)
