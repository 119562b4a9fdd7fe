"""The images that the configuration trains on: there, whole, readable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dks.config.errors import RequestError, one_line
from dks.config.schema import Data
from dks.tools.doctor.check import Finding, green, red, yellow

T = TypeVar("T")

SAMPLED = 40  # images decoded of each of training and test set


def images(data: Data) -> Iterator[Finding]:
    """What there is to say about the source of the data."""
    if data.source in ("cifar10", "cifar100"):
        yield from _cifar(data)
        return
    from dks.data import describe

    notes = list[str]()
    try:
        described = describe(data, notes=notes)
    except RequestError as error:
        for problem in error.problems:
            yield red(data.source, one_line(problem), _where(data))
        return
    text = f"{described.name}, {described.num_classes} classes"
    for note in notes:
        yield yellow(
            "images", one_line(note), "nothing, if that is meant; docs/guide.md says what is taken"
        )
    if data.source == "parquet":
        yield from _parquet(data, text)
    elif data.source in ("imagefolder", "imagenet"):
        yield from _folders(data, text)
    else:
        from dks.data import load

        train, test = load(described)
        yield green(
            data.source,
            f"{text}, {len(train):,} training and {len(test):,} test images, without files",
        )


def _where(data: Data) -> str:
    return f"data.root={data.root or 'FOLDER'} must name the folder; docs/guide.md has the layouts"


def _cifar(data: Data) -> Iterator[Finding]:
    """torchvision's own list of files and published checksums."""
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import calculate_md5

    from dks.runs.terminal import Display

    published = {"cifar10": CIFAR10, "cifar100": CIFAR100}[data.source]
    again = f"data={data.source} data.root={data.root or 'FOLDER'} data.download=true"
    if data.root is None:
        yield red(
            data.source,
            "data.root has no value",
            f"data.root=FOLDER, and data.download=true to fetch the files: {again}",
        )
        return
    folder = Path(data.root) / published.base_folder
    files = [
        *published.train_list,
        *published.test_list,
        (published.meta["filename"], published.meta["md5"]),
    ]
    missing, damaged = list[str](), list[str]()
    for name, checksum in Display.current().track(files, len(files), f"checksums of {data.source}"):
        try:
            if calculate_md5(folder / name) != checksum:
                damaged.append(name)
        except FileNotFoundError:
            missing.append(name)
        except OSError as error:
            damaged.append(f"{name} ({error.strerror})")
    if damaged:
        text = f"{folder}: not the published checksum: {', '.join(damaged)}"
        yield (yellow if data.download else red)(
            data.source, text, f"fetch the files again: {again}", damaged
        )
    if missing and data.download:
        yield yellow(
            data.source,
            f"{folder}: {len(missing)} of {len(files)} files are missing and will be downloaded",
            f"the machine that trains must reach {published.url.split('/')[2]}; or put the "
            f"files there",
            missing,
        )
    elif missing:
        yield red(
            data.source,
            f"{folder}: missing: {', '.join(missing)}",
            f"name the folder that has them, or: {again}",
            missing,
        )
    if not missing and not damaged:
        yield green(data.source, f"{folder}: {len(files)} files, all with the published checksums")


def _parquet(data: Data, text: str) -> Iterator[Finding]:
    from dks.data import parquet
    from dks.data.images import decode

    found = parquet.find(data)
    for split, paths in (("train", found.train), ("test", found.test)):
        sizes = set[tuple[int, int]]()
        for path in paths:
            for name, image in islice(parquet.encoded(data, path), SAMPLED):
                try:
                    sizes.add(decode(image, name).size)
                except ValueError as error:
                    yield red(split, one_line(str(error)), "fetch that file again")
                    return
        yield from _sampled(
            split, f"{text}, {parquet.rows(paths):,} images in {len(paths)} file(s)", sizes, data
        )


def _folders(data: Data, text: str) -> Iterator[Finding]:
    from dks.data.folders import listed, test_folder
    from dks.data.images import decode

    root = Path(str(data.root))
    for folder in (root / "train", test_folder(root)[0]):
        images, sizes = listed(folder).images, set[tuple[int, int]]()
        chosen = [path for paths in images.values() for path in _spread(paths, 3)]
        for path in _spread(chosen, SAMPLED):
            try:
                sizes.add(decode(path, path).size)
            except ValueError as error:
                yield red(folder.name, one_line(str(error)), "fetch that image again, or remove it")
                return
        yield from _sampled(
            folder.name, f"{text}, {sum(map(len, images.values())):,} images", sizes, data
        )


def _sampled(split: str, text: str, sizes: set[tuple[int, int]], data: Data) -> Iterator[Finding]:
    """What decoding some images showed."""
    from dks.config.schema import Augmentation

    if len(sizes) > 1 and data.image_size is None and data.augmentation is Augmentation.pad_crop:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        yield red(
            split,
            f"{text}, of several sizes ({shown}, ...)",
            "data.image_size=SIDE brings all to one size",
        )
    else:
        (shown,) = [f"{w}x{h} pixels" for w, h in sizes] if len(sizes) == 1 else ["several sizes"]
        yield green(split, f"{text}, {shown}; those tried decode")


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, from the first to the last at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]
