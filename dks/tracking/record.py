"""`runs/<cell_id>/`: what one cell left on disk, and whose turn it is to work on it.

config.yaml           the frozen configuration
record.json           status, attempts, times, host, git commit, device, cost, final and best metrics
metrics.jsonl         the journal
checkpoints/          what an unfinished run goes on from
weights.safetensors   the trained network, branches included
run.log               log records and tracebacks
lock                  held by the process that works on the cell
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from yaml import YAMLError

from dks.config.compose import config_from, to_yaml
from dks.config.errors import RequestError
from dks.config.identity import SCHEMA_VERSION
from dks.config.schema import Config
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
    launch: str | None = None  # folder of the launch that queued it last, see dks/sweeps/launches.py
    status: Status = Status.queued
    attempts: list[Attempt] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)  # metrics of the last epoch, and "epoch"
    best: dict[str, float] = field(default_factory=dict)  # metrics of the epoch with the lowest test/top1_error, and "epoch"
    cost: dict[str, float] = field(default_factory=dict)  # seconds, images_per_second, parameters, ...
    error: dict[str, Any] | None = None  # type, message, and what else is known
    changed_labels: list[int] | None = None  # training images whose label was corrupted
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
        self.log_file = self.path / "run.log"
        self.mlflow_file = self.path / "mlflow.json"
        self.lock = FileLock(self.path / "lock")

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


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new one, and so does the disk after a crash."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
