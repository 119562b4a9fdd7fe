"""Training images that are kept out of training, for choices that must be made before the test."""

from __future__ import annotations

import torch
from torch import Tensor

from dks.config.errors import RequestError
from dks.data.images import Images
from dks.data.seeds import generator


def hold_out(train: Images, count: int, seed: int) -> tuple[Images, Images | None]:
    """The images to train on and the `count` ones that are held out, both in their old order.

    None where there are none.

    Which ones is drawn by the seed alone.

    Raises:
        RequestError: nothing would be left to train on.
    """
    if count == 0:
        return train, None
    kept, held = _rows(len(train), count, seed)
    return train.subset(kept), train.subset(held)


def kept_rows(images: int, count: int, seed: int) -> Tensor:
    """Which of so many training images `hold_out` leaves, sorted."""
    return _rows(images, count, seed)[0]


def _rows(images: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Those that are trained on and those that are held out, both sorted."""
    if count >= images:
        raise RequestError(
            f"data.holdout={count} leaves none of the {images} training images; hold out fewer"
        )
    order = torch.randperm(images, generator=generator(seed, "holdout"))
    return order[count:].sort().values, order[:count].sort().values
