"""What a sweep is made from beside what was typed: its file, and `conf/`.

Their digests are kept with it, for they change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from dks.config.files import declarations
from dks.config.registry import catalogue
from dks.sweeps.files import NamedSweep, path_of, read
from dks.sweeps.grid import Grid

CONF = "conf"


class Sources:
    """`conf` and the names of sweep files -> digests of their content as it is now.

    Each is read once.
    """

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def of(self, grid: Grid) -> dict[str, str]:
        """Those that a sweep is made from."""
        names = (
            []
            if grid.named is None
            else [*_names(read(grid.named))]
            if grid.parts
            else [grid.named]
        )
        return {source: self._digest(source) for source in (CONF, *names)}

    def are(self, known: Mapping[str, str]) -> bool:
        """Are they what they were?"""
        return all(self._digest(source) == digest for source, digest in known.items())

    def _digest(self, source: str) -> str:
        if source not in self._seen:
            paths = [path_of(source)]
            if source == CONF:
                paths = [
                    *sorted(declarations(CONF).rglob("*.yaml")),
                    *(path for _, path in sorted(catalogue().files.items())),
                ]
            whole = hashlib.sha256()
            for path in paths:
                whole.update(f"{path.parent.name}/{path.name}\n".encode())
                whole.update(path.read_bytes() if path.is_file() else b"")
            self._seen[source] = whole.hexdigest()[:12]
        return self._seen[source]


def _names(sweep: NamedSweep) -> Iterator[str]:
    yield sweep.name
    for part in sweep.include:
        yield from _names(part)
