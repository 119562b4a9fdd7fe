"""Batches of a set that stays in memory: order, random crop, flip and normalisation, as tensors on the device.

What a batch holds is a pure function of (seed, epoch, step); nothing is read from the device, and nothing is kept between
epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dks.data.images import ImageSet
from dks.data.seeds import generator


class Normalise:
    """(uint8 pixel / 255 - mean) / std for each channel, as one multiplication and one addition."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device) -> None:
        scale = torch.tensor(std, device=device)[:, None, None]
        self.factor = 1 / (255 * scale)  # (3, 1, 1)
        self.offset = -torch.tensor(mean, device=device)[:, None, None] / scale

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 (N, 3, H, W), channels last in memory."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.mul_(self.factor).add_(self.offset)


class TrainingBatches:
    """A training set, shuffled and augmented anew in every epoch.

    Each image is padded by `pad` black pixels, a random window of the original size is cut out, and with `flip` it is mirrored
    with probability 0.5: the distribution of torchvision's `RandomCrop(size, padding=pad)` and `RandomHorizontalFlip()`.
    """

    def __init__(
        self, data: ImageSet, batch_size: int, seed: int, pad: int, flip: bool, normalise: Normalise, device: torch.device
    ) -> None:
        self.side = data.images.shape[-2:]
        self.padded = F.pad(data.images, (pad, pad, pad, pad)).to(device)
        self.labels = data.labels.to(device)
        self.batch_size, self.seed, self.pad, self.flip = batch_size, seed, pad, flip
        self.normalise, self.device = normalise, device
        # A view: windows[i, :, y, x] is the window of image i whose upper left corner is at (y, x).
        self.windows = self.padded.unfold(2, self.side[0], 1).unfold(3, self.side[1], 1)

    def __len__(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: images float32 (N, 3, H, W) and labels (N,), on the device."""
        draw, count = generator(self.seed, "epoch", epoch), len(self.labels)
        order = torch.randperm(count, generator=draw)
        y, x = torch.randint(0, 2 * self.pad + 1, (2, count), generator=draw)
        mirror = torch.rand(count, generator=draw) < 0.5
        plan = [values.to(self.device).split(self.batch_size) for values in (order, y, x, mirror)]
        for index, top, left, mirrored in zip(*plan, strict=True):
            images = self.windows[index, :, top, left]
            if self.flip:
                images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            yield self.normalise(images), self.labels[index]


class TestBatches:
    """A test set in its own order, not augmented."""

    __test__ = False  # not a test case of pytest

    def __init__(self, data: ImageSet, batch_size: int, normalise: Normalise, device: torch.device) -> None:
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.batch_size, self.normalise = batch_size, normalise

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield self.normalise(images), labels
