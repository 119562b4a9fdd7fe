"""Batches of a set that stays in memory.

Order, random crop, flip and normalisation, as tensors on the device.

What a batch holds is a pure function of (seed, epoch, step); nothing is read from the device, and
nothing is kept between epochs.
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
from dks.data.prefetch import on_device
from dks.data.seeds import generator
from dks.machine.world import ALONE, World

if TYPE_CHECKING:
    from dks.data.streaming import StreamedTest, StreamedTraining


def channel_statistics(config: Config, train: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel that images are normalised by.

    The recipe's, else the data's, else those of the training set.
    """
    mean, std = config.recipe.mean or config.data.mean, config.recipe.std or config.data.std
    if mean is None or std is None:
        assert isinstance(train, ImageSet), (
            "validation asks for both where images are not in memory"
        )
        own_mean, own_std = train.statistics()
        # a constant channel is left alone
        mean, std = mean or own_mean, std or [value or 1.0 for value in own_std]
    return mean, std


class Normalise:
    """(uint8 pixel / 255 - mean) / std for each channel, as one multiplication and one addition."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device) -> None:
        scale = torch.tensor(std, device=device)[:, None, None]
        self._factor = 1 / (255 * scale)  # (3, 1, 1)
        self._offset = -torch.tensor(mean, device=device)[:, None, None] / scale
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # width -> both for a row of pixels

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 (N, 3, H, W), channels last in memory."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        factor, offset = self._row(images.shape[3])
        return floats.mul_(factor).add_(offset)

    def _row(self, width: int) -> tuple[Tensor, Tensor]:
        """(3, 1, W), channels last.

        A vector as long as a row of an image is multiplied much faster than one of three.
        """
        if width not in self._rows:
            wide = (
                each.expand(3, 1, width).permute(1, 2, 0).contiguous()
                for each in (self._factor, self._offset)
            )
            factor, offset = (each.permute(2, 0, 1) for each in wide)
            self._rows[width] = factor, offset
        return self._rows[width]


@dataclass(frozen=True)
class Batch:
    """What one process computes in one step."""

    images: Tensor  # float32 (N, 3, H, W), normalised
    labels: Tensor  # int64 (N,)
    weight: float = 1.0  # of its loss in the mean over all processes


class TrainingBatches:
    """A training set, shuffled and augmented anew in every epoch.

    Each image is padded by `pad` pixels, a random window of the original size is cut out, and with
    `flip` it is mirrored with probability 0.5: the distribution of torchvision's `RandomCrop(size,
    padding=pad)` and `RandomHorizontalFlip()`.

    On a GPU the padded set stays on the device if it fits. Elsewhere the pixels stay where they
    are, shared by all processes that map them, and the images of a batch are padded when they are
    cut out, which takes no longer.
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
        self.data, self.batch_size, self.seed, self.flip = data, batch_size, seed, flip
        self.pad, self.pad_mode = pad, pad_mode
        self.normalise, self.device, self.world = normalise, device, world
        self.side = height, width = data.stored.shape[-2:]
        # of a padded image
        self.wide, self.area = width + 2 * pad, (width + 2 * pad) * (height + 2 * pad)
        # (M, H, W, 3); no copy where they lie like that
        self.pixels = data.stored.permute(0, 2, 3, 1).contiguous()
        self.resident = _fits(3 * len(self.pixels) * self.area, device)
        if self.resident:
            self.pixels = _padded(self.pixels.to(device), pad, pad_mode)
        rows, columns = torch.arange(height)[:, None] * self.wide, torch.arange(width)
        # Where the pixels of a window are, from its upper left corner on: of the window as it is,
        # and mirrored. (2, H*W)
        self.window = (
            torch.stack([rows + columns, rows + columns.flip(0)]).flatten(1).to(self.pixels.device)
        )

    def __len__(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.data) / self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of an epoch, on the device, less the `first` ones."""
        plan = self._plan(epoch)
        parts = [self.world.shard(rows) for rows in plan.split(self.batch_size)[first:]]
        cut = (self._cut(*part.unbind(dim=1)) for part, _ in parts)
        for (images, labels), (_, weight) in zip(on_device(cut, self.device), parts, strict=True):
            yield Batch(self.normalise(images), labels, weight)

    def _plan(self, epoch: int) -> Tensor:
        """Of every image of the epoch.

        Number among the pixels, the corner of its window, 1 if it is mirrored, and its label.

        Returns:
            (N, 4), int64, where the pixels are; a column is contiguous.
        """
        draw, count = generator(self.seed, "epoch", epoch), len(self.data)
        order = torch.randperm(count, generator=draw)
        y, x = torch.randint(0, 2 * self.pad + 1, (2, count), generator=draw)
        mirrored = torch.rand(count, generator=draw) < 0.5
        numbers = order if self.data.rows is None else self.data.rows[order]
        corners = y * self.wide + x + (numbers * self.area if self.resident else 0)
        plan = torch.stack([numbers, corners, mirrored.long() * self.flip, self.data.labels[order]])
        return (
            (plan.pin_memory() if self.pixels.is_cuda else plan)
            .to(self.pixels.device, non_blocking=True)
            .T
        )

    def _cut(
        self, numbers: Tensor, corners: Tensor, mirrored: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The images of a batch, uint8 (N, 3, H, W), channels last in memory, and their labels
        (N,).
        """
        pixels = self.pixels
        if not self.resident:
            pixels = _padded(pixels.index_select(0, numbers), self.pad, self.pad_mode)
            corners = corners + self.area * torch.arange(len(corners))
        places = self.window.index_select(0, mirrored).add_(corners[:, None]).flatten()
        images = pixels.view(-1, 3).index_select(0, places).view(-1, *self.side, 3)
        return images.permute(0, 3, 1, 2), labels


def _fits(size: int, device: torch.device) -> bool:
    """Is there room for so many bytes on a GPU, half of what is free being left to the network? On
    the CPU they are there.
    """
    return device.type == "cuda" and 2 * size <= torch.cuda.mem_get_info(device)[0]


def _padded(images: Tensor, pad: int, mode: PadMode) -> Tensor:
    """(N, H, W, 3) -> (N, H + 2 * pad, W + 2 * pad, 3)"""
    if mode is PadMode.zero:
        return F.pad(images, (0, 0, pad, pad, pad, pad))
    # Indexed, for F.pad reflects no integers.
    rows, columns = (_reflected(side, pad).to(images.device) for side in images.shape[1:3])
    return images[:, rows][:, :, columns]


def _reflected(side: int, pad: int) -> Tensor:
    """Indices of a padded axis: pad, ..., 2, 1, 0, 1, ..., side-1, side-2, ..."""
    inside = torch.arange(-pad, side + pad).abs()
    return torch.where(inside < side, inside, 2 * (side - 1) - inside)


class TestBatches:
    """A test set in its own order, not augmented.

    Every process has its own part of it, and no image is seen twice.
    """

    __test__ = False  # not a test case of pytest

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        normalise: Normalise,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.batch_size, self.normalise, self.device = batch_size, normalise, device
        self.part = data.subset(torch.arange(world.rank, len(data), world.size))
        if _fits(len(self.part) * data.stored[0].numel(), device):
            self.part = ImageSet(self.part.images.to(device), self.part.labels.to(device))

    def __len__(self) -> int:
        return math.ceil(len(self.part) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = torch.arange(len(self.part), device=self.part.stored.device).split(
            self.batch_size
        )
        parts = (self.part.subset(rows) for rows in batches)
        for images, labels in on_device(
            ((part.images, part.labels) for part in parts), self.device
        ):
            yield self.normalise(images), labels


def training_batches(
    config: Config, train: Images, normalise: Normalise, device: torch.device, world: World = ALONE
) -> TrainingBatches | StreamedTraining:
    """The batches of a configuration's training set, in memory or from files."""
    data, recipe = config.data, config.recipe
    if isinstance(train, ImageSet):
        return TrainingBatches(
            train,
            recipe.batch_size,
            config.seed,
            data.pad,
            data.flip,
            normalise,
            device,
            recipe.pad_mode,
            world,
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
