"""1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak, 1998), embedded in scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from dks.config.schema import Data
from dks.data.images import Facts, ImageSet

CLASSES = 10


def inspect(data: Data) -> Facts:
    """Ten classes; the package fixes the content."""
    return Facts(labels=CLASSES, name="digits")


def load(data: Data) -> tuple[ImageSet, ImageSet]:
    """1,433 training and 364 test images, three equal channels. Every fifth image of each class is a test image."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    gray = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))  # stored as 0 to 16
    images, labels = gray[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(bunch.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(CLASSES):
        test[torch.nonzero(labels == digit).flatten()[::5]] = True
    return ImageSet(images[~test], labels[~test]), ImageSet(images[test], labels[test])
