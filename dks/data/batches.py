"""Batches of a set that stays in memory: order, random crop, flip and normalisation, as tensors on the device.

What a batch holds is a pure function of (seed, epoch, step); nothing is read from the device, and nothing is kept between
epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dks.config.schema import Config, PadMode
from dks.data.images import Images, ImageSet
from dks.data.seeds import generator
from dks.world import ALONE, World

if TYPE_CHECKING:
    from dks.data.streaming import StreamedTest, StreamedTraining


def channel_statistics(config: Config, train: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel that images are normalised by: the recipe's, else the data's, else those of
    the training set.
    """
    mean, std = config.recipe.mean or config.data.mean, config.recipe.std or config.data.std
    if mean is None or std is None:
        assert isinstance(train, ImageSet), "validation asks for both where images are not in memory"
        own_mean, own_std = train.statistics()
        mean, std = mean or own_mean, std or [value or 1.0 for value in own_std]  # a constant channel is left alone
    return mean, std


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


@dataclass(frozen=True)
class Batch:
    """What one process computes in one step."""

    images: Tensor  # float32 (N, 3, H, W), normalised
    labels: Tensor  # int64 (N,)
    weight: float = 1.0  # of its loss in the mean over all processes


class TrainingBatches:
    """A training set, shuffled and augmented anew in every epoch.

    Each image is padded by `pad` pixels, a random window of the original size is cut out, and with `flip` it is mirrored with
    probability 0.5: the distribution of torchvision's `RandomCrop(size, padding=pad)` and `RandomHorizontalFlip()`.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        seed: int,
        pad: int,
        flip: bool,
        normalise: Normalise,
        device: torch.device,
        pad_mode: PadMode = PadMode.zero,
        world: World = ALONE,
    ) -> None:
        self.side = data.images.shape[-2:]
        self.padded = _padded(data.images, pad, pad_mode).to(device)
        self.labels = data.labels.to(device)
        self.batch_size, self.seed, self.pad, self.flip = batch_size, seed, pad, flip
        self.normalise, self.device, self.world = normalise, device, world
        # A view: windows[i, :, y, x] is the window of image i whose upper left corner is at (y, x).
        self.windows = self.padded.unfold(2, self.side[0], 1).unfold(3, self.side[1], 1)

    def __len__(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of one epoch, on the device, without the `first` ones."""
        draw, count = generator(self.seed, "epoch", epoch), len(self.labels)
        order = torch.randperm(count, generator=draw)
        y, x = torch.randint(0, 2 * self.pad + 1, (2, count), generator=draw)
        mirror = torch.rand(count, generator=draw) < 0.5
        plan = torch.stack([order, y, x, mirror.long()], dim=1).to(self.device)  # (images, 4)
        for rows in plan.split(self.batch_size)[first:]:
            part, weight = self.world.shard(rows)
            index, top, left, mirrored = part.unbind(dim=1)
            images = self.windows[index, :, top, left]
            if self.flip:
                images = torch.where(mirrored.bool()[:, None, None, None], images.flip(3), images)
            yield Batch(self.normalise(images), self.labels[index], weight)


def _padded(images: Tensor, pad: int, mode: PadMode) -> Tensor:
    if mode is PadMode.zero:
        return F.pad(images, (pad, pad, pad, pad))
    # Indexed, for F.pad reflects no integers, and a float copy of the set would be large.
    rows, columns = (_reflected(side, pad) for side in images.shape[-2:])
    return images[:, :, rows][:, :, :, columns]


def _reflected(side: int, pad: int) -> Tensor:
    """Indices of a padded axis: pad, ..., 2, 1, 0, 1, ..., side-1, side-2, ..."""
    inside = torch.arange(-pad, side + pad).abs()
    return torch.where(inside < side, inside, 2 * (side - 1) - inside)


class TestBatches:
    """A test set in its own order, not augmented; every process has its own part of it, and no image is seen twice."""

    __test__ = False  # not a test case of pytest

    def __init__(
        self, data: ImageSet, batch_size: int, normalise: Normalise, device: torch.device, world: World = ALONE
    ) -> None:
        mine = slice(world.rank, None, world.size)
        self.images, self.labels = data.images[mine].to(device), data.labels[mine].to(device)
        self.batch_size, self.normalise = batch_size, normalise

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield self.normalise(images), labels


def training_batches(
    config: Config, train: Images, normalise: Normalise, device: torch.device, world: World = ALONE
) -> TrainingBatches | StreamedTraining:
    """The batches of a configuration's training set, in memory or from files."""
    data, recipe = config.data, config.recipe
    if isinstance(train, ImageSet):
        return TrainingBatches(
            train, recipe.batch_size, config.seed, data.pad, data.flip, normalise, device, recipe.pad_mode, world
        )
    from dks.data.streaming import StreamedTraining

    return StreamedTraining(train, recipe.batch_size, config.seed, data, normalise, device, world)


def evaluation_batches(
    config: Config, test: Images, normalise: Normalise, device: torch.device, world: World = ALONE
) -> TestBatches | StreamedTest:
    """The batches of a configuration's test set, in memory or from files."""
    if isinstance(test, ImageSet):
        return TestBatches(test, config.eval_batch_size, normalise, device, world)
    from dks.data.streaming import StreamedTest

    return StreamedTest(test, config.eval_batch_size, config.data, normalise, device, world)
