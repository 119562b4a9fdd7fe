"""Folders of Parquet files as the Hugging Face hub lays them out.

An image is a struct with the field bytes, a label is a whole number or a text.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.config.errors import RequestError, short
from dks.config.identity import canonical_json
from dks.config.schema import Data
from dks.data.contents import digests
from dks.data.hub import Splits, splits
from dks.data.images import Facts, ImageSet, decode

if TYPE_CHECKING:
    import numpy as np

BATCH = 64  # images that are looked at together
# Columns that are known, by the key that names another one; of the two labels of CIFAR-100 the fine
# one.
KNOWN = {
    "image_column": ("image", "img", "jpg", "png"),
    "label_column": ("label", "labels", "fine_label", "cls"),
}


@dataclass(frozen=True)
class Columns:
    """What is read of a file."""

    image: str
    label: str
    names: tuple[str, ...] | None  # of the classes, where the file says them
    is_text: bool  # the labels


def inspect(data: Data) -> Facts:
    """The classes from the labels, the name from the folder, and a fingerprint of the files and of
    what is read of them.

    Raises:
        RequestError: the folder, a split, a file of one or a column is missing, a file cannot be
            read or has no images in it, or the labels make no classes.
    """
    found = find(data)
    columns = _columns(data, [*found.train, *found.test])
    train, test = (
        set[Any]().union(*(_distinct(path, columns.label) for path in paths))
        for paths in (found.train, found.test)
    )
    for paths, labels in ((found.train, train), (found.test, test)):
        if not labels:
            raise RequestError(
                f"{paths[0]} has no rows"
                + (f", nor have the {len(paths) - 1} others" if len(paths) > 1 else "")
            )
    classes, names = _classes(data, columns, train, test)
    root = Path(str(data.root))
    content = digests(root, {str(path): [str(path)] for path in (*found.train, *found.test)})
    read = [
        columns.image,
        columns.label,
        *([content[str(path)] for path in paths] for paths in (found.train, found.test)),
    ]
    fingerprint = hashlib.sha256(canonical_json(read).encode()).hexdigest()[:16]
    return Facts(classes, root.resolve().name, fingerprint, names, found.notes)


def files(data: Data) -> list[Path]:
    """What `load` decodes; a RequestError if a split is missing."""
    found = find(data)
    return [*found.train, *found.test]


def load(data: Data) -> tuple[ImageSet, ImageSet]:
    """The training and the test set, decoded; images of several sizes need `data.image_size`.

    Raises:
        RequestError: a split or a column is missing, or a file is damaged.
        ValueError: an image cannot be decoded, or its size differs from the others'.
    """
    names, found = inspect(data).classes, find(data)
    return _read(found.train, data, names), _read(found.test, data, names)


def find(data: Data) -> Splits:
    """The files; see `dks.data.hub`.

    Raises:
        RequestError: a split or a part of one is missing, or there are several sets.
    """
    wanted = "name the folder with the files train-*.parquet and test-*.parquet"
    if data.root is None:
        raise RequestError(
            "data.root has no value; add data.root=FOLDER with the files train-*.parquet and "
            "test-*.parquet"
        )
    if not Path(data.root).is_dir():
        raise RequestError(f"data.root={data.root} is not a folder; {wanted}")
    return splits(Path(data.root))


def rows(paths: Iterable[Path]) -> int:
    """How many images these files have."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in paths)


def encoded(data: Data, path: Path) -> Iterator[tuple[str, io.BytesIO]]:
    """What a person calls each image of a file, and the image as it is in there.

    No more are read than are taken.
    """
    import pyarrow.parquet as pq

    column = columns_of(data, path).image
    with _readable(path), pq.ParquetFile(path) as file:
        items = (
            item
            for batch in file.iter_batches(BATCH, columns=[column])
            for item in batch[column].to_pylist()
        )
        for number, item in enumerate(items):
            yield f"{path}, row {number}", io.BytesIO((item or {}).get("bytes") or b"")


def columns_of(data: Data, path: Path) -> Columns:
    """Those of one file.

    Raises:
        RequestError: one is missing or of another type, there is a choice, or rows have no image.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    image, label = (
        _column(data, key, path, schema.names) for key in ("image_column", "label_column")
    )
    kind = schema.field(image).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise RequestError(
            f"{path}: the column {image} is {kind}; it must be a struct with the field bytes"
        )
    kind = schema.field(label).type
    if not (pa.types.is_integer(kind) or _is_text(kind)):
        raise RequestError(
            f"{path}: the column {label} is {kind}; it must hold whole numbers or texts"
        )
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    counts = (
        each.statistics
        for each in chunks
        if each.path_in_schema == f"{image}.bytes" and each.statistics is not None
    )
    if empty := sum(each.null_count for each in counts if each.has_null_count):
        raise RequestError(
            f"{path}: {empty:,} of {metadata.num_rows:,} images are not in the file, which has "
            f"at most their paths; write it "
            "again with the bytes of the images in it"
        )
    is_text = _is_text(kind)
    return Columns(image, label, None if is_text else _names(schema.metadata, label), is_text)


def _columns(data: Data, paths: list[Path]) -> Columns:
    """Those of all files, which must be the same."""
    found = {path: columns_of(data, path) for path in paths}
    for path, each in found.items():
        if each != found[paths[0]]:
            raise RequestError(
                f"{path} has other columns or classes than {paths[0].name}; they are of "
                f"different sets"
            )
    return found[paths[0]]


def _column(data: Data, key: str, path: Path, there: list[str]) -> str:
    given = getattr(data, key)
    if given is not None:
        if given not in there:
            raise RequestError(
                f"data.{key}={short(given)}: {path} has no such column; choose from "
                f"{', '.join(there)}"
            )
        return str(given)
    known = [name for name in KNOWN[key] if name in there]
    if len(known) > 1:
        raise RequestError(
            f"{path} has the columns {' and '.join(known)}; choose one with data.{key}={known[0]}"
        )
    if not known:
        usual = f"{KNOWN[key][0]} (nor {', '.join(KNOWN[key][1:])})"
        raise RequestError(
            f"{path} has no column {usual}; it has {', '.join(there)}: choose one with "
            f"data.{key}=NAME"
        )
    return known[0]


def _names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """The names that the hub's library notes of classes."""
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
        if (
            feature["_type"] == "ClassLabel"
            and names
            and all(isinstance(name, str) for name in names)
        ):
            return tuple(names)
    return None


def _classes(
    data: Data, columns: Columns, train: set[Any], test: set[Any]
) -> tuple[int, tuple[str, ...] | None]:
    """How many there are, and their names.

    Raises:
        RequestError: a class has no training image, unless names or `data.num_classes` say that
            there is such a class.
    """
    where, names = f"data.root={data.root}", columns.names
    if columns.is_text:
        if unknown := sorted(test - train):
            raise RequestError(
                f"{where} has test images of {short(unknown[0])}, and no training image of that"
            )
        return len(train), tuple(sorted(train))
    count = max(train | test) + 1
    if names is not None and count > len(names):
        raise RequestError(
            f"{where} has the label {count - 1}, and its files name {len(names)} classes, "
            f"counted from 0"
        )
    if names is None and count != len(train) and (data.num_classes or 0) < count:
        lacking = next(label for label in range(count) if label not in train)
        raise RequestError(
            f"{where} has {len(train | test)} different labels, up to {count - 1}, and no "
            f"training image with the label "
            f"{lacking}; number them from 0 without holes, or set data.num_classes={count} if "
            f"all of these are classes"
        )
    return len(names or range(count)), names


def _distinct(path: Path, column: str) -> set[Any]:
    """The labels that a file has.

    Raises:
        RequestError: one is missing or below 0.
    """
    import pyarrow.compute as pc

    labels = labels_of(path, column)
    if labels.null_count:
        raise RequestError(f"{path}: {labels.null_count} label(s) are missing")
    found = set(pc.unique(labels).to_pylist())
    if found and not isinstance(least := min(found), str) and least < 0:
        raise RequestError(f"{path} has the label {least}; labels are counted from 0")
    return found


def labels_of(path: Path, column: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _readable(path):
        labels = pq.read_table(path, columns=[column])[column]
        return labels.cast(pa.string()) if _is_text(labels.type) else labels


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise RequestError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}"
        ) from error


def _read(paths: list[Path], data: Data, names: tuple[str, ...] | None) -> ImageSet:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import torch
    from PIL import Image

    from dks.runs.terminal import Display

    side = data.image_size
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for path in paths:
        columns = columns_of(data, path)
        found = labels_of(path, columns.label)
        if columns.is_text:
            found = pc.index_in(found, value_set=pa.array(names, pa.string()))
        labels.append(found.to_numpy())
        with _readable(path):
            encoded = (
                pq.read_table(path, columns=[columns.image])[columns.image]
                .combine_chunks()
                .field("bytes")
            )
        for number, item in enumerate(
            Display.current().track(encoded, len(encoded), f"decoding {path.name}")
        ):
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
