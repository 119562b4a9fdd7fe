"""SHA-256 of files, each of which is read once.

It stays in this user's cache for as long as nothing happens to the file.

A file is known again by its place, size, inode, and the times of its last modification and change.
The last of these is set by the system whenever a file is written to or put in the place of another
one, whatever other times a program gives it. A change within RECENT seconds of one that was seen
could have the same time, so what is as young as that is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dks.config.errors import RequestError
from dks.config.files import cache_folder
from dks.config.reading import check_file
from dks.runs.record import write_atomically
from dks.runs.terminal import Display

RECENT = 2.0  # seconds
MANY = 1000  # files from which on it is shown how far the reading is
THREADS = max(4, min(32, os.cpu_count() or 1))  # disks answer several faster than one
# files that a thread reads in a row, and bytes of a file that it reads at a time
PIECE, BLOCK = 64, 1 << 20


class State(NamedTuple):
    """What the system says of files or folders."""

    digest: str
    newest: int  # of all times, ns


class Kept:
    """What is known of the files in one folder, in a file of this user's cache.

    Where that cannot be written, in memory.
    """

    _memory: ClassVar[dict[Path, dict[str, Any]]] = {}

    def __init__(self, folder: Path) -> None:
        place = str(folder.resolve())
        self._path = (
            cache_folder()
            / "contents"
            / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.json"
        )
        self._entries = self._read() | self._memory.get(self._path, {})
        self._changed = False

    def get(self, name: str, state: State) -> Any:
        """What was put there for that state; None: nothing."""
        entry = self._entries.get(name)
        return (
            entry.get("value")
            if isinstance(entry, dict) and entry.get("state") == state.digest
            else None
        )

    def last(self, name: str) -> Any:
        """What was put there last, for whatever state."""
        entry = self._entries.get(name)
        return entry.get("value") if isinstance(entry, dict) else None

    def put(self, name: str, state: State, value: Any) -> None:
        """Keep a value, unless its files are too young to be known again.

        `write` brings it to disk.
        """
        if state.newest < (time.time() - RECENT) * 1e9:
            self._entries[name] = {"state": state.digest, "value": value}
            self._changed = True

    def write(self) -> None:
        """Bring what is new to disk, where that is possible."""
        if self._changed:
            self._memory[self._path] = self._entries
            with suppress(OSError):
                write_atomically(self._path, json.dumps(self._entries))

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


def state_of(root: Path, paths: Sequence[str]) -> State:
    """How these files or folders under `root` stand.

    The state is another one when something has happened to one of them.

    Raises:
        OSError: one is not there.
    """
    digest, newest, base = hashlib.sha256(), 0, str(root)
    for path in paths:
        each = os.stat(path)  # noqa: PTH116 (a Path for each of a million takes its time)
        newest = max(newest, each.st_mtime_ns, each.st_ctime_ns)
        seen = (
            f"{path.removeprefix(base)}\0{each.st_size} {each.st_mtime_ns} {each.st_ctime_ns} "
            f"{each.st_ino}\n"
        )
        digest.update(os.fsencode(seen))
    return State(digest.hexdigest(), newest)


def digests(
    root: Path, groups: Mapping[str, Sequence[str]], most: int | None = None
) -> dict[str, str]:
    """The SHA-256 of each group of files under `root`, in the order of the groups.

    Of one file that of its content, of several that of theirs in a row.

    Args:
        most: bytes that a file may have; None: any number.

    Raises:
        RequestError: a file cannot be read, or is larger.
    """
    kept, found = Kept(root), dict[str, str]()
    try:
        states = {name: state_of(root, paths) for name, paths in groups.items()}
        for name, state in states.items():
            if isinstance(known := kept.get(name, state), str):
                found[name] = known
        wanted = {name: paths for name, paths in groups.items() if name not in found}
        for path in chain.from_iterable(wanted.values()):
            check_file(path, most)
        with closing(_read(list(chain.from_iterable(wanted.values())))) as read:
            for name, paths in wanted.items():
                each = [next(read) for _ in paths]
                found[name] = (
                    each[0].hex() if len(each) == 1 else hashlib.sha256(b"".join(each)).hexdigest()
                )
                if states[name] == state_of(root, paths):  # nobody wrote to it meanwhile
                    kept.put(name, states[name], found[name])
    except OSError as error:
        raise RequestError(f"{error.filename or root} cannot be read: {error.strerror}") from error
    kept.write()
    return {name: found[name] for name in groups}


def _read(paths: Sequence[str]) -> Generator[bytes]:
    """The SHA-256 of each file, read by several threads, which end when it is closed."""
    ended = threading.Event()
    size = max(1, min(PIECE, len(paths) // (4 * THREADS)))
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            pieces = pool.map(
                partial(_hashed, ended),
                (paths[at : at + size] for at in range(0, len(paths), size)),
            )
            flat = (each for piece in pieces for each in piece)
            yield from (
                Display.current().track(flat, len(paths), "reading files")
                if len(paths) > MANY
                else flat
            )
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)


def _hashed(ended: threading.Event, paths: Sequence[str]) -> list[bytes]:
    found = []
    for path in paths:
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            while not ended.is_set() and (block := file.read(BLOCK)):
                digest.update(block)
        found.append(digest.digest())
    return found
