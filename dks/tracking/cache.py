"""What was read of runs before, kept from one command to the next.

A convenience and nothing else: a file that is damaged, of another version or cannot be written is
    as good as none.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress

from dks.config.files import cache_folder
from dks.tracking.database import SQLITE, read_sqlite
from dks.tracking.rows import Row

VERSION = 4  # raise it when a row comes to say something else
UNUSED = 90 * 24 * 3600.0  # seconds after which a file to which nobody wrote goes
FEW = 500  # so many rows are looked up one by one; of more, all are read

# name of a run -> what the row was read from looked like, and the row
Kept = dict[str, tuple[str, Row]]


class RowCache:
    """The rows of one source, in one SQLite file of this user's folder for caches."""

    def __init__(self, source: str) -> None:
        self.path = (
            cache_folder() / "runs" / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.sqlite"
        )

    def read(self, names: Collection[str] | None = None) -> Kept:
        """What is kept of these runs, or of all."""
        try:
            with closing(read_sqlite(f"{SQLITE}{self.path}")) as file:
                if not _is_current(file):
                    return {}
                found = [
                    (name, stamp, json.loads(row)) for name, stamp, row in _select(file, names)
                ]
        except (sqlite3.Error, OSError, ValueError, TypeError):
            return {}
        return {name: (stamp, row) for name, stamp, row in found if isinstance(row, dict)}

    def write(self, changed: Mapping[str, tuple[str, Row]], gone: Iterable[str] = ()) -> None:
        """Keep these rows, and forget those of runs that are gone."""
        added = [(name, stamp, json.dumps(row)) for name, (stamp, row) in changed.items()]
        removed = [(name,) for name in gone]
        if not added and not removed:
            return
        with suppress(sqlite3.Error, OSError):
            if not self.path.exists():
                self._make_room()
            try:
                self._store(added, removed)
            except sqlite3.OperationalError:  # somebody else writes, the disk is full, ...
                raise
            except sqlite3.DatabaseError:  # damaged
                self.path.unlink()
                self._store(added, removed)

    def _store(self, added: list[tuple[str, str, str]], removed: list[tuple[str]]) -> None:
        with closing(sqlite3.connect(self.path, timeout=2)) as file, file:
            file.execute("PRAGMA synchronous = OFF")
            file.execute("BEGIN IMMEDIATE")
            if not _is_current(file):
                file.execute("DROP TABLE IF EXISTS rows")
                file.execute(f"PRAGMA user_version = {VERSION}")
            file.execute(
                "CREATE TABLE IF NOT EXISTS rows (name TEXT PRIMARY KEY, stamp TEXT, row TEXT)"
            )
            file.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", added)
            file.executemany("DELETE FROM rows WHERE name = ?", removed)

    def _make_room(self) -> None:
        """Remove the files of sources that nobody has read anything new from for long."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in self.path.parent.glob("*.sqlite"):
            if time.time() - path.stat().st_mtime > UNUSED:
                path.unlink()


def _is_current(file: sqlite3.Connection) -> bool:
    return bool(file.execute("PRAGMA user_version").fetchone()[0] == VERSION)


def _select(file: sqlite3.Connection, names: Collection[str] | None) -> list[tuple[str, str, str]]:
    query = "SELECT name, stamp, row FROM rows"
    if names is None or len(names) > FEW:
        return file.execute(query).fetchall()
    return [
        row for name in names for row in file.execute(f"{query} WHERE name = ?", (name,)).fetchall()
    ]
