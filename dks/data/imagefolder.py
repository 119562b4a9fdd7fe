"""Folders of images, one subfolder a class: ImageNet's layout, `root/train/<class>/*` and `root/val/<class>/*`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.schema import Augmentation, Data
from dks.data.images import Facts, ImageFiles, Images, ImageSet, decode
from dks.data.registry import AbsentError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGENET_CLASSES = 1000
IMAGENET = Facts(labels=IMAGENET_CLASSES, name="imagenet")


def inspect(data: Data) -> Facts:
    """Number of classes from the folders; the fingerprint is that of all names and sizes, and for ImageNet there is none.

    Raises:
        RequestError: a folder is empty, or training and test set have different classes; AbsentError, if one is missing.
    """
    if data.root is None:
        raise AbsentError("data.root has no value; add data.root=FOLDER with the folders train and val in it")
    root = Path(data.root)
    classes = class_names(root / "train")
    if (tested := class_names(root / "val")) != classes:
        odd = sorted(set(classes) ^ set(tested))
        raise RequestError(f"{root}: train and val have different classes, for example {odd[0]}")
    if data.source == "imagenet":
        if len(classes) != IMAGENET_CLASSES:
            raise RequestError(f"{root} has {len(classes)} classes and ImageNet {IMAGENET_CLASSES}; choose data=imagefolder")
        return IMAGENET
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for name in classes:
            try:
                sizes = [(path.name, path.stat().st_size) for path in images_in(root / split / name)]
            except OSError as error:  # a link to nowhere, for one
                raise RequestError(f"{error.filename or root / split / name} cannot be read: {error.strerror}") from error
            digest.update("".join(f"{split}/{name}/{file} {size}\n" for file, size in sizes).encode())
    return Facts(labels=len(classes), name=root.resolve().name, fingerprint=digest.hexdigest()[:16])


def expected(data: Data) -> Facts | None:
    """What is known without the files: all of ImageNet, and nothing of other folders."""
    return IMAGENET if data.source == "imagenet" else None


def files(data: Data) -> list[Path]:
    """What `load` decodes; inspect says what is raised."""
    if data.augmentation is not Augmentation.pad_crop:
        return []
    folders = (Path(data.root or "") / split for split in ("train", "val"))
    return [path for folder in folders for name in class_names(folder) for path in images_in(folder / name)]


def load(data: Data) -> tuple[Images, Images]:
    """Training and test set: decoded in memory for `pad_crop`, else as lists of files.

    Raises:
        RequestError: a folder is missing or empty.
        ValueError: an image cannot be decoded, or its size differs from the others'.
    """
    train, test = (_files(Path(str(data.root)) / split) for split in ("train", "val"))
    if data.augmentation is not Augmentation.pad_crop:
        return train, test
    return _decoded(train, data.image_size), _decoded(test, data.image_size)


def class_names(folder: Path) -> list[str]:
    """The classes of `root/train` or `root/val`, sorted; inspect says what is raised."""
    if not folder.is_dir():
        raise AbsentError(f"{folder} is not a folder; data.root must hold train and val, each with a folder for each class")
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror}") from error
    if lost := sorted(each.path for each in entries if each.is_symlink() and not os.path.exists(each.path)):  # noqa: PTH110
        raise RequestError(f"{lost[0]} is a link to nowhere; it may be that of a class, so mend or remove it")
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise RequestError(f"{folder} has no folder in it; there must be one for each class")
    return names


def images_in(folder: Path) -> list[Path]:
    """The images of one class, sorted; a RequestError if there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise RequestError(f"{folder} holds no image; a class needs at least one ({', '.join(SUFFIXES)})")
    return found


def _files(folder: Path) -> ImageFiles:
    import torch

    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names(folder)):
        found = images_in(folder / name)
        paths += map(str, found)
        labels += [label] * len(found)
    return ImageFiles(tuple(paths), torch.tensor(labels))


def _decoded(files: ImageFiles, side: int | None) -> ImageSet:
    import numpy as np
    import torch
    from PIL import Image

    from dks.terminal import Display

    images: list[np.ndarray] = []
    for path in Display.current().track(files.paths, len(files), "decoding images"):
        image = decode(path, path)
        if side is not None and image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        images.append(np.asarray(image))
        if images[-1].shape != images[0].shape:
            raise ValueError(f"{path} has another size than the images before; set data.image_size")
    return ImageSet(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), files.labels)
