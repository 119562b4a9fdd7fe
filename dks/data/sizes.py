"""How many images there are and how large they are, as far as it is known without decoding all of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.reading import check_file
from dks.config.schema import Data

CIFAR_IMAGES, DIGITS_IMAGES, IMAGENET_IMAGES = (50_000, 10_000), (1_433, 364), (1_281_167, 50_000)  # training, test


def image_size(data: Data) -> tuple[int, int] | None:
    """Height and width in pixels of the images that a network sees; one image of the files is looked at where only they tell.

    None: the files are not here, or cannot be read.
    """
    if data.image_size is not None:
        return data.image_size, data.image_size
    if data.source in ("cifar10", "cifar100"):
        return 32, 32
    if data.source == "digits":
        return 8, 8
    from PIL import Image

    from dks.data.images import FORMATS

    # Whatever is wrong with the files, the run itself says it; the cost is then unknown.
    with suppress(Exception), Image.open(_first_image(data), formats=FORMATS) as image:
        return image.height, image.width
    return None


def images(data: Data) -> tuple[int, int] | None:
    """How many images an epoch trains on and how many are evaluated after it (held-out ones among these); no image is decoded.

    None: the files that tell are not here, or cannot be read.
    """
    found: tuple[int, int] | None = None
    with suppress(OSError, RequestError, ValueError):  # as above; what pyarrow raises are ValueErrors and OSErrors
        if data.source in ("cifar10", "cifar100"):
            found = CIFAR_IMAGES
        elif data.source == "digits":
            found = DIGITS_IMAGES
        elif data.source == "imagenet":
            found = IMAGENET_IMAGES
        elif data.source == "synthetic" and data.train_images and data.test_images:
            found = data.train_images, data.test_images
        elif data.source == "parquet":
            found = _rows(data, "train"), _rows(data, "test")
        elif data.source == "imagefolder":
            found = _files(data, "train"), _files(data, "val")
    if found is None or not found[0] or data.holdout >= found[0]:
        return None
    return found[0] - data.holdout, found[1] + data.holdout


def _first_image(data: Data) -> Path | io.BytesIO:
    """An image of the files, encoded."""
    if data.source == "imagefolder":
        check_file(path := next(_paths(Path(str(data.root)) / "train")))
        return path
    if data.source == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(_parquet_files(data, "train")[0]) as file:
            rows = next(file.iter_batches(batch_size=1, columns=["image"]))
        return io.BytesIO(rows.column("image")[0].as_py()["bytes"])
    raise RequestError(f"data.source={data.source} does not say how large its images are; set data.image_size")


def _parquet_files(data: Data, split: str) -> list[Path]:
    root = Path(str(data.root))
    found = sorted(root.glob(f"{split}-*.parquet")) or sorted(root.glob(f"{split}.parquet"))
    if not found:
        raise FileNotFoundError(root)
    for path in found:
        check_file(path)
    return found


def _rows(data: Data, split: str) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in _parquet_files(data, split))


def _paths(folder: Path) -> Iterator[Path]:
    from dks.data.imagefolder import SUFFIXES

    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _files(data: Data, split: str) -> int:
    return sum(1 for _ in _paths(Path(str(data.root)) / split))
