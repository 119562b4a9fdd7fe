"""`runs/<cell_id>/`: what one cell left on disk, and whose turn it is to work on it.

config.yaml           the frozen configuration
record.json           status, attempts, times, host, git commit, device, cost, final and best
                      metrics
metrics.jsonl         the journal
checkpoints/          what an unfinished run goes on from
weights.safetensors   the trained network, branches included
environment.json      machine, system and packages of the newest attempt
code.diff             what in the code was not committed, if anything
model.txt             the network's layers, shapes and parameters
confusion.csv         the confusion matrix of the test images after the last epoch
classes.json          the names of the classes in order, where the data has some
run.log               log records and tracebacks
superseded/<n>/       earlier executions, whose place another code has taken
lock                  held by the process that works on the cell
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from filelock import FileLock, Timeout
from yaml import YAMLError

from dks.config.errors import RequestError, short
from dks.config.frozen import from_yaml, to_yaml
from dks.config.identity import SCHEMA_VERSION, cell_id, config_id
from dks.config.methods import method_of
from dks.config.names import is_cell_id, is_sweep_name
from dks.config.reading import MIB, Unfit, open_file, read_text
from dks.config.schema import Config
from dks.runs import damage, heartbeat
from dks.runs.attempts import Attempt
from dks.runs.best import best_of, classifier_ending
from dks.runs.disk import write_draft, writing
from dks.runs.journal import Entry, Journal
from dks.runs.lock import is_held

SUPERSEDED = "superseded"
# seconds that a claim waits: for whoever only looks whether a run is claimed, or is queueing it
GLANCE = 0.2
CONFIG = MIB  # bytes that a frozen configuration may have; one has some thousand
HEADER = 100 * MIB  # bytes that the header of a file of safetensors may have, by their own rules


class Status(str, Enum):
    """Where a run stands. A `running` record whose lock is free belongs to a process that died."""

    queued = "queued"
    running = "running"
    done = "done"
    failed = "failed"
    killed = "killed"


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
    launch: str | None = None  # folder of the launch that queued it last, see dks/runs/launches.py
    status: Status = Status.queued
    attempts: list[Attempt] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)  # metrics of the last epoch, and "epoch"
    # of each classifier, as `dks.runs.best` has it
    best: dict[str, float] = field(default_factory=dict)
    # seconds, images_per_second, parameters, ...
    cost: dict[str, float] = field(default_factory=dict)
    error: dict[str, Any] | None = None  # type, message, and what else is known
    changed_labels: list[int] | None = None  # training images whose label was corrupted
    # of this folder, random: by it MLflow's run is found again; a copy of the folder has the same
    uid: str = ""
    schema_version: int = SCHEMA_VERSION


T = TypeVar("T")


def check_types(read: T) -> T:
    """A dataclass that was made from the content of a file, if its fields hold what their types
    say.

    Raises:
        ValueError: one does not.
    """
    schema: Any = type(read)
    for name, hint in _types(schema).items():
        if not isinstance(getattr(read, name), hint):
            raise ValueError(f"{name} is a {type(getattr(read, name)).__name__}")
    return read


@cache
def _types(schema: type) -> dict[str, tuple[type, ...]]:
    """Field -> the types of its values; what lists and dicts hold is left open.

    A float may be written as a whole number.
    """
    found: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(schema).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        plain = tuple(get_origin(kind) or kind for kind in kinds)
        found[name] = (*plain, int) if float in plain else plain
    return found


class RunFolder:
    """The folder of one cell."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.is_superseded = self.path.parent.name == SUPERSEDED
        self.cell_id = (self.path.parent.parent if self.is_superseded else self.path).name
        self.config_file = self.path / "config.yaml"
        self.record_file = self.path / "record.json"
        self.journal = Journal(self.path / "metrics.jsonl")
        self.checkpoints = self.path / "checkpoints"
        self.weights_file = self.path / "weights.safetensors"
        self.environment_file = self.path / "environment.json"
        self.diff_file = self.path / "code.diff"
        self.model_file = self.path / "model.txt"
        self.confusion_file = self.path / "confusion.csv"
        self.classes_file = self.path / "classes.json"
        self.log_file = self.path / "run.log"
        self.mlflow_file = self.path / "mlflow.json"
        self.record_is_damaged = False  # as `read_record` found it

    @cached_property
    def lock(self) -> FileLock:
        """Made when it is needed.

        Of thousands of cells that are only looked at, it takes as long as all else.
        """
        return FileLock(self.path / "lock")

    def claim(self) -> bool:
        """Try to become the only process that works on this cell.

        The claim ends with `release` or with the process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=GLANCE, poll_interval=GLANCE / 20)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        self.lock.release()

    def is_claimed(self) -> bool:
        """Is some process working on this cell right now?"""
        return (self.path / "lock").exists() and is_held(self.lock)

    def write_config(self, config: Config) -> None:
        write_atomically(self.config_file, to_yaml(config))

    def read_config(self) -> Config:
        """The frozen configuration.

        Raises:
            RequestError: it is missing or damaged.
        """
        try:
            return from_yaml(read_text(self.config_file, CONFIG))
        except (OSError, ValueError, YAMLError, RequestError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"{self.config_file} cannot be read: {reason}; the command that began the run "
                f"writes it again"
            ) from error

    def config_is_whole(self) -> bool:
        """Does the frozen configuration have all its parts, as far as that can be told without
        parsing it?
        """
        try:
            lines = read_text(self.config_file, CONFIG).splitlines(keepends=True)
        except (OSError, ValueError):
            return False
        keys = {line.partition(":")[0] for line in lines}
        return all(each.name in keys for each in dataclasses.fields(Config)) and lines[-1].endswith(
            "\n"
        )

    def write_record(self, record: Record) -> None:
        write_atomically(self.record_file, json.dumps(dataclasses.asdict(record), indent=1) + "\n")

    def read_record(self) -> Record | None:
        """The record, or None where there is none yet.

        One that is damaged is reported, and what the other files of the folder say takes its place;
        `record_is_damaged` tells so. Nothing is written.

        Raises:
            RequestError: it cannot be read, or is of a newer version than this program knows.
        """
        self.record_is_damaged = False
        try:
            values = json.loads(read_text(self.record_file))
            if values["schema_version"] > SCHEMA_VERSION:
                raise RequestError(
                    f"{self.record_file} is of version {values['schema_version']}, this program "
                    f"knows {SCHEMA_VERSION}"
                )
            if unknown := sorted(
                values.keys() - {each.name for each in dataclasses.fields(Record)}
            ):
                raise RequestError(
                    f"{self.record_file} was written by a newer version of this program: "
                    f"{', '.join(unknown)}"
                )
            attempts = [check_types(Attempt(**attempt)) for attempt in values.pop("attempts")]
            record = check_types(
                Record(**{**values, "status": Status(values["status"]), "attempts": attempts})
            )
            if not is_cell_id(record.cell_id):
                raise ValueError(f"{short(record.cell_id)} is no id of a cell")
            if record.sweep is not None and not is_sweep_name(record.sweep):
                raise ValueError(f"{short(record.sweep)} is no name of a sweep")
            for code in filter(None, (attempt.code for attempt in attempts)):
                if not re.fullmatch(r"[0-9a-f+]{1,200}", code):
                    raise ValueError(f"code={short(code)} is none")
            # it is asked for in a store, between quotes
            if not re.fullmatch(r"[\w-]*", record.uid):
                raise ValueError(f"uid={short(record.uid)} is none")
            return record
        except FileNotFoundError:
            return None
        except (Unfit, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.record_is_damaged = True
            reason = " ".join(str(error).split()) or type(error).__name__
            damage.report(
                self.record_file,
                f"is damaged ({reason}); what it said is taken from the other files there, as "
                f"far as they know it, and the "
                f"command that began the run writes it again",
            )
            return self._rebuilt()
        except OSError as error:
            raise RequestError(f"{self.record_file} cannot be read: {error.strerror}") from error

    def mend_record(self) -> Record | None:
        """As `read_record`, for whoever holds the lock.

        A damaged record is set aside, and the one that takes its place is written.

        Raises:
            RequestError: as `read_record`.
            DiskFull, OSError: it cannot be written.
        """
        record = self.read_record()
        if record is not None and self.record_is_damaged:
            kept = damage.set_aside(self.record_file)
            try:
                self.write_record(record)
            except BaseException:
                kept.rename(self.record_file)
                raise
            self.record_is_damaged = False
        return record

    def _rebuilt(self) -> Record:
        """What the configuration, the journal and the weights say.

        A run that has its weights and all its epochs is done.
        """
        record = Record(self.cell_id, "", 0, "unknown", {}, self.cell_id, [], status=Status.killed)
        entries = self.journal.read()
        record.error = {"type": "Damaged", "message": "the record of this run was damaged"}
        try:
            config = self.read_config()
        except RequestError as error:
            damage.report(self.config_file, str(error).removeprefix(f"{self.config_file} "))
            return record
        record.config_id = config_id(config)
        record.seed = config.seed
        record.method = method_of(config)
        record.sweep = config.sweep
        # A configuration that was cut may have become another one.
        is_own = cell_id(config) == self.cell_id
        if (
            is_own
            and [entry.epoch for entry in entries] == [*range(1, config.recipe.epochs + 1)]
            and self._has_weights()
        ):
            record.status, record.error = Status.done, None
            record.final, record.best, record.cost = results_of(entries)
        return record

    def best(self, record: Record) -> dict[str, float]:
        """`record.best`, of whatever version.

        Earlier ones kept what every classifier erred in the best epoch of c1; its own is then in
        the journal, or unknown.
        """
        others = {classifier_ending(name) for name in record.best} - {""}
        if all(f"epoch{ending}" in record.best for ending in others):
            return record.best
        return best_of(self.journal.read()) or {
            name: value for name, value in record.best.items() if not classifier_ending(name)
        }

    def _has_weights(self) -> bool:
        """Is the file of weights as long as its header says?"""
        try:
            with open_file(self.weights_file) as file:
                length = int.from_bytes(file.read(8), "little")
                size = os.fstat(file.fileno()).st_size
                header = json.loads(file.read(length)) if length < min(size, HEADER) else {}
            ends = [
                values["data_offsets"][1]
                for name, values in header.items()
                if name != "__metadata__"
            ]
            return bool(ends) and size == 8 + length + max(ends)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
            return False

    def end_attempt(self, record: Record, status: str, ended: float | None = None) -> None:
        """Put into a record how its last attempt ended, if its process died without a word.

        Args:
            ended: when, in seconds since the epoch; None: nobody saw it, so when its heart last
                beat.
        """
        attempt = record.attempts[-1] if record.attempts else None
        if attempt is None or attempt.status != Status.running.value:
            return
        started = datetime.fromisoformat(attempt.started).timestamp()
        # clocks of other machines may differ
        end = max(started, ended or heartbeat.last(self.path) or started)
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
        """Write down how a cell ended that cannot do so itself.

        Its process died, or it will never begin.

        A record with a status that is not expected stays as it is, and so does the one of a cell
        that a process still works on after `patience` seconds. Returns whether it was written.
        `ended` is as in `end_attempt`.
        """
        until = time.monotonic() + patience
        while not self.claim():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        try:
            record = self.mend_record()
            if record is None or record.status not in expected:
                return False
            self.end_attempt(record, status.value, ended)
            record.status, record.error = status, dict(error)
            self.write_record(record)
            return True
        finally:
            self.release()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole.

    A reader sees the old text or the new one, and so does the disk after a crash.

    Raises:
        DiskFull: there is no room for it.
        OSError: it cannot be written.
    """
    content = text.encode()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_draft(draft, path, content)
        damage.make_way(path)
        draft.replace(path)


def results_of(
    entries: Sequence[Entry],
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """`final`, `best` and `cost` of a record, as far as a whole journal tells."""
    speeds = [entry.metrics["train/images_per_second"] for entry in entries]
    cost = {"images_per_second": round(statistics.median(speeds), 1)}
    ends = [datetime.fromisoformat(entry.time) for entry in entries]
    # Without those during which the clock was set back.
    if epochs := [
        seconds for begin, end in pairwise(ends) if (seconds := (end - begin).total_seconds()) >= 0
    ]:
        # evaluation and checkpoint included
        cost["seconds_per_epoch"] = round(statistics.median(epochs), 4)
    return {"epoch": entries[-1].epoch, **entries[-1].metrics}, best_of(entries), cost
