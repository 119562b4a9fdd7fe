"""`data=stripes`: stripes in eight directions, with noise; drawn, not read."""

import math

import torch
from torch import Tensor

from dks import extend

CLASSES = 8


@extend.data("stripes", classes=CLASSES, version="1", recipe="digits", pad=1, flip=False)
def stripes(
    *, images: int = 512, side: int = 12, noise: float = 40.0
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`images` to train on, half as many to test, of `side` pixels.

    `noise` is a standard deviation, of 255.
    """
    draw = torch.Generator().manual_seed(2022)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")

    def some(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % CLASSES
        angle = (labels * math.pi / CLASSES)[:, None, None]
        phase = 2 * math.pi * torch.rand(count, 1, 1, generator=draw)
        waves = torch.sin(1.5 * (x * angle.cos() + y * angle.sin()) + phase)
        gray = 128 + 80 * waves[:, None] + noise * torch.randn(count, 3, side, side, generator=draw)
        return gray.clamp(0, 255).to(torch.uint8), labels

    return some(images), some(images // 2)
