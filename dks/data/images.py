"""A labelled set of images in memory.

What only describes data imports this and not torch, which takes a second or more.
"""

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

# images that are resized at a time, as floats, which take four times the memory and more
CHUNK = 4096
# bytes whose squares float32 sums without rounding, in whatever order: 256 * 255^2 < 2^24
EXACT = 256


# Formats of images that are read. Pillow knows many more: some run other programs, and few people
# ever look at their readers.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What their files end in.
SUFFIXES = frozenset(
    {
        ".apng",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pfm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
    }
    | {".tif", ".tiff", ".webp"}
)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
LARGEST = 1024 * MIB  # bytes of a file with an image


def decode(source: Path | str | io.BytesIO, name: str) -> Image.Image:
    """An image of a file or of bytes, in RGB of 8 bits; of several pictures in one file the first.

    Integers of more bits are scaled by the range of their type, what is transparent is laid on
    white, and the orientation that a camera noted is not applied, as torchvision does not.

    Args:
        name: what a person calls it.

    Raises:
        ValueError: it is no image in one of `FORMATS`, is damaged, has so many pixels that it could
            fill the memory, or would lose its picture in 8 bits or on white.
    """
    from PIL import Image

    try:
        if not isinstance(source, io.BytesIO):
            check_file(source, LARGEST)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as opened:
                return _rgb(opened)
    except Exception as error:  # its readers raise anything on files that are damaged
        raise ValueError(f"{name}: the image cannot be decoded ({error})") from error


def is_plain(image: Image.Image) -> bool:
    """Has it 8 bits a channel or fewer, and nothing transparent, so that Pillow's own conversion
    loses nothing of it?
    """
    return (
        image.mode[0] not in "IF"
        and image.getbands()[-1] not in "Aa"
        and "transparency" not in image.info
    )


def _rgb(image: Image.Image) -> Image.Image:
    if is_plain(image):
        return image.convert("RGB")
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, and nobody says which one is white; store 8 "
            "or 16 bits"
        )
    return _on_white((_in_8_bits(image) if image.mode[0] == "I" else image).convert("RGBA"))


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A gray image of 12, 16 or 32 bits, by its 8 highest, as Pillow reads colours of 16 bits."""
    import numpy as np
    from PIL import Image

    tags = getattr(image, "tag_v2", {})  # of TIFF; the other formats have 16 bits without a sign
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    values = np.asarray(image)
    if signed and values.min() < 0:
        raise ValueError("it has negative pixels; store 8 or 16 bits without a sign")
    if bits == 32 and not signed:
        values = values.view(np.uint32)  # Pillow has but integers with a sign
    highest = (values >> (bits - 8 - signed)).astype(np.uint8)
    if values.any() and not highest.any():
        raise ValueError(
            f"its pixels have {bits} bits and none is above {values.max()}, which is black; "
            f"store 8 bits"
        )
    gray = Image.fromarray(255 - highest if tags.get(_PHOTOMETRIC) == 0 else highest)
    if (clear := image.info.get("transparency")) is not None:  # the one value that is transparent
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    shown = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if _is_blank(shown) and not _is_blank(image):
        raise ValueError(
            "it is partly transparent, and on white nothing is left of it; lay it on the ground "
            "that it is meant for"
        )
    return shown


def _is_blank(image: Image.Image) -> bool:
    return len(image.getcolors(1) or ()) == 1


@dataclass(frozen=True)
class Facts:
    """What a source can say of its data without decoding an image."""

    labels: int  # number of classes
    name: str  # what tables call the data
    fingerprint: str | None = None  # of the files' content, where the source's name does not fix it
    classes: tuple[str, ...] | None = None  # their names, where the files have some
    # what a person should know of the files, a line each: images that are not taken, for one
    notes: tuple[str, ...] = ()
    # of every image as it is stored, in pixels, where the source's name fixes it
    side: int | None = None


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk and their labels."""

    paths: tuple[str, ...]
    labels: Tensor  # (N,), int64

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> ImageFiles:
        """Those images, in that order; `indices` (M,)."""
        return ImageFiles(
            tuple(self.paths[index] for index in indices.tolist()), self.labels[indices]
        )


@dataclass(frozen=True)
class ImageSet:
    """Decoded images and their labels. A part of a set shares the pixels of the whole."""

    # (M, 3, H, W), uint8, not to be written to; those that were decoded are channels last in memory
    stored: Tensor
    labels: Tensor  # (N,), int64
    rows: Tensor | None = None  # (N,) which of the stored images these are; None: all

    def __post_init__(self) -> None:
        import torch

        assert self.stored.dtype == torch.uint8 and self.stored.shape[1] == 3, (
            self.stored.dtype,
            self.stored.shape,
        )
        count = len(self.stored) if self.rows is None else len(self.rows)
        assert self.labels.dtype == torch.int64 and len(self.labels) == count, (
            self.labels.dtype,
            count,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """(N, 3, H, W), uint8; a copy for a part of a set."""
        return self.stored if self.rows is None else _taken(self.stored, self.rows)

    def subset(self, indices: Tensor) -> ImageSet:
        """Those images, in that order; `indices` (M,)."""
        return ImageSet(
            self.stored, self.labels[indices], indices if self.rows is None else self.rows[indices]
        )

    def resized(self, side: int) -> ImageSet:
        """The same images as squares of `side` pixels (bilinear, antialiased)."""
        import torch

        if self.stored.shape[2:] == (side, side):
            return self
        return ImageSet(
            torch.cat([_resized(chunk, side) for chunk in self.images.split(CHUNK)]), self.labels
        )

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels, for images in [0, 1], the
        same bits in any order.
        """
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

    smooth = F.interpolate(
        images.contiguous().float(), size=(side, side), mode="bilinear", antialias=True
    )
    return smooth.round().clamp(0, 255).to(torch.uint8)


Images = ImageSet | ImageFiles
