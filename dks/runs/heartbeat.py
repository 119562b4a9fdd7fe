"""`heartbeat.json`: what a run says of itself every few seconds while it lives.

Whether it lives is in the age of the file; a process that was killed leaves it as it is. Nothing
here can stop a run.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType

from dks.config.reading import read_text
from dks.runs.journal import Entry, now

log = logging.getLogger(__name__)

FILE = "heartbeat.json"
EVERY = 10.0  # seconds between two beats
SPAN = 60  # beats over which the speed is measured


@dataclass(frozen=True)
class Heartbeat:
    """The content of the file."""

    time: str  # of this beat, UTC, ISO 8601
    host: str
    pid: int
    job: str | None  # SLURM's id, "12_3" for a task of an array
    epoch: int  # the one under way, counted from 1; 0 while data is read and the network is built
    epochs: int
    images_per_second: float  # training images over the last minutes, evaluations included
    ends: str | None  # when the run is expected to end, UTC, ISO 8601; None while that is unknown


def read(folder: Path | str) -> Heartbeat | None:
    """The last beat of the run in a cell's folder.

    None where there is none, or none that can be read.
    """
    try:
        return Heartbeat(**json.loads(read_text(Path(folder) / FILE)))
    except (OSError, ValueError, TypeError):
        return None


def last(folder: Path | str) -> float | None:
    """When it last beat, in seconds since the epoch, by the file's own time.

    None where it never did.
    """
    try:
        return (Path(folder) / FILE).stat().st_mtime
    except OSError:
        return None


def age(folder: Path | str) -> float | None:
    """Seconds since the last beat; None where there is none."""
    beat = last(folder)
    return None if beat is None else max(0.0, time.time() - beat)


def slurm_job() -> str | None:
    """The job of SLURM that this process belongs to: "12", or "12_3" for a task of an array.

    None outside SLURM.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None


class Pulse:
    """Writes the beats of one run from a thread of its own, from the beginning of the context to
    its end.

    It watches the training as an observer.
    """

    def __init__(self, folder: Path, host: str, epochs: int) -> None:
        self._path, self._host, self._epochs = folder / FILE, host, epochs
        self._epoch = 0
        self._images = 0  # of a whole epoch
        self._seen = 0  # training images, those of earlier attempts included
        self._trained = 0  # by this attempt
        # when, and how many were trained by then
        self._marks: deque[tuple[float, int]] = deque(maxlen=SPAN + 1)
        self._over, self._wake = False, threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._wake.set()
        self._thread.join(EVERY)  # a file system that hangs keeps nobody

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Training begins."""
        self._images, self._seen = images, finished * images
        self._marks.append((time.monotonic(), 0))
        self._epoch = min(finished + 1, epochs)
        self._wake.set()

    def stepped(self, images: int) -> None:
        """A step was taken."""
        self._seen += images
        self._trained += images

    def recorded(self, entry: Entry) -> None:
        """An epoch is finished."""
        self._epoch, self._seen = min(entry.epoch + 1, self._epochs), entry.epoch * self._images

    def _work(self) -> None:
        failed = False
        while not self._over:
            try:
                self._beat()
            except Exception:  # a beat never stops a run
                if not failed:
                    log.warning(
                        "the heartbeat could not be written to %s", self._path, exc_info=True
                    )
                failed = True
            self._wake.wait(EVERY)
            self._wake.clear()

    def _beat(self) -> None:
        speed, ends = 0.0, None
        if self._epoch:
            self._marks.append((time.monotonic(), self._trained))
            (begun, before), (here, trained) = self._marks[0], self._marks[-1]
            speed = (trained - before) / max(here - begun, 1e-9)
        if speed > 0:
            left = (self._epochs * self._images - self._seen) / speed
            ends = (datetime.now(timezone.utc) + timedelta(seconds=left)).isoformat(
                timespec="seconds"
            )
        beat = Heartbeat(
            now(),
            self._host,
            os.getpid(),
            slurm_job(),
            self._epoch,
            self._epochs,
            round(speed, 1),
            ends,
        )
        draft = self._path.with_name(f".{FILE}")
        try:
            draft.unlink(missing_ok=True)  # nobody else's FIFO is waited for
            draft.write_text(json.dumps(asdict(beat)) + "\n", encoding="utf-8")
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)  # a full disk needs the room
            raise
