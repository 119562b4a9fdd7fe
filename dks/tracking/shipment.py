"""One run folder and its run in MLflow.

What the folder has and the store has not is sent, and nothing twice.

The folder is the truth, `mlflow.json` in it a note of how far the store has come. All that is sent
is derived from the files, with the times that they tell, and a store takes the same point of the
same time only once. So whoever sends again what an outage has left in doubt does no harm. Where the
note is lost, the run is found by the record's `uid`, and the store is asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.config.identity import flatten
from dks.config.reading import MIB
from dks.config.registry import cited
from dks.config.secrets import without_password
from dks.runs import heartbeat
from dks.runs.attempts import computed_by
from dks.runs.best import classifier_ending
from dks.runs.journal import Entry
from dks.runs.lock import alone
from dks.runs.record import Record, RunFolder, Status
from dks.runs.superseded import executions
from dks.tracking.addresses import HTTP, how_to_allow, is_pointed_at
from dks.tracking.note import RUNNING, Note
from dks.tracking.parents import find_run, sweep_condition
from dks.tracking.store import Unavailable, said

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

log = logging.getLogger(__name__)

CELL_ID = "dks.cell_id"
# the tag of a run whose place another execution of the cell has taken; it enters no mean
SUPERSEDED = "dks.superseded"
STATUS = {Status.done: "FINISHED", Status.failed: "FAILED", Status.killed: "KILLED"}
# in one call; MLflow takes 1000 of all kinds together, and 100 parameters
POINTS, PARAMS = 800, 100
_PARAM_LIMIT = 6000  # characters; MLflow cuts longer values without a word
_BLOCK = 2**20  # bytes of a text that are read at a time
LARGEST = 256 * MIB  # bytes of a file that is sent; a text may be one line
# characters; PostgreSQL refuses a run with a longer name, its column being so wide
_NAME_LIMIT = 250
# What is kept beside the run's metrics, of those that are there.
ARTIFACTS = (
    "config.yaml",
    "record.json",
    "metrics.jsonl",
    "environment.json",
    "code.diff",
    "model.txt",
    "confusion.csv",
    "classes.json",
    "run.log",
)
FREE_TEXTS = ("code.diff", "run.log")  # what is printed gets into the log as it is

Draw = Callable[[RunFolder, Path], list[Path]]  # pictures of a run, into a folder


class DeletedRun(Exception):
    """Somebody deleted the run in MLflow; it stays deleted."""


class Shipment:
    """What is to be sent of one run, in a store that is prepared.

    Args:
        experiment: its id.
        known: runs of the store by their ids, as they were a moment ago; others are asked for.
        parents: (experiment, sweep) -> the run of the sweep, kept for all shipments to this store.
    """

    def __init__(
        self,
        folder: RunFolder,
        client: MlflowClient,
        uri: str,
        experiment: str,
        known: Mapping[str, Any] | None = None,
        parents: dict[tuple[str, str], str] | None = None,
    ) -> None:
        self.folder, self.client, self.uri, self.experiment = folder, client, uri, experiment
        self.known = known or {}
        self.parents = {} if parents is None else parents
        self._parent_told: str | None = None  # in this shipment

    def send(self, live: bool, dead: bool = False, check: bool = False) -> int:
        """Send what is missing; returns the number of points, epochs times metrics.

        Args:
            live: a process works on the run, so its end is not told.
            dead: its process is gone, even if the record says that it runs.
            check: do not trust the note: ask the store how far it has come.

        Raises:
            DeletedRun: the run is there, and deleted.
            Exception: of many kinds: the store did not take it. What it took is noted; call again.
        """
        with alone(self.folder.path):
            record = self.folder.read_record()  # inside, for another execution may take its place
            if record is None or not record.attempts:
                return 0
            note, params = self._begun(record, check)
            entries, _ = self.folder.journal.read_from(0)
            if _has_diverged(note, entries):  # it began again where the store had more
                self.client.delete_run(note.run_id)
                note, params = self._create(record)
            ends = not live and record.status in STATUS and not _knows_end(note, record)
            sent = self._send(
                note, record, [entry for entry in entries if entry.epoch > note.epoch], params, ends
            )
            if note.cell_id not in ("", record.cell_id):
                self._rename(note, record)
            if ends:
                self._tell_end(note, record)
            elif dead and record.status is Status.running and note.status == RUNNING:
                self.client.set_terminated(
                    note.run_id, STATUS[Status.killed], _last_sign(self.folder, record)
                )
                note.status = STATUS[Status.killed]
                note.write(self.folder)
            if self.folder.is_superseded and not note.superseded:
                self.client.set_tag(note.run_id, SUPERSEDED, self.folder.path.name)
                note.superseded = True
                note.write(self.folder)
            return sent

    def picture(self, draw: Draw) -> bool:
        """Send pictures of the run, if it is done, all else was sent and the store has none.

        Returns whether it did.

        Raises:
            Exception: of many kinds: the store did not take them; call again.
        """
        with alone(self.folder.path), tempfile.TemporaryDirectory() as place:
            record, note = self.folder.read_record(), Note.read(self.folder)
            if (
                record is None
                or record.status is not Status.done
                or note is None
                or note.uri != self.uri
            ):
                return False
            if not _knows_end(note, record) or note.pictured == note.ended:
                return False
            self._check_place(note.run_id)
            try:
                drawn = draw(self.folder, Path(place))
            except Exception:  # a run can do without a picture of it
                log.warning("no picture of %s could be drawn", self.folder.path, exc_info=True)
                drawn = []
            # one by one: whoever draws them need not be the user to whom the other files belong
            for path in drawn:
                self.client.log_artifact(note.run_id, str(path))
            note.pictured = note.ended
            note.write(self.folder)
        return bool(drawn)

    def _begun(self, record: Record, check: bool) -> tuple[Note, list[Param]]:
        """The run in the store.

        The one that is noted, the one with the record's `uid`, or a new one; and its configuration,
        if it may not have it yet.
        """
        note = Note.read(self.folder)
        if note is not None and note.uri == self.uri:
            if not check:
                return note, []
            if (run := self._run(note.run_id)) is not None:
                if run.info.lifecycle_stage != "active":
                    raise DeletedRun(f"mlflow runs restore --run-id {note.run_id} brings it back")
                return self._noted(run, note), []
        condition = f"tags.`dks.uid` = '{record.uid}'"
        run_id = find_run(self.client, self.experiment, condition) if record.uid else None
        if run_id is None or (run := self._run(run_id)) is None:
            return self._create(record)
        return self._noted(run, Note(self.uri, run_id, self.experiment)), self._params()

    def _run(self, run_id: str) -> Any:
        """The run; None where the store has none, as one that was made anew."""
        if run_id in self.known:
            return self.known[run_id]
        try:
            return self.client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _noted(self, run: Any, note: Note) -> Note:
        """A note of what the store really has.

        It has whole epochs, for each is sent in one call.
        """
        steps = {metric.key: metric.step for metric in run.data._metric_objs}
        entries = {entry.epoch: entry for entry in self.folder.journal.read_from(0)[0]}
        known = [
            epoch
            for epoch, entry in entries.items()
            if all(steps.get(name, 0) >= epoch for name in entry.metrics)
        ]
        epoch = max(known, default=0)
        told = run.info.status
        same, tags = note.status == told, run.data.tags
        time = (
            note.time
            if epoch == note.epoch and note.time
            else entries[epoch].time
            if epoch
            else None
        )
        ended, pictured = (note.ended, note.pictured) if same else (None, None)
        withdrawn, known_as = SUPERSEDED in tags, tags.get(CELL_ID, "")
        return dataclasses.replace(
            note,
            epoch=epoch,
            time=time,
            status=told,
            ended=ended,
            pictured=pictured,
            superseded=withdrawn,
            cell_id=known_as,
        )

    def _create(self, record: Record) -> tuple[Note, list[Param]]:
        self._withdraw_earlier()
        tags = {
            **self._attempt(record),
            **_identity(record),
            "dks.role": "cell",
            "dks.seed": str(record.seed),
            "mlflow.source.name": record.command or "dks",
            "mlflow.source.type": "JOB" if record.attempts[-1].job else "LOCAL",
            **({SUPERSEDED: self.folder.path.name} if self.folder.is_superseded else {}),
            **({} if record.sweep is None else {"dks.sweep": record.sweep}),
        }
        with contextlib.suppress(OSError, KeyError):  # nobody has a name in some containers
            tags["mlflow.user"] = getuser()
        begun = milliseconds(record.attempts[0].started)
        name = without_password(record.label) or record.cell_id
        tags = {key: without_password(value) for key, value in tags.items()}
        run_id = self.client.create_run(
            self.experiment, begun, tags, name[:_NAME_LIMIT]
        ).info.run_id
        note = Note(
            self.uri, run_id, self.experiment, attempts=len(record.attempts), cell_id=record.cell_id
        )
        note.superseded = self.folder.is_superseded
        return note, self._params()

    def _withdraw_earlier(self) -> None:
        """What this execution has taken the place of is told to the store first.

        No reader ever finds both.
        """
        for each in executions(self.folder):
            record, note = each.read_record(), Note.read(each)
            condition = (
                f"tags.`dks.uid` = '{record.uid}'" if record is not None and record.uid else ""
            )
            run_id = find_run(self.client, self.experiment, condition) if condition else None
            if run_id is None and note is not None and note.uri == self.uri:
                run_id = note.run_id
            run = None if run_id is None else self._run(run_id)
            if run is not None and run.info.lifecycle_stage == "active":
                self.client.set_tag(run_id, SUPERSEDED, each.path.name)

    def _params(self) -> list[Param]:
        """The configuration. Of a value that is too long for MLflow the beginning.

        The whole is in an artifact at the end.
        """
        from mlflow.entities import Param

        values = flatten(dataclasses.asdict(self.folder.read_config()))
        return [Param(key, _cut(without_password(str(value)))) for key, value in values.items()]

    def _send(
        self, note: Note, record: Record, entries: Sequence[Entry], params: list[Param], ends: bool
    ) -> int:
        """The configuration, what is another in each attempt, epochs and what is known at the end,
        in as few calls as they fit into, for each takes a database several milliseconds.
        """
        from mlflow.entities import RunTag

        news = self._attempt(record) if note.attempts < len(record.attempts) else {}
        # What an attempt has contributed is known when it has trained.
        told = news | {"dks.computed_by": _computed_by(record)} if ends else news
        tags = [RunTag(key, value) for key, value in told.items()]
        calls: list[tuple[list[Metric], Entry | None]]
        calls = [
            ([point for entry in batch for point in _points(entry)], batch[-1])
            for batch in _batches(entries)
        ]
        summary = _summary(self.folder, record) if ends else []
        if calls and len(calls[-1][0]) + len(summary) <= POINTS:
            calls[-1] = calls[-1][0] + summary, calls[-1][1]
            summary = []
        while len(params) > PARAMS:
            self.client.log_batch(note.run_id, params=params[:PARAMS])
            params = params[PARAMS:]
        if summary or (not calls and (params or tags)):
            calls.append((summary, None))
        for points, last in calls:
            self.client.log_batch(note.run_id, metrics=points, params=params, tags=tags)
            if news and note.status != RUNNING:
                self.client.update_run(note.run_id, status=RUNNING)
            if news:
                note.attempts, note.status, note.ended = len(record.attempts), RUNNING, None
            if last is not None:
                note.epoch, note.time = last.epoch, last.time
            note.write(self.folder)
            params, tags, news = [], [], {}
        return sum(len(entry.metrics) for entry in entries)

    def _attempt(self, record: Record) -> dict[str, str]:
        """What may be another in each attempt, as tags."""
        attempt, self._parent_told = record.attempts[-1], self._parent(record)
        extensions = cited(each for begun in record.attempts for each in begun.extensions)
        return {
            # it may have been lost with a damaged record
            **({"dks.uid": record.uid} if record.uid else {}),
            "dks.attempts": str(len(record.attempts)),
            **({"dks.code": attempt.code} if attempt.code else {}),
            "dks.computed_by": _computed_by(record),
            "dks.device": attempt.device,
            **({"dks.extensions": json.dumps(extensions)} if extensions else {}),
            "dks.git_commit": attempt.git_commit or "unknown",
            "mlflow.source.git.commit": (attempt.git_commit or "").removesuffix("-dirty"),
            **({} if self._parent_told is None else {"mlflow.parentRunId": self._parent_told}),
        }

    def _parent(self, record: Record) -> str | None:
        """The run of its sweep, as soon as there is one."""
        if record.sweep is None:
            return None
        key = self.experiment, record.sweep
        if key not in self.parents and (
            found := find_run(self.client, self.experiment, sweep_condition(record.sweep))
        ):
            self.parents[key] = found
        return self.parents.get(key)

    def _rename(self, note: Note, record: Record) -> None:
        """What tells of a cell by its id, after it got another one.

        MLflow's params stay what they were.
        """
        for key, value in _identity(record).items():
            self.client.set_tag(note.run_id, key, value)
        if _knows_end(note, record):
            self._send_files(note.run_id)
        note.cell_id = record.cell_id
        note.write(self.folder)

    def _tell_end(self, note: Note, record: Record) -> None:
        """How it ended, and files."""
        ended = record.attempts[-1].ended
        if ended is None:  # it failed before it could begin
            return
        # it may not have been there before
        if (parent := self._parent(record)) != self._parent_told:
            self.client.set_tag(note.run_id, "mlflow.parentRunId", parent)
        self.client.set_terminated(
            note.run_id, STATUS[record.status], _not_before_its_begin(milliseconds(ended), record)
        )
        note.status = STATUS[record.status]
        try:
            self._send_files(note.run_id)
            note.ended = ended
        finally:
            note.write(self.folder)

    def _send_files(self, run_id: str) -> None:
        """All in one call."""
        self._check_place(run_id)
        with tempfile.TemporaryDirectory() as place:
            lay_out(self.folder, folder := Path(place))
            for key, value in flatten(dataclasses.asdict(self.folder.read_config())).items():
                text = without_password(str(value))
                if _cut(text) != text:
                    (folder / "params").mkdir(exist_ok=True)
                    (folder / "params" / f"{key}.txt").write_text(text, encoding="utf-8")
            self.client.log_artifacts(run_id, place)

    def _check_place(self, run_id: str) -> None:
        """A server that stands only in the folder of a run takes files itself.

        It does not say where else they go, such as into a folder of this machine, or with which
        other account.

        Raises:
            Unavailable: it does.
        """
        if self.uri.startswith(HTTP) and not is_pointed_at(self.uri):
            place = self.client.get_run(run_id).info.artifact_uri
            if not place.startswith(("mlflow-artifacts:", *HTTP)):
                raise Unavailable(
                    f"it wants the files of runs at {said(place)}; {how_to_allow(self.uri)}"
                )


def lay_out(run: RunFolder, into: Path) -> None:
    """The files of a run that are sent, as links.

    Texts that anybody may have written as copies without passwords.
    """
    for name in ARTIFACTS:
        if not (path := run.path / name).is_file():
            continue
        if (size := path.stat().st_size) > LARGEST:
            log.warning(
                "%s is not sent: it has %d MiB, above %d", path, size // MIB, LARGEST // MIB
            )
            continue
        if name not in FREE_TEXTS:
            (into / name).symlink_to(path.absolute())
            continue
        with (
            path.open(encoding="utf-8", errors="replace", newline="") as lines,
            (into / name).open("w", encoding="utf-8", newline="") as copy,
        ):
            while block := lines.readlines(_BLOCK):
                copy.write(without_password("".join(block)))


def _identity(record: Record) -> dict[str, str]:
    """As tags."""
    return {
        CELL_ID: record.cell_id,
        "dks.config_id": record.config_id,
        "dks.method": record.method,
        "dks.schema_version": str(record.schema_version),
    }


def _computed_by(record: Record) -> str:
    """As a tag."""
    return json.dumps([dataclasses.asdict(each) for each in computed_by(record.attempts)])


def _cut(value: str) -> str:
    """What MLflow holds of a param."""
    if len(value) <= _PARAM_LIMIT:
        return value
    return (
        f"{value[: _PARAM_LIMIT - 100]}... ({len(value)} characters, all of them in the "
        f"artifacts, params/)"
    )


def milliseconds(when: str) -> int:
    """ISO 8601 as MLflow counts time, from 1970."""
    return round(1000 * datetime.fromisoformat(when).timestamp())


def _has_diverged(note: Note, entries: Sequence[Entry]) -> bool:
    """Has the store what the journal has no more, for it was measured again?

    That is so where a run lost its checkpoints. It is seen when the run comes to the last epoch
    that the store has; a journal that is damaged and never gets there takes nothing away from the
    store.
    """
    return any(
        entry.epoch == note.epoch and note.time not in (None, entry.time) for entry in entries
    )


def _knows_end(note: Note, record: Record) -> bool:
    return note.status == STATUS.get(record.status) and note.ended == record.attempts[-1].ended


def _last_sign(folder: RunFolder, record: Record) -> int:
    """When a run that is gone was last seen, as MLflow counts time."""
    seen = max(
        round(1000 * (heartbeat.last(folder.path) or 0)), milliseconds(record.attempts[-1].started)
    )
    return _not_before_its_begin(seen, record)


def _not_before_its_begin(when: int, record: Record) -> int:
    """The clock may have been set back between two attempts, or be another machine's.

    MLflow shows the time between.
    """
    return max(when, milliseconds(record.attempts[0].started))


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Whole epochs, as many as fit into one call."""
    batch: list[Entry] = []
    for entry in entries:
        if batch and sum(len(each.metrics) for each in batch) + len(entry.metrics) > POINTS:
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def _summary(folder: RunFolder, record: Record) -> list[Metric]:
    """What is known at the end; nothing of a run that failed before it could begin."""
    from mlflow.entities import Metric

    if (ended := record.attempts[-1].ended) is None:
        return []
    when = milliseconds(ended)
    best = folder.best(record)
    points = [
        Metric(f"best/{name}", value, when, int(best[f"epoch{classifier_ending(name)}"]))
        for name, value in best.items()
    ]
    return points + [Metric(f"cost/{name}", value, when, 0) for name, value in record.cost.items()]


def _points(entry: Entry) -> list[Metric]:
    from mlflow.entities import Metric

    when = milliseconds(entry.time)
    return [Metric(name, value, when, entry.epoch) for name, value in entry.metrics.items()]
