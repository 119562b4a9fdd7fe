"""`runs/<cell_id>/`: what one cell left on disk, and whose turn it is to work on it.

config.yaml           the frozen configuration
record.json           status, attempts, times, host, git commit, device, cost, final and best metrics
metrics.jsonl         the journal
checkpoints/          what an unfinished run goes on from
weights.safetensors   the trained network, branches included
environment.json      machine, system and packages of the newest attempt
code.diff             what in the code was not committed, if anything
model.txt             the network's layers, shapes and parameters
confusion.csv         which test images were taken for what after the last epoch
run.log               log records and tracebacks
lock                  held by the process that works on the cell
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from yaml import YAMLError

from dks.config.compose import config_from, to_yaml
from dks.config.errors import RequestError
from dks.config.identity import SCHEMA_VERSION
from dks.config.schema import Config
from dks.tracking import heartbeat
from dks.tracking.journal import Journal


class Status(str, Enum):
    """Where a run stands. A `running` record whose lock is free belongs to a process that died."""

    queued = "queued"
    running = "running"
    done = "done"
    failed = "failed"
    killed = "killed"


@dataclass
class Attempt:
    """One execution: a run that was killed and went on has several."""

    started: str  # UTC, ISO 8601
    host: str
    pid: int
    device: str  # for example "cpu" or "cuda:0 (NVIDIA H100)"
    threads: int  # CPU threads of torch
    processes: int = 1  # that trained together
    first_epoch: int = 1  # the epoch it began with, counted from 1
    git_commit: str | None = None  # of the code; "-dirty" is appended where files had changed
    job: str | None = None  # SLURM's id, such as "12_3" for a task of an array
    versions: dict[str, str] = field(default_factory=dict)  # python, torch, ...
    ended: str | None = None
    status: str = Status.running.value
    seconds: float = 0.0


@dataclass
class Record:
    """The content of `record.json`."""

    cell_id: str
    config_id: str
    seed: int
    method: str  # baseline, ds, dks
    choices: dict[str, str | None]  # config group -> choice
    label: str  # what a person calls it: its place in its sweep, or its overrides
    overrides: list[str]  # as given on the command line, for this cell
    sweep: str | None = None
    command: str | None = None  # that queued it last, as it can be typed again, without passwords
    launch: str | None = None  # folder of the launch that queued it last, see dks/sweeps/launches.py
    status: Status = Status.queued
    attempts: list[Attempt] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)  # metrics of the last epoch, and "epoch"
    best: dict[str, float] = field(default_factory=dict)  # metrics of the epoch with the lowest test/top1_error, and "epoch"
    cost: dict[str, float] = field(default_factory=dict)  # seconds, images_per_second, parameters, ...
    error: dict[str, Any] | None = None  # type, message, and what else is known
    changed_labels: list[int] | None = None  # training images whose label was corrupted
    uid: str = ""  # of this folder, random: by it MLflow's run is found again; a copy of the folder has the same
    schema_version: int = SCHEMA_VERSION


class RunFolder:
    """The folder of one cell."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.cell_id = self.path.name
        self.config_file = self.path / "config.yaml"
        self.record_file = self.path / "record.json"
        self.journal = Journal(self.path / "metrics.jsonl")
        self.checkpoints = self.path / "checkpoints"
        self.weights_file = self.path / "weights.safetensors"
        self.environment_file = self.path / "environment.json"
        self.diff_file = self.path / "code.diff"
        self.model_file = self.path / "model.txt"
        self.confusion_file = self.path / "confusion.csv"
        self.log_file = self.path / "run.log"
        self.mlflow_file = self.path / "mlflow.json"

    @cached_property
    def lock(self) -> FileLock:
        """Made when it is needed: of thousands of cells that are only looked at, it takes as long as all else."""
        return FileLock(self.path / "lock")

    def claim(self) -> bool:
        """Try to become the only process that works on this cell; the claim ends with `release` or with the process."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        self.lock.release()

    def is_claimed(self) -> bool:
        """Is some process working on this cell right now?"""
        if not (self.path / "lock").exists():
            return False
        if self.claim():
            self.release()
            return False
        return True

    def write_config(self, config: Config) -> None:
        write_atomically(self.config_file, to_yaml(config))

    def read_config(self) -> Config:
        """The frozen configuration.

        Raises:
            RequestError: it is missing or damaged.
        """
        try:
            return config_from(OmegaConf.load(self.config_file))
        except (OSError, ValueError, YAMLError) as error:
            raise RequestError(f"{self.config_file} cannot be read: {' '.join(str(error).split())}") from error

    def write_record(self, record: Record) -> None:
        write_atomically(self.record_file, json.dumps(dataclasses.asdict(record), indent=1) + "\n")

    def read_record(self) -> Record | None:
        """The record, or None where there is none yet.

        Raises:
            RequestError: it is damaged, or of a newer version than this program knows.
        """
        try:
            values = json.loads(self.record_file.read_text(encoding="utf-8"))
            if values["schema_version"] > SCHEMA_VERSION:
                raise RequestError(
                    f"{self.record_file} is of version {values['schema_version']}, this program knows {SCHEMA_VERSION}"
                )
            attempts = [Attempt(**attempt) for attempt in values.pop("attempts")]
            return Record(**{**values, "status": Status(values["status"]), "attempts": attempts})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(f"{self.record_file} is damaged ({error}); remove its folder to run the cell again") from error

    def end_attempt(self, record: Record, status: str, ended: float | None = None) -> None:
        """Put into a record how its last attempt ended, if its process died without a word.

        Args:
            ended: when, in seconds since the epoch; None: nobody saw it, so when its heart last beat.
        """
        attempt = record.attempts[-1] if record.attempts else None
        if attempt is None or attempt.status != Status.running.value:
            return
        started = datetime.fromisoformat(attempt.started).timestamp()
        end = max(started, ended or heartbeat.last(self.path) or started)  # clocks of other machines may differ
        attempt.ended = datetime.fromtimestamp(end, timezone.utc).isoformat(timespec="milliseconds")
        attempt.status, attempt.seconds = status, round(end - started, 3)
        record.cost["seconds"] = round(sum(each.seconds for each in record.attempts), 3)

    def close(
        self,
        status: Status,
        error: dict[str, Any],
        expected: Collection[Status],
        ended: float | None = None,
        patience: float = 0.0,
    ) -> bool:
        """Write down how a cell ended that cannot do so itself: its process died, or it will never begin.

        A record with a status that is not expected stays as it is, and so does the one of a cell that a process still works on
        after `patience` seconds. Returns whether it was written. `ended` is as in `end_attempt`.
        """
        until = time.monotonic() + patience
        while not self.claim():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        try:
            record = self.read_record()
            if record is None or record.status not in expected:
                return False
            self.end_attempt(record, status.value, ended)
            record.status, record.error = status, dict(error)
            self.write_record(record)
            return True
        finally:
            self.release()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new one, and so does the disk after a crash."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
