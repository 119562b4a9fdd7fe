"""Learnable random images: a fixed pattern a class, plus noise. For tests and measurements."""

from __future__ import annotations

from dks.config.errors import RequestError
from dks.config.schema import Data
from dks.data.images import Facts, ImageSet


def inspect(data: Data) -> Facts:
    """As many classes as asked for.

    Raises:
        RequestError: a size is not given.
    """
    for key in ("num_classes", "image_size", "train_images", "test_images"):
        if getattr(data, key) is None:
            raise RequestError(f"data.{key} has no value, and data.source=synthetic needs one")
    assert data.num_classes is not None
    return Facts(labels=data.num_classes, name="synthetic")


def load(data: Data) -> tuple[ImageSet, ImageSet]:
    """Training and test images with the same patterns and independent noise.

    Always the same for the same sizes.
    """
    assert data.num_classes and data.image_size and data.train_images and data.test_images
    import torch

    draw = torch.Generator().manual_seed(1998)
    patterns = 255 * torch.rand(
        data.num_classes, 3, data.image_size, data.image_size, generator=draw
    )

    def images(count: int) -> ImageSet:
        labels = torch.arange(count) % patterns.shape[0]
        noise = 64 * torch.randn(count, *patterns.shape[1:], generator=draw)
        return ImageSet((0.5 * patterns[labels] + 64 + noise).clamp(0, 255).to(torch.uint8), labels)

    return images(data.train_images), images(data.test_images)
