"""1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak, 1998), embedded in scikit-learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.schema import Data
from dks.data.images import Facts, ImageSet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLASSES = 10
FILE = Path("datasets") / "data" / "digits.csv.gz"  # in scikit-learn


def inspect(data: Data) -> Facts:
    """Ten classes; the package fixes the content."""
    return Facts(labels=CLASSES, name="digits", side=8)


def load(data: Data) -> tuple[ImageSet, ImageSet]:
    """1,433 training and 364 test images, three equal channels.

    Every fifth image of each class is a test image.
    """
    import numpy as np
    import torch

    table = _table()
    # stored as 0 to 16
    gray = torch.from_numpy(np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8))
    images = gray[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(CLASSES):
        test[torch.nonzero(labels == digit).flatten()[::5]] = True
    return ImageSet(images[~test], labels[~test]), ImageSet(images[test], labels[test])


def _table() -> npt.NDArray[np.float64]:
    """(1797, 65): the pixels of an image and its digit.

    What `sklearn.datasets.load_digits` reads, without that import, which takes a second; the
    package's own function where its file has another name.
    """
    import numpy as np

    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "a dependency"
    file = Path(next(iter(package.submodule_search_locations))) / FILE
    if not file.is_file():
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return np.column_stack([bunch.data, bunch.target])
    return np.loadtxt(file, delimiter=",")
