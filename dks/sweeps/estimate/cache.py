"""What was measured on this user's machines, from one command to the next."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from dks.config.files import cache_folder
from dks.config.reading import read_text
from dks.runs.record import write_atomically

AGE = 7 * 24 * 3600.0  # seconds for which it is believed

T = TypeVar("T")


class Cache:
    """Values of JSON under keys, in one file of this user's folder for caches.

    Without a readable or writable file it is empty.
    """

    def __init__(self, file: str) -> None:
        self.path = cache_folder() / file

    def get(self, key: str, parse: Callable[[Any], T]) -> T | None:
        """The value under that key, unless there is none, it is too old or damaged.

        `parse` raises TypeError, KeyError or ValueError for what is damaged.
        """
        with suppress(TypeError, KeyError, ValueError):
            return parse(self._read()[_name(key)]["value"])
        return None

    def put(self, key: str, value: Any) -> None:
        """Keep a value; what is too old goes."""
        entries = {**self._read(), _name(key): {"time": time.time(), "value": value}}
        with suppress(OSError):
            write_atomically(self.path, json.dumps(entries, indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(read_text(self.path))
            now = time.time()
            return {
                name: entry
                for name, entry in content.items()
                if 0 <= now - entry["time"] < AGE and "value" in entry
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]
