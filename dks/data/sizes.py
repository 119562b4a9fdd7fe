"""How many images there are and how large they are, as far as it is known without decoding all of
them.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.schema import Data

# training, test
CIFAR_IMAGES, DIGITS_IMAGES, IMAGENET_IMAGES = (50_000, 10_000), (1_433, 364), (1_281_167, 50_000)


def image_size(data: Data) -> tuple[int, int] | None:
    """Height and width in pixels of the images that a network sees.

    One image of the files is looked at where only they tell.

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
    """How many images an epoch trains on and how many are evaluated after it (held-out ones among
    these); no image is decoded.

    None: the files that tell are not here, or cannot be read.
    """
    found: tuple[int, int] | None = None
    # as above; what pyarrow raises are ValueErrors and OSErrors
    with suppress(OSError, RequestError, ValueError):
        if data.source in ("cifar10", "cifar100"):
            found = CIFAR_IMAGES
        elif data.source == "digits":
            found = DIGITS_IMAGES
        elif data.source == "imagenet":
            found = IMAGENET_IMAGES
        elif data.source == "synthetic" and data.train_images and data.test_images:
            found = data.train_images, data.test_images
        elif data.source == "parquet":
            from dks.data import parquet

            files = parquet.find(data)
            found = parquet.rows(files.train), parquet.rows(files.test)
        elif data.source == "imagefolder":
            from dks.data.folders import counted, test_folder

            root = Path(str(data.root))
            found = counted(root / "train").images, counted(test_folder(root)[0]).images
    if found is None or not found[0] or data.holdout >= found[0]:
        return None
    return found[0] - data.holdout, found[1] + data.holdout


def _first_image(data: Data) -> Path | io.BytesIO:
    """An image of the files, encoded."""
    if data.source == "imagefolder":
        from dks.data.folders import first_image

        return Path(first_image(Path(str(data.root)) / "train"))
    if data.source == "parquet":
        from dks.data import parquet

        return next(image for _, image in parquet.encoded(data, parquet.find(data).train[0]))
    raise RequestError(
        f"data.source={data.source} does not say how large its images are; set data.image_size"
    )
