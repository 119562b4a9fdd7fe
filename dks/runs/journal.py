"""`metrics.jsonl`: the append-only journal of a run, the source of truth for everything measured.

One JSON object a line: {"epoch": 3, "step": 69, "time": "<UTC, ISO 8601>", "metrics":
{"test/top1_error": 4.17, ...}}. Errors are in percent. JSON has no NaN or infinity; they are
written as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import logging
import math
import operator
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.reading import MIB, Unfit, check_size, open_file
from dks.runs import damage
from dks.runs.disk import write_all, writing

log = logging.getLogger(__name__)

LONGEST = MIB  # bytes of a line; one has some thousand
LARGEST = 1024 * MIB  # bytes of a journal that are read at a time; a million epochs have as many


@dataclass(frozen=True)
class Entry:
    """The metrics after one epoch (counted from 1) and the number of steps taken until then."""

    epoch: int
    step: int
    time: str  # UTC, ISO 8601
    metrics: dict[str, float]

    def to_json(self) -> str:
        metrics = {
            name: value if math.isfinite(value) else _NON_FINITE[str(value)]
            for name, value in self.metrics.items()
        }
        return json.dumps(
            {"epoch": self.epoch, "step": self.step, "time": self.time, "metrics": metrics},
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, line: str) -> Entry:
        values = json.loads(line)
        metrics = {name: float(value) for name, value in values["metrics"].items()}
        return cls(
            operator.index(values["epoch"]), operator.index(values["step"]), values["time"], metrics
        )


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
        """Write one line; it is on disk when this returns.

        If that fails, the file is as long as it was.

        Raises:
            DiskFull: there is no room for it.
            OSError: it cannot be written.
        """
        entry, is_new = Entry(epoch, step, now(), metrics), not self.path.exists()
        line = (entry.to_json() + "\n").encode()
        with writing(self.path, len(line)), self.path.open("a+b", buffering=0) as file:
            end = self._whole_lines(file)
            try:
                write_all(file.fileno(), line)
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
        if is_new:
            sync_folder(self.path.parent)
        return entry

    def read(self) -> list[Entry]:
        """All whole lines up to the first damaged one, which is reported.

        A process killed while writing leaves at most its last line cut.

        Raises:
            RequestError: the file cannot be read.
        """
        try:
            parsed, dropped = self._parse(0)
            if dropped:  # or it was just being written
                parsed, dropped = self._parse(0)
        except Unfit as unfit:
            damage.report(self.path, f"{str(unfit).removeprefix('it ')}; nothing of it is read")
            return []
        if dropped:
            count = len(parsed)
            damage.report(
                self.path,
                f"is damaged behind line {count}: {count} lines are kept, {dropped} bytes are "
                f"dropped",
            )
        return [entry for entry, _ in parsed]

    def read_from(self, offset: int) -> tuple[list[Entry], int]:
        """The whole lines from that byte on, up to the first damaged one, and the byte after the
        last of them. What lies before is not read. A file that is shorter by now has none.

        Raises:
            RequestError: the file cannot be read.
        """
        try:
            parsed, _ = self._parse(offset)
        except Unfit:
            return [], offset
        return [entry for entry, _ in parsed], parsed[-1][1] if parsed else offset

    def keep_until(self, epoch: int) -> list[Entry]:
        """Cut off what lies behind that epoch, for a run that goes on from there.

        Returns what is kept.
        """
        damage.make_way(self.path)
        try:
            parsed, _ = self._parse(0)
        except Unfit as unfit:
            raise RequestError(f"{self.path} cannot be read: {unfit}") from unfit
        kept = [(entry, end) for entry, end in parsed if entry.epoch <= epoch]
        end = kept[-1][1] if kept else 0
        if lines := len(parsed) - len(kept):
            log.info(
                "%s: %d lines behind epoch %d are cut off; those epochs are trained again",
                self.path,
                lines,
                epoch,
            )
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        return [entry for entry, _ in kept]

    def _parse(self, offset: int) -> tuple[list[tuple[Entry, int]], int]:
        """Entries from that byte on and the byte after each.

        And how many bytes are left behind the last one.

        Raises:
            Unfit: it is no file, or too large.
            RequestError: it cannot be read.
        """
        parsed: list[tuple[Entry, int]] = []
        end = offset
        try:
            with open_file(self.path) as file:
                check_size(self.path, file.seek(0, os.SEEK_END) - offset, LARGEST)
                file.seek(offset)
                while (line := file.readline(LONGEST)).endswith(b"\n"):
                    try:
                        entry = Entry.from_json(line.decode())
                    except (
                        ValueError,
                        KeyError,
                        TypeError,
                        AttributeError,
                        OverflowError,
                        RecursionError,
                    ):
                        break
                    end += len(line)
                    parsed.append((entry, end))
                return parsed, max(0, file.seek(0, os.SEEK_END) - end)
        except FileNotFoundError:
            return parsed, 0
        except Unfit:
            raise
        except OSError as error:
            raise RequestError(f"{self.path} cannot be read: {error.strerror}") from error

    def _whole_lines(self, file: FileIO) -> int:
        """Where the next line begins.

        The rest of one that was cut is taken away, so that no other is glued to it.
        """
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            begin, found = end, -1
            while begin and found < 0:
                begin, behind = max(0, begin - LONGEST), begin
                found = os.pread(file.fileno(), behind - begin, begin).rfind(b"\n")
            whole = begin + found + 1
            damage.report(
                self.path, f"ends in the middle of a line; its last {end - whole} bytes are dropped"
            )
            file.truncate(whole)
            end = whole
        return end
