"""What a launch writes before any cell begins; of one that is refused nothing stays."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from dks.runs.record import write_atomically


class Undo:
    """Files as they were before they were written, and folders that were not there."""

    def __init__(self) -> None:
        self._before: dict[Path, bytes | None] = {}  # None: it was not there
        self._made: set[Path] = set()
        self._trees: list[Path] = []

    def note(self, *files: Path) -> None:
        """These are about to be written."""
        for file in files:
            missing = set(takewhile(lambda folder: not folder.exists(), file.parents))
            self._made |= missing
            self._before[file] = file.read_bytes() if not missing and file.is_file() else None

    def note_folder(self, folder: Path) -> None:
        """It was made, and all that will be in it belongs to the launch."""
        self._trees.append(folder)

    def forget(self) -> None:
        """It is not refused any more."""
        self._before.clear()
        self._made.clear()
        self._trees.clear()

    def undo(self, but: Collection[Path] = ()) -> None:
        """As far as possible; `but` stay as they are."""
        for folder in self._trees:
            shutil.rmtree(folder, ignore_errors=True)
        for file in self._before.keys() - set(but):
            with suppress(OSError, ValueError):
                if (content := self._before[file]) is None:
                    file.unlink(missing_ok=True)
                elif content != file.read_bytes():
                    write_atomically(file, content.decode())
        for folder in sorted(self._made, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):  # somebody else has something there
                folder.rmdir()
