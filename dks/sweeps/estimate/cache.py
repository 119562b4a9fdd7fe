"""What forecasts remember from one command to the next.

Probes of this user's machines, and counted operations.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from dks.config.files import cache_folder
from dks.config.identity import canonical_json
from dks.config.reading import read_text
from dks.config.schema import Config
from dks.runs.record import write_atomically
from dks.sweeps.estimate.probe import Probe
from dks.training.flops import Flops, flops, network_key

ENTRY_AGE = 7 * 24 * 3600.0  # seconds for which what is in a cache is believed
ENTRIES_KEPT = 500

T = TypeVar("T")


class Cache(Generic[T]):
    """Values under names in one JSON file of this user's folder for caches.

    Without a readable or writable file it is empty.
    """

    def __init__(self, file: str, parse: Callable[[dict[str, Any]], T]) -> None:
        """`parse` makes a value of an entry.

        It raises TypeError, KeyError or ValueError for what is none.
        """
        self.path = cache_folder() / file
        self._parse = parse
        self._entries = self._read()
        self._new: dict[str, dict[str, Any]] = {}

    def get(self, name: str) -> T | None:
        """The value of that name, unless it is damaged or too old."""
        return self._valid(self._entries.get(name))

    def where(self, key: str, value: str) -> list[T]:
        """All values whose entry has this value under that key."""
        entries = [
            entry
            for entry in self._entries.values()
            if isinstance(entry, dict) and entry.get(key) == value
        ]
        return [found for entry in entries if (found := self._valid(entry)) is not None]

    def put(self, name: str, **entry: Any) -> None:
        """Keep an entry; `write` brings it to disk."""
        self._new[name] = {"time": time.time(), **entry}

    def write(self) -> None:
        """Add what is new to the file, as a whole or not at all."""
        if not self._new:
            return
        entries = {
            name: entry for name, entry in self._read().items() if self._valid(entry) is not None
        } | self._new
        newest = sorted(entries.items(), key=lambda item: item[1]["time"])[-ENTRIES_KEPT:]
        with suppress(OSError):
            write_atomically(self.path, json.dumps(dict(newest), indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(read_text(self.path))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _valid(self, entry: Any) -> T | None:
        """The value in an entry of the file, if the entry is whole and not too old."""
        try:
            value, age = self._parse(entry), time.time() - entry["time"]
            return value if 0 <= age < ENTRY_AGE else None
        except (TypeError, KeyError, ValueError):
            return None


class ProbeCache:
    """Probes of this user's machines, in `dks/probes.json`."""

    def __init__(self) -> None:
        self._cache = Cache("probes.json", _probe_in)

    def get(self, name: str) -> Probe | None:
        return self._cache.get(name)

    def of_machine(self, place: str) -> list[Probe]:
        """All probes of a machine."""
        return self._cache.where("machine", place)

    def put(self, name: str, place: str, measured: Probe) -> None:
        self._cache.put(name, machine=place, probe=asdict(measured))

    def write(self) -> None:
        self._cache.write()


def _probe_in(entry: dict[str, Any]) -> Probe:
    measured = Probe(**entry["probe"])
    for number in (
        measured.seconds_per_step,
        measured.seconds_per_test_image,
        measured.flops_per_second,
    ):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(number)
    return measured


class FlopsCache:
    """Counted operations, in `dks/flops.json`.

    A sweep over dozens of networks is then counted once and not at every look.
    """

    def __init__(self) -> None:
        self._cache = Cache("flops.json", _flops_in)

    def of(self, config: Config) -> Flops:
        """Raises what `flops` raises."""
        name = hashlib.sha256(canonical_json([network_key(config), _code()]).encode()).hexdigest()[
            :16
        ]
        counted = self._cache.get(name)
        if counted is None:
            counted = flops(config)
            self._cache.put(name, flops=asdict(counted))
        return counted

    def write(self) -> None:
        self._cache.write()


def _flops_in(entry: dict[str, Any]) -> Flops:
    counted = Flops(**entry["flops"])
    if not all(isinstance(number, int) and number > 0 for number in asdict(counted).values()):
        raise ValueError(counted)
    return counted


@lru_cache(maxsize=1)
def _code() -> str:
    """What the operations of a network depend on beside its configuration.

    The code that builds and counts it.
    """
    package = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256(torch.__version__.encode())
    for path in (*sorted((package / "models").glob("*.py")), package / "training" / "flops.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()
