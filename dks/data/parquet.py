"""Folders of Parquet files as the Hugging Face hub lays them out: `image: struct<bytes, path>`, `label: int64`."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.errors import RequestError
from dks.config.reading import require_file
from dks.config.schema import Data
from dks.data.images import Facts, ImageSet, decode

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "test")


def inspect(data: Data) -> Facts:
    """Number of classes from the labels, name from the folder, fingerprint from labels and the files' own tables of contents.

    Raises:
        RequestError: the folder, a split or a column is missing, or a file cannot be read.
    """
    import pyarrow as pa

    if data.root is None:
        raise RequestError("data.root has no value; add data.root=FOLDER with the files train-*.parquet and test-*.parquet")
    root = Path(data.root)
    if not root.is_dir():
        raise RequestError(
            f"data.root={data.root} is not a folder; name the one with the files train-*.parquet and test-*.parquet"
        )
    digest, largest = hashlib.sha256(), -1
    for split in SPLITS:
        for path in _files(root, split):
            try:
                labels = _labels(path)
                digest.update(f"{path.name} {path.stat().st_size}\n".encode() + labels.tobytes() + _footer(path))
            except (pa.ArrowException, OSError) as error:
                raise RequestError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
            if labels.size and labels.min() < 0:
                raise RequestError(f"{path} has the label {labels.min()}; labels are counted from 0")
            largest = max(largest, int(labels.max(initial=-1)))
    if largest < 0:
        raise RequestError(f"data.root={data.root} holds no images")
    return Facts(labels=largest + 1, name=root.resolve().name, fingerprint=digest.hexdigest()[:16])


def files(data: Data) -> list[Path]:
    """What `load` decodes; a RequestError if a split is missing."""
    return [path for split in SPLITS for path in _files(Path(data.root or ""), split)]


def load(data: Data) -> tuple[ImageSet, ImageSet]:
    """The training and the test set, decoded; images of several sizes need `data.image_size`.

    Raises:
        RequestError: a split or a column is missing.
        ValueError: a file is damaged, an image cannot be decoded, or its size differs from the others'.
    """
    root = Path(data.root or "")
    return _read(root, "train", data.image_size), _read(root, "test", data.image_size)


def _read(root: Path, split: str, side: int | None) -> ImageSet:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from PIL import Image

    from dks.terminal import Display

    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for path in _files(root, split):
        try:
            _check_columns(path)
            rows = pq.read_table(path, columns=["image", "label"])
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        labels.append(rows["label"].to_numpy())
        encoded = rows["image"].combine_chunks().field("bytes")
        for number, item in enumerate(Display.current().track(encoded, len(encoded), f"decoding {path.name}")):
            image = decode(io.BytesIO(item.as_py() or b""), f"{path}, row {number}")
            if side is not None and image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BILINEAR)
            images.append(np.asarray(image))
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"{path}, row {number}: {image.size[0]}x{image.size[1]} pixels, others have "
                    f"{images[0].shape[1]}x{images[0].shape[0]}; set data.image_size"
                )
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return ImageSet(pixels, torch.from_numpy(np.concatenate(labels).astype(np.int64)))


def _files(root: Path, split: str) -> list[Path]:
    found = sorted(root.glob(f"{split}-*.parquet")) or sorted(root.glob(f"{split}.parquet"))
    if not found:
        raise RequestError(f"data.root={root} has no file {split}-*.parquet")
    for path in found:
        require_file(path)
    return found


def _check_columns(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    fields = {"image", "label"} - set(schema.names)
    if fields:
        raise RequestError(f"{path} has no column {' and no column '.join(sorted(fields))}; it has {', '.join(schema.names)}")
    image = schema.field("image").type
    if not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
        raise RequestError(f"{path}: the column image is {image}; it must be a struct with the field bytes")
    if not pa.types.is_integer(schema.field("label").type):
        raise RequestError(f"{path}: the column label is {schema.field('label').type}; it must be int64")


def _labels(path: Path) -> np.ndarray:
    import numpy as np
    import pyarrow.parquet as pq

    _check_columns(path)
    column = pq.read_table(path, columns=["label"])["label"]
    if column.null_count:
        raise RequestError(f"{path}: {column.null_count} label(s) are missing")
    labels: np.ndarray = column.to_numpy().astype(np.int64)
    return labels


def _footer(path: Path) -> bytes:
    """The file's own table of contents: offsets, sizes and statistics of every column chunk."""
    with path.open("rb") as file:
        file.seek(-8, io.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, io.SEEK_END)
        return file.read(length)
