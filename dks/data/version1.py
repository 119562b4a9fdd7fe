"""Fingerprints as schema version 1 noted them: of names, sizes, labels and tables of contents.

Only what brings runs of then to their present ids asks for them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dks.config.schema import Data
from dks.data import parquet
from dks.data.folders import listed
from dks.data.images import FORMATS, Facts, decode, is_plain
from dks.data.registry import source

OWN = "image", "label", False  # the columns that it read, and that labels were whole numbers


def old_fingerprint(data: Data) -> str | None:
    """What version 1 noted for the files as they are.

    None: it would have refused them, taken other files of them, or seen other pictures in them, so
    that no run of then is one of now; or it noted none, as for data whose source fixes it.

    Raises:
        RequestError: as the source's `inspect`.
    """
    if data.source == "imagefolder":
        found = _of_folders(Path(str(data.root)))
    elif data.source == "parquet":
        found = _of_parquet(data)
    else:
        facts: Facts = source(data.source).inspect(data)
        return facts.fingerprint  # it was noted as it is today
    return (
        found if found and all(_as_before(image, name) for name, image in _images(data)) else None
    )


def _of_folders(root: Path) -> str | None:
    if not (root / "val").is_dir():
        return None
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for name, paths in listed(root / split).images.items():
            lines = (
                f"{split}/{name}/{path.name} {path.stat().st_size}\n" for path in map(Path, paths)
            )
            digest.update("".join(lines).encode())
    return digest.hexdigest()[:16]


def _of_parquet(data: Data) -> str | None:
    found, digest = parquet.find(data), hashlib.sha256()
    for split, paths in (("train", found.train), ("test", found.test)):
        for path in paths:
            columns = parquet.columns_of(data, path)
            known = path.stem == split or path.stem.startswith(f"{split}-")
            if (
                path.parent != Path(str(data.root))
                or not known
                or (columns.image, columns.label, columns.is_text) != OWN
            ):
                return None
            labels = parquet.labels_of(path, columns.label).to_numpy().astype("int64").tobytes()
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + labels + _footer(path))
    return digest.hexdigest()[:16]


def _footer(path: Path) -> bytes:
    """The file's own table of contents: offsets, sizes and statistics of every column chunk."""
    with path.open("rb") as file:
        file.seek(-8, io.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, io.SEEK_END)
        return file.read(length)


def _images(data: Data) -> Iterator[tuple[str, str | io.BytesIO]]:
    """The name of each image, and where it is read from."""
    if data.source == "parquet":
        found = parquet.find(data)
        for path in (*found.train, *found.test):
            yield from parquet.encoded(data, path)
        return
    for split in ("train", "val"):
        for paths in listed(Path(str(data.root)) / split).images.values():
            yield from zip(paths, paths, strict=True)


def _as_before(image: str | io.BytesIO, name: str) -> bool:
    """Is a picture seen as version 1 saw it, which left it to Pillow?"""
    try:
        with Image.open(image, formats=FORMATS) as opened:
            return (
                is_plain(opened) or decode(image, name).tobytes() == opened.convert("RGB").tobytes()
            )
    except Exception:  # its readers raise anything on files that are damaged, now or then
        return False
