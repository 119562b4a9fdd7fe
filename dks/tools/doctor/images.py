"""The images that the configuration trains on: there, whole, readable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dks.config.errors import RequestError, one_line
from dks.config.schema import Augmentation, Data
from dks.data import describe, load, parquet
from dks.data.folders import listed, test_folder
from dks.data.images import decode
from dks.tools.doctor.check import Finding, green, red, yellow

T = TypeVar("T")

SAMPLED = 40  # images decoded of each of training and test set


def images(data: Data) -> Iterator[Finding]:
    """What there is to say about the source of the data."""
    if data.source in ("cifar10", "cifar100"):
        yield from _cifar(data)
        return
    notes = list[str]()
    try:
        described = describe(data, notes=notes)
    except RequestError as error:
        where = f"data.root={data.root or 'FOLDER'} must name the folder"
        for problem in error.problems:
            yield red(data.source, one_line(problem), f"{where}; docs/guide.md has the layouts")
        return
    for note in notes:
        advice = "nothing, if that is meant; docs/guide.md says what is taken"
        yield yellow("images", one_line(note), advice)
    text = f"{described.name}, {described.num_classes} classes"
    if data.source == "parquet":
        found = parquet.find(data)
        for split, paths in (("train", found.train), ("test", found.test)):
            counted = f"{text}, {parquet.rows(paths):,} images in {len(paths)} file(s)"
            encoded = (
                each for path in paths for each in islice(parquet.encoded(data, path), SAMPLED)
            )
            yield _decoded(split, counted, encoded, data)
    elif data.source in ("imagefolder", "imagenet"):
        root = Path(str(data.root))
        for folder in (root / "train", test_folder(root)[0]):
            classes = listed(folder).images.values()
            few = [path for paths in classes for path in _spread(paths, 3)]
            sample = [(path, path) for path in _spread(few, SAMPLED)]
            counted = f"{text}, {sum(map(len, classes)):,} images"
            yield _decoded(folder.name, counted, sample, data)
    else:
        train, test = load(described)
        counted = f"{len(train):,} training and {len(test):,} test images"
        yield green(data.source, f"{text}, {counted}, without files")


def _cifar(data: Data) -> Iterator[Finding]:
    """torchvision's own list of files and published checksums."""
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import calculate_md5

    from dks.runs.terminal import Display

    published = {"cifar10": CIFAR10, "cifar100": CIFAR100}[data.source]
    again = f"data={data.source} data.root={data.root or 'FOLDER'} data.download=true"
    if data.root is None:
        advice = f"data.root=FOLDER, and data.download=true to fetch the files: {again}"
        yield red(data.source, "data.root has no value", advice)
        return
    folder, meta = Path(data.root) / published.base_folder, published.meta
    files = [*published.train_list, *published.test_list, (meta["filename"], meta["md5"])]
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
        bad = yellow if data.download else red
        yield bad(data.source, text, f"fetch the files again: {again}", tuple(damaged))
    if missing and data.download:
        host = published.url.split("/")[2]
        yield yellow(
            data.source,
            f"{folder}: {len(missing)} of {len(files)} files are missing and will be downloaded",
            f"the machine that trains must reach {host}; or put the files there",
            tuple(missing),
        )
    elif missing:
        text, advice = f"{folder}: missing: {', '.join(missing)}", "name the folder that has them"
        yield red(data.source, text, f"{advice}, or: {again}", tuple(missing))
    if not missing and not damaged:
        yield green(data.source, f"{folder}: {len(files)} files, all with the published checksums")


def _decoded(
    split: str, text: str, encoded: Iterable[tuple[str, str | BytesIO]], data: Data
) -> Finding:
    """What decoding some images shows; `encoded` are names, and contents or files."""
    sizes = set[tuple[int, int]]()
    for name, image in encoded:
        try:
            sizes.add(decode(image, name).size)
        except ValueError as error:
            return red(split, one_line(str(error)), "fetch that file again, or remove it")
    shown = [f"{width}x{height}" for width, height in sorted(sizes)[:3]]
    if len(sizes) > 1 and data.image_size is None and data.augmentation is Augmentation.pad_crop:
        text = f"{text}, of several sizes ({', '.join(shown)}, ...)"
        return red(split, text, "data.image_size=SIDE brings all to one size")
    size = f"{shown[0]} pixels" if len(sizes) == 1 else "several sizes"
    return green(split, f"{text}, {size}; those tried decode")


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, from the first to the last at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]
