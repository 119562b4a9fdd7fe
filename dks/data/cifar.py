"""CIFAR-10 and CIFAR-100 in their original files, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dks.config.reading import require_file
from dks.config.schema import Data
from dks.data.images import Facts, ImageSet
from dks.data.registry import AbsentError

CLASSES = {"cifar10": 10, "cifar100": 100}
# in data.root, as torchvision unpacks them
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def inspect(data: Data) -> Facts:
    """Number of classes and name.

    Torchvision checks the files' published checksums when it reads them.

    Raises:
        AbsentError: the files are not there, and may not be fetched.
    """
    folder = Path(data.root or "") / FOLDERS[data.source]
    if not data.download and not folder.is_dir():
        raise AbsentError(
            f"data.root={data.root} does not hold {data.source} (no folder {folder.name} in it); "
            f"name the folder that does, "
            "or add data.download=true"
        )
    return expected(data)


def expected(data: Data) -> Facts:
    """The same without the files."""
    return Facts(labels=CLASSES[data.source], name=data.source, side=32)


def files(data: Data) -> list[Path]:
    """What `load` reads, where it is there."""
    folder = Path(data.root or "") / FOLDERS[data.source]
    return sorted(path for path in folder.glob("*") if path.is_file())


def load(data: Data) -> tuple[ImageSet, ImageSet]:
    """50,000 training and 10,000 test images of 32x32 pixels.

    Raises:
        RuntimeError: a file is missing, or its checksum is not the published one.
    """
    return _read(data, train=True), _read(data, train=False)


def _read(data: Data, train: bool) -> ImageSet:
    import torch

    root = Path(str(data.root))
    # torchvision opens what is there
    for path in (*(root / FOLDERS[data.source]).glob("*"), *root.glob("cifar-*.tar.gz")):
        if not path.is_dir():
            require_file(path)
    files = _dataset(data.source)(str(data.root), train=train, download=data.download)
    images = torch.from_numpy(files.data).permute(0, 3, 1, 2)
    return ImageSet(images, torch.tensor(files.targets, dtype=torch.int64))


def _dataset(name: str) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
