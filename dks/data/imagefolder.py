"""Folders of images, one subfolder a class.

ImageNet's layout, `root/train/<class>/*` and `root/val/<class>/*`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.schema import Augmentation, Data
from dks.data.contents import digests
from dks.data.folders import Listing, class_names, counted, listed, test_folder
from dks.data.images import LARGEST, Facts, ImageFiles, Images, ImageSet, decode
from dks.data.registry import AbsentError
from dks.data.sizes import IMAGENET_IMAGES

IMAGENET_CLASSES = 1000
IMAGENET = Facts(labels=IMAGENET_CLASSES, name="imagenet")


def inspect(data: Data) -> Facts:
    """The classes from the folders, and a fingerprint of all images in their order and their
    labels.

    ImageNet has none: it is known by the numbers of its classes and images, and a folder with
        others is a set of its own.

    Raises:
        RequestError: a folder is empty, or training and test set have different classes;
            AbsentError, if one is missing.
    """
    train, test, notes = _folders(data)
    root, classes = train.parent, class_names(train)
    if (tested := class_names(test)) != classes:
        odd = sorted(set(classes) ^ set(tested))
        raise RequestError(
            f"{root}: {train.name} and {test.name} have different classes, for example {odd[0]}"
        )
    if data.source == "imagenet":
        if len(classes) != IMAGENET_CLASSES:
            raise RequestError(
                f"{root} has {len(classes)} classes and ImageNet {IMAGENET_CLASSES}; choose "
                f"data=imagefolder"
            )
        sets = counted(train), counted(test)
        found = tuple(each.images for each in sets)
        if found == IMAGENET_IMAGES:
            lines = [*notes, *(each.left_out for each in sets if each.left_out)]
            return replace(IMAGENET, classes=tuple(classes), notes=tuple(lines))
        notes = (
            *notes,
            f"{root} is not ImageNet but a set of its own: {_numbers(found)}, not "
            f"{_numbers(IMAGENET_IMAGES)}",
        )
    digest, lines, counts = hashlib.sha256(), list(notes), list[int]()
    for role, folder in (("train", train), ("test", test)):
        listing = listed(folder)
        counts.append(sum(map(len, listing.images.values())))
        lines += [listing.left_out] if listing.left_out else []
        for label, content in enumerate(digests(folder, listing.images, LARGEST).values()):
            digest.update(f"{role} {label} {content}\n".encode())
    name = root.resolve().name
    if name.lower() == IMAGENET.name and tuple(counts) != IMAGENET_IMAGES:
        name = f"{name}-{counts[0]}"  # by its folder's name it would be taken for the whole
    return Facts(len(classes), name, digest.hexdigest()[:16], tuple(classes), tuple(lines))


def expected(data: Data) -> Facts | None:
    """What is known without the files: all of ImageNet, and nothing of other folders."""
    return IMAGENET if data.source == "imagenet" else None


def files(data: Data) -> list[Path]:
    """What `load` decodes; inspect says what is raised."""
    train, test, _ = _folders(data)
    return [
        Path(path)
        for folder in (train, test)
        for paths in listed(folder).images.values()
        for path in paths
    ]


def load(data: Data) -> tuple[Images, Images]:
    """Training and test set: decoded in memory for `pad_crop`, else as lists of files.

    Raises:
        RequestError: a folder is missing or empty.
        ValueError: an image cannot be decoded, or its size differs from the others'.
    """
    train, test, _ = _folders(data)
    found = image_files(listed(train)), image_files(listed(test))
    if data.augmentation is not Augmentation.pad_crop:
        return found
    return _decoded(found[0], data.image_size), _decoded(found[1], data.image_size)


def image_files(listing: Listing) -> ImageFiles:
    """The images of all classes, which are 0, 1, ... in order."""
    import torch

    labels = [label for label, paths in enumerate(listing.images.values()) for _ in paths]
    return ImageFiles(
        tuple(path for paths in listing.images.values() for path in paths), torch.tensor(labels)
    )


def _folders(data: Data) -> tuple[Path, Path, tuple[str, ...]]:
    """Those of the training and the test set, and what is to be said of them."""
    if data.root is None:
        raise AbsentError(
            "data.root has no value; add data.root=FOLDER with the folders train and val in it"
        )
    root = Path(data.root)
    return root / "train", *test_folder(root)


def _numbers(counts: tuple[int, ...]) -> str:
    return f"{counts[0]:,} training and {counts[1]:,} test images"


def _decoded(files: ImageFiles, side: int | None) -> ImageSet:
    import numpy as np
    import torch
    from PIL import Image

    from dks.runs.terminal import Display

    images: list[np.ndarray] = []
    for path in Display.current().track(files.paths, len(files), "decoding images"):
        image = decode(path, path)
        if side is not None and image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        images.append(np.asarray(image))
        if images[-1].shape != images[0].shape:
            raise ValueError(f"{path} has another size than the images before; set data.image_size")
    return ImageSet(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), files.labels)
