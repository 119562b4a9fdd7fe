"""A labelled set of images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """What a source can say of its data without decoding an image."""

    labels: int  # number of classes
    name: str  # what tables call the data
    fingerprint: str | None = None  # of the files' content, where the source's name does not fix it


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk and their labels."""

    paths: tuple[str, ...]
    labels: Tensor  # (N,), int64

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> ImageFiles:
        """Those images, in that order; `indices` (M,)."""
        return ImageFiles(tuple(self.paths[index] for index in indices.tolist()), self.labels[indices])


@dataclass(frozen=True)
class ImageSet:
    """Decoded images and their labels."""

    images: Tensor  # (N, 3, H, W), uint8
    labels: Tensor  # (N,), int64

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and self.images.shape[1] == 3, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == torch.int64 and len(self.labels) == len(self.images), (self.labels.dtype, len(self))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
        """Those images, in that order; `indices` (M,)."""
        return ImageSet(self.images[indices], self.labels[indices])

    def resized(self, side: int) -> ImageSet:
        """The same images as squares of `side` pixels (bilinear, antialiased)."""
        if self.images.shape[2:] == (side, side):
            return self
        smooth = F.interpolate(self.images.float(), size=(side, side), mode="bilinear", antialias=True)
        return ImageSet(smooth.round().clamp(0, 255).to(torch.uint8), self.labels)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels, for images in [0, 1]."""
        total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for chunk in self.images.split(4096):  # bounds the memory for the float copy
            pixels = chunk.double() / 255
            total += pixels.sum(dim=(0, 2, 3))
            squares += pixels.square().sum(dim=(0, 2, 3))
        mean = total / (self.images.numel() / 3)
        variance = squares / (self.images.numel() / 3) - mean.square()
        return mean.tolist(), variance.clamp(min=0).sqrt().tolist()


Images = ImageSet | ImageFiles
