"""The files that a sweep is made from, as digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from dks.config.files import declarations
from dks.config.registry import catalogue
from dks.sweeps.files import path_of

_CONF = "conf"


class Sources:
    """Digests of what sweeps are made from, beside what was typed: their files and `conf/`.

    They are kept with a sweep, for they change. Each is read once.
    """

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def of(self, files: Iterable[str]) -> dict[str, str]:
        """Those of `conf` and of these sweep files, as they are now."""
        return {source: self._digest(source) for source in (_CONF, *files)}

    def are(self, known: Mapping[str, str]) -> bool:
        """Are they what they were?"""
        return all(self._digest(source) == digest for source, digest in known.items())

    def _digest(self, source: str) -> str:
        if source not in self._seen:
            paths = [path_of(source)]
            if source == _CONF:
                ours, foreign = declarations(_CONF).rglob("*.yaml"), catalogue().files.items()
                paths = [*sorted(ours), *(path for _, path in sorted(foreign))]
            whole = hashlib.sha256()
            for path in paths:
                whole.update(f"{path.parent.name}/{path.name}\n".encode())
                whole.update(path.read_bytes() if path.is_file() else b"")
            self._seen[source] = whole.hexdigest()[:12]
        return self._seen[source]
