"""`metrics.jsonl`: the append-only journal of a run, the source of truth for everything measured.

One JSON object a line: {"epoch": 3, "step": 69, "time": "<UTC, ISO 8601>", "metrics": {"test/top1_error": 4.17, ...}}.
Errors are in percent. JSON has no NaN or infinity; they are written as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """The metrics after one epoch (counted from 1) and the number of steps taken until then."""

    epoch: int
    step: int
    time: str  # UTC, ISO 8601
    metrics: dict[str, float]

    def to_json(self) -> str:
        metrics = {name: value if math.isfinite(value) else _NON_FINITE[str(value)] for name, value in self.metrics.items()}
        return json.dumps({"epoch": self.epoch, "step": self.step, "time": self.time, "metrics": metrics}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Entry:
        values = json.loads(line)
        metrics = {name: float(value) for name, value in values["metrics"].items()}
        return cls(values["epoch"], values["step"], values["time"], metrics)


_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def sync_folder(folder: Path) -> None:
    """The names of the files in a folder are on disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """The journal of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, epoch: int, step: int, metrics: dict[str, float]) -> Entry:
        """Write one line; it is on disk when this returns."""
        entry, is_new = Entry(epoch, step, now(), metrics), not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(entry.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)
        return entry

    def read(self) -> list[Entry]:
        """All whole lines up to the first damaged one: a process killed while writing leaves at most its last line cut."""
        return [entry for entry, _ in self._parse()]

    def keep_until(self, epoch: int) -> list[Entry]:
        """Cut off what lies behind that epoch, for a run that goes on from there; returns what is kept."""
        kept = [(entry, end) for entry, end in self._parse() if entry.epoch <= epoch]
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(kept[-1][1] if kept else 0)
                os.fsync(file.fileno())
        return [entry for entry, _ in kept]

    def _parse(self) -> list[tuple[Entry, int]]:
        """Entries and the byte after each."""
        parsed: list[tuple[Entry, int]] = []
        end = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            end += len(line)
            try:
                if not line.endswith(b"\n"):
                    break
                parsed.append((Entry.from_json(line.decode()), end))
            except (ValueError, KeyError, TypeError, AttributeError):
                break
        return parsed
