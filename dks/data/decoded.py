"""Decoded images, kept in a file that all processes of this user map.

Whoever comes first decodes and writes the file, the others wait for it; from then on nobody
decodes, and however many processes use the images, they are in memory once. The file is named after
all that the pixels depend on: the fingerprint, or, where the data has none, sizes and times of its
files. What is wrong with the file or its folder stops nobody: the images are then decoded in
memory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import PIL
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dks.config.files import cache_folder
from dks.config.identity import canonical_json
from dks.config.schema import Augmentation, Data
from dks.data.contents import state_of
from dks.data.images import Images, ImageSet
from dks.data.registry import source

log = logging.getLogger(__name__)

FORMAT = 2  # of the file; raise it when the same files are decoded to something else
PATIENCE = 600  # seconds that a process waits for another one that decodes
SPLITS = ("train", "test")


def load(data: Data) -> tuple[Images, Images]:
    """The training and the test set of a resolved configuration, from the file if there is one.

    Raises:
        RequestError, ValueError, RuntimeError: as the source's own `load`.
    """
    name = _name(data) if data.cache_gib else None
    if name is None:
        return _decode(data)
    path = cache_folder() / "images" / f"{name}.safetensors"
    if (kept := _read(path)) is not None:
        return kept
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        _wait(lock)
        lock.release()
        # whoever had the lock could not write the file, or died
        return _read(path) or _decode(data)
    except (OSError, NotImplementedError) as error:
        # the latter of an older filelock, where flock is unknown
        log.info("decoded images are not kept: %s", error)
        return _decode(data)
    try:
        if (kept := _read(path)) is not None:  # written between two looks
            return kept
        images = _decode(data)
        unchanged = (
            _name(data) == name
            and source(data.source).inspect(data).fingerprint == data.fingerprint
        )
        kept = _read(path) if unchanged and _write(path, images, data.cache_gib) else None
        return kept or images
    finally:
        lock.release()


def _decode(data: Data) -> tuple[Images, Images]:
    train, test = source(data.source).load(data)
    if data.image_size is not None and isinstance(train, ImageSet):
        train, test = train.resized(data.image_size), test.resized(data.image_size)
    return train, test


def _name(data: Data) -> str | None:
    """What the file with these images is called.

    None where decoding costs nothing, or the source's files are not there.
    """
    list_files = getattr(source(data.source), "files", None)
    if list_files is None or data.augmentation is not Augmentation.pad_crop:
        return None
    root, content = Path(data.root or ""), data.fingerprint
    try:
        content = content or state_of(root, [str(path) for path in list_files(data)]).digest
    except OSError:  # decoding says what is wrong
        return None
    key = [
        FORMAT,
        data.source,
        content,
        data.image_size,
        str(root.resolve()),
        PIL.__version__,
        torch.__version__,
    ]
    return hashlib.sha256(canonical_json(key).encode()).hexdigest()[:16]


def _read(path: Path) -> tuple[ImageSet, ImageSet] | None:
    """The images, mapped: a page that nobody has written to is shared.

    None where there is no file, or a damaged one.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            noted = (file.metadata() or {}).get("crc32")
        if noted != _checksum(tensors):
            raise ValueError("its content is not what was written")
        found = [
            ImageSet(tensors[f"{split}_images"].permute(0, 3, 1, 2), tensors[f"{split}_labels"])
            for split in SPLITS
        ]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        log.warning("%s is not used: %s", path, error)
        return None
    with suppress(OSError):
        os.utime(path)  # the oldest are removed first
    return found[0], found[1]


def _write(path: Path, images: tuple[Images, Images], limit_gib: float) -> bool:
    """Write the file as a whole or not at all; False if it is not there."""
    tensors: dict[str, Tensor] = {}
    for split, each in zip(SPLITS, images, strict=True):
        assert isinstance(each, ImageSet), "a source names its files where it decodes them"
        tensors[f"{split}_images"] = each.images.permute(0, 2, 3, 1).contiguous()
        tensors[f"{split}_labels"] = each.labels
    draft = path.with_name(f".{path.name}")
    try:
        if not _make_room(
            path.parent, sum(tensor.nbytes for tensor in tensors.values()), limit_gib * 2**30
        ):
            return False
        save_file(tensors, draft, {"crc32": _checksum(tensors)})
        draft.replace(path)
    except (OSError, SafetensorError) as error:  # the disk is full, for one
        log.info("decoded images are not kept: %s", error)
        return False
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return True


def _make_room(folder: Path, size: int, limit: float) -> bool:
    """Remove what was not used for the longest time, until so many more bytes are within the limit;
    can they be?

    A process that uses a removed file keeps it until it ends.
    """
    if size > limit:
        return False
    kept = [(each, each.stat()) for each in folder.iterdir() if each.suffix != ".lock"]
    kept.sort(key=lambda item: item[1].st_mtime)
    total = size + sum(state.st_size for _, state in kept)
    for each, state in kept:
        if total <= limit:
            break
        each.unlink(missing_ok=True)
        total -= state.st_size
    return True


def _checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        content: memoryview = tensors[name].numpy().reshape(-1).view("u1").data
        value = zlib.crc32(content, value)
    return f"{value:08x}"


def _wait(lock: FileLock) -> None:
    """Until the process that decodes is done, or for a long time."""
    from dks.runs.terminal import Display

    for _ in Display.current().track(
        _seconds(lock), PATIENCE, "waiting for decoded images, seconds"
    ):
        pass


def _seconds(lock: FileLock) -> Iterator[None]:
    """One item a second until the lock is taken."""
    for _ in range(PATIENCE):
        with suppress(Timeout):
            lock.acquire(timeout=1)
            return
        yield
