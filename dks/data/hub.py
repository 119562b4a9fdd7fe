"""Which Parquet files make up a data set, by their names and places as the Hugging Face hub has
them.

They lie in `data.root` itself, or one or two folders below: `train-00000-of-00002.parquet`,
`data/train-...`, `plain_text/train-...`, `default/train/0000.parquet`. The test set is `test`, or
where there is none `validation` or `val`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.reading import require_file

TRAIN, TESTS = "train", ("test", "validation", "val")
DEPTH = 2  # folders below `data.root` that are searched
SHOWN = 6  # names in a message
_SPLIT = re.compile(rf"({'|'.join((TRAIN, *TESTS))})(-.+)?")
# what it is called, its number, of how many
_PART = re.compile(r"(?:(.+?)[-_])?(\d+)(?:-of-(\d+)(?:-[0-9a-f]+)?)?")


@dataclass(frozen=True)
class Splits:
    """The files of a training and a test set, each in order."""

    train: list[Path]
    test: list[Path]
    notes: tuple[str, ...]  # what a person should know, a line each


def splits(root: Path) -> Splits:
    """What the folder holds; no file is opened.

    Raises:
        RequestError: a split or a part of one is missing, or there are several sets; each with the
            names of the files.
    """
    sets: dict[Path, dict[str, list[Path]]] = {}
    others: list[str] = []
    for path in _parquet(root):
        of_file = _SPLIT.fullmatch(path.stem)
        of_folder = path.parent.name if path.parent != root else ""
        split = of_file[1] if of_file else of_folder
        if split in (TRAIN, *TESTS):
            folder = path.parent.parent if split == of_folder else path.parent
            sets.setdefault(folder, {}).setdefault(split, []).append(path)
        else:
            others.append(str(path.relative_to(root)))
    whole = [folder for folder, found in sets.items() if TRAIN in found]
    if len(whole) > 1:
        names = ", ".join(str(folder) for folder in whole[:SHOWN])
        raise RequestError(
            f"data.root={root} holds {len(whole)} data sets; name one of their folders as "
            f"data.root: {names}"
        )
    if not whole:
        raise _missing(root, TRAIN, [str(path.relative_to(root)) for path in _parquet(root)])
    found = sets.pop(whole[0])
    tests = [name for name in TESTS if name in found]
    if not tests:
        raise _missing(
            root, TESTS[0], sorted(path.name for paths in found.values() for path in paths)
        )
    notes = []
    if more := " and ".join(tests[1:]):
        notes.append(
            f"{whole[0]} has files of {' and '.join(tests)}: the test set is {tests[0]}, and "
            f"{more} is not used"
        )
    if others := sorted(
        [
            *others,
            *(
                str(path.relative_to(root))
                for each in sets.values()
                for paths in each.values()
                for path in paths
            ),
        ]
    ):
        notes.append(f"{root}: not taken: {_named(others)}")
    return Splits(_complete(found[TRAIN]), _complete(found[tests[0]]), tuple(notes))


def _missing(root: Path, split: str, there: list[str]) -> RequestError:
    others = f" (nor {' or '.join(f'{name}-*' for name in TESTS[1:])})" if split != TRAIN else ""
    return RequestError(
        f"data.root={root} has no file {split}-*.parquet{others}; it has "
        f"{_named(there) or 'no Parquet file'}"
    )


def _named(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )


def _parquet(root: Path) -> Iterator[Path]:
    """The Parquet files in a folder and in those below that are not hidden.

    Each folder once, whatever links lead to it.
    """
    seen = set[tuple[int, int]]()
    for folder, inner, names in os.walk(root, followlinks=True):
        state = os.stat(folder)  # noqa: PTH116
        if (state.st_dev, state.st_ino) in seen or len(
            Path(folder).relative_to(root).parts
        ) > DEPTH:
            inner.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix == ".parquet":
                if not name.startswith("."):
                    if path.is_symlink() and not path.exists():
                        raise RequestError(f"{path} is a link to nowhere; mend or remove it")
                    require_file(path)
                yield path


def _complete(paths: list[Path]) -> list[Path]:
    """The files of one split, all of which are there, and none of another set.

    Raises:
        RequestError: otherwise.
    """
    sets: dict[
        tuple[str, str], dict[int, Path]
    ] = {}  # what its files are called, and how many they say to be -> number -> file
    for path in sorted(paths):
        part = _PART.fullmatch(path.stem)
        kind = (part[1] or "", part[3] or "") if part else (path.stem, "")
        number = int(part[2]) if part else 0
        twin = sets.setdefault(kind, {}).setdefault(number, path)
        if twin != path or len(sets) > 1:
            other = twin if twin != path else min(paths)
            raise RequestError(
                f"{path.parent}: {other.name} and {path.name} are of different sets; put those "
                f"that are not meant elsewhere"
            )
    (((_, count), found),) = sets.items()
    total = int(count or 0)
    # some count from 1
    first = int(0 not in found and len(found) == total) if count else min(*found, 1)
    wanted = range(first, first + total if count else max(found) + 1)
    if (lost := next((number for number in wanted if number not in found), None)) is not None:
        raise RequestError(
            f"{paths[0].parent}: beside {min(paths).name} there must be the file number {lost} "
            f"of its set"
        )
    if len(found) > len(wanted):
        raise RequestError(
            f"{paths[0].parent}: there are {len(found)} files of a set of {total}, such as "
            f"{min(paths).name}"
        )
    return list(found.values())
