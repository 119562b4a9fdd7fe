"""A labelled set of images in memory. What only describes data imports this and not torch, which takes a second or more."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.reading import MIB, check_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CHUNK = 4096  # images that are resized at a time, as floats, which take four times the memory and more
EXACT = 256  # bytes whose squares float32 sums without rounding, in whatever order: 256 * 255^2 < 2^24


# Formats of images that are read. Pillow knows many more: some run other programs, and few people ever look at their readers.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST = 1024 * MIB  # bytes of a file with an image


def decode(source: Path | str | io.BytesIO, name: str) -> Image.Image:
    """An image of a file or of bytes, in RGB.

    Args:
        name: what a person calls it.

    Raises:
        ValueError: it is no image in one of `FORMATS`, is damaged, or has so many pixels that it could fill the memory.
    """
    from PIL import Image

    try:
        if not isinstance(source, io.BytesIO):
            check_file(source, LARGEST)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as opened:
                return opened.convert("RGB")
    except Exception as error:  # its readers raise anything on files that are damaged
        raise ValueError(f"{name}: the image cannot be decoded ({error})") from error


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
    """Decoded images and their labels. A part of a set shares the pixels of the whole."""

    stored: Tensor  # (M, 3, H, W), uint8, not to be written to; those that were decoded are channels last in memory
    labels: Tensor  # (N,), int64
    rows: Tensor | None = None  # (N,) which of the stored images these are; None: all

    def __post_init__(self) -> None:
        import torch

        assert self.stored.dtype == torch.uint8 and self.stored.shape[1] == 3, (self.stored.dtype, self.stored.shape)
        count = len(self.stored) if self.rows is None else len(self.rows)
        assert self.labels.dtype == torch.int64 and len(self.labels) == count, (self.labels.dtype, count)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """(N, 3, H, W), uint8; a copy for a part of a set."""
        return self.stored if self.rows is None else _taken(self.stored, self.rows)

    def subset(self, indices: Tensor) -> ImageSet:
        """Those images, in that order; `indices` (M,)."""
        return ImageSet(self.stored, self.labels[indices], indices if self.rows is None else self.rows[indices])

    def resized(self, side: int) -> ImageSet:
        """The same images as squares of `side` pixels (bilinear, antialiased)."""
        import torch

        if self.stored.shape[2:] == (side, side):
            return self
        return ImageSet(torch.cat([_resized(chunk, side) for chunk in self.images.split(CHUNK)]), self.labels)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels, for images in [0, 1], the same bits in any order."""
        import torch

        total = torch.zeros(self.stored[0].numel(), dtype=torch.float64)
        squares = total.clone()
        for rows in torch.arange(len(self)).split(EXACT):
            pixels = self.subset(rows).images.permute(0, 2, 3, 1).flatten(1).float()
            total += pixels.sum(dim=0)
            squares += pixels.square_().sum(dim=0)
        count = len(self) * self.stored[0, 0].numel()
        total, squares = (each.view(-1, 3).sum(dim=0) / count for each in (total, squares))
        mean = total / 255
        return mean.tolist(), (squares / 255**2 - mean.square()).clamp(min=0).sqrt().tolist()


def _taken(images: Tensor, rows: Tensor) -> Tensor:
    """`images[rows]`, channels last in memory, where a copy is fastest."""
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def _resized(images: Tensor, side: int) -> Tensor:
    import torch
    import torch.nn.functional as F

    smooth = F.interpolate(images.contiguous().float(), size=(side, side), mode="bilinear", antialias=True)
    return smooth.round().clamp(0, 255).to(torch.uint8)


Images = ImageSet | ImageFiles
