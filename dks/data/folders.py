"""Folders of images with a subfolder for each class.

The one list of what they hold, whoever asks for it.

Links are followed, as torchvision does, and folders inside of a class are searched. What is hidden
(its name begins with a dot) is not taken, nor is a file whose name does not end as that of an
image; both are counted, and a line says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dks.config.errors import RequestError
from dks.data.contents import Kept, state_of
from dks.data.images import SUFFIXES
from dks.data.registry import AbsentError
from dks.runs.terminal import Display

# beside `train`; the first one that is there holds the test set
TEST_FOLDERS = ("val", "validation", "test")
MANY = 100  # classes from which on it is shown how far the search is
COUNT = "/images"  # its name in the cache, which no class can have


@dataclass(frozen=True)
class Listing:
    """What one folder holds."""

    images: dict[str, list[str]]  # class -> its images in order; classes in order
    # the folders that were looked into: their times change when an image comes or goes
    searched: list[str]
    left_out: str = ""  # a line on what was not taken; empty: nothing


@dataclass(frozen=True)
class Count:
    """How much of it there is."""

    images: int
    left_out: str


def test_folder(root: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of the test set, and a line on others that could be it.

    `root/val` where there is none.
    """
    there = [name for name in TEST_FOLDERS if (root / name).is_dir()] or [TEST_FOLDERS[0]]
    more = " and ".join(there[1:])
    note = (
        f"{root} has the folders {' and '.join(there)}: the test set is {there[0]}, and "
        f"{more} is not used"
    )
    return root / there[0], (note,) if more else ()


def class_names(folder: Path) -> list[str]:
    """The classes in order.

    Raises:
        RequestError: the folder cannot be read or holds no class, or a class may be behind a link
            to nowhere; AbsentError, if there is no such folder.
    """
    return _classes(folder, _LeftOut(str(folder)))


def listed(folder: Path) -> Listing:
    """All images of all classes.

    Raises:
        RequestError: as `class_names`, or a class has no image, or what should be an image is no
            file.
    """
    left_out = _LeftOut(str(folder))
    classes, searched, images = _classes(folder, left_out), [str(folder)], dict[str, list[str]]()
    above = tuple(_identity(str(each)) for each in (folder.resolve(), *folder.resolve().parents))
    many = len(classes) > MANY
    for name in (
        Display.current().track(classes, len(classes), f"images in {folder}") if many else classes
    ):
        path = str(folder / name)
        images[name] = list(_images(path, (*above, _identity(path)), searched, left_out))
        if not images[name]:
            raise RequestError(
                f"{path} holds no image; a class needs at least one ({', '.join(sorted(SUFFIXES))})"
            )
    return Listing(images, searched, str(left_out))


def first_image(folder: Path) -> str:
    """One image; nothing is looked at for longer than that takes."""
    left_out = _LeftOut(str(folder))
    return next(
        path
        for name in _classes(folder, left_out)
        for path in _images(str(folder / name), (), [], left_out)
    )


def counted(folder: Path) -> Count:
    """How many images `listed` finds.

    As long as none of the folders that it searched changes, it does so once.

    Raises:
        RequestError: as `listed`.
    """
    kept = Kept(folder)
    with suppress(OSError, TypeError, KeyError, ValueError):  # one is gone, or the cache is damaged
        last = kept.last(COUNT)
        if kept.get(COUNT, state_of(folder, last["searched"])):
            return Count(int(last["images"]), str(last["left_out"]))
    found = listed(folder)
    count = Count(sum(map(len, found.images.values())), found.left_out)
    with suppress(OSError):
        kept.put(
            COUNT, state_of(folder, found.searched), {**asdict(count), "searched": found.searched}
        )
    kept.write()
    return count


@dataclass
class _LeftOut:
    """What was not taken, by kind."""

    folder: str
    kinds: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, path: str) -> None:
        self.kinds.setdefault(kind, []).append(path.removeprefix(self.folder + os.sep))

    def __str__(self) -> str:
        parts = [
            f"{len(paths):,} {kind} ({paths[0]}{', ...' if len(paths) > 1 else ''})"
            for kind, paths in sorted(self.kinds.items())
        ]
        return f"{self.folder}: not taken: {', '.join(parts)}" if parts else ""


def _classes(folder: Path, left_out: _LeftOut) -> list[str]:
    if not folder.is_dir():
        raise AbsentError(
            f"{folder} is not a folder; data.root must hold train and val (or validation, or "
            f"test), each with a folder for "
            "each class"
        )
    names = []
    for entry in _entries(str(folder), left_out):
        if entry.is_dir():
            names.append(entry.name)
        else:
            left_out.add("beside the classes", entry.path)
    if not names:
        raise RequestError(f"{folder} has no folder in it; there must be one for each class")
    return names


def _images(
    folder: str, above: tuple[tuple[int, int], ...], searched: list[str], left_out: _LeftOut
) -> Iterator[str]:
    """Those of a class, sorted by their paths. `above` are the folders on the way here.

    A link to one of them has no end.
    """
    searched.append(folder)
    for entry in _entries(folder, left_out):
        kind = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path for each of a million takes its time)
        if entry.is_dir():
            if (inner := _identity(entry.path)) in above:
                left_out.add("links to a folder above", entry.path)
            else:
                yield from _images(entry.path, (*above, inner), searched, left_out)
        elif kind not in SUFFIXES:
            left_out.add(kind or "without a suffix", entry.path)
        elif entry.is_file():
            yield entry.path
        else:
            raise RequestError(f"{entry.path} is no file that could hold an image; remove it")


def _entries(folder: str, left_out: _LeftOut) -> Iterator[os.DirEntry[str]]:
    """What is in a folder but for what is hidden, sorted.

    Raises:
        RequestError: it cannot be read, or a link in it leads nowhere.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            left_out.add("hidden", entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
            raise RequestError(
                f"{entry.path} is a link to nowhere; it may be that of a class or an image, so "
                f"mend or remove it"
            )
        else:
            yield entry


def _identity(folder: str) -> tuple[int, int]:
    state = os.stat(folder)  # noqa: PTH116
    return state.st_dev, state.st_ino
