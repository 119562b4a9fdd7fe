"""Bring MLflow up to what the folder of a run says: `upload`, as often as you like.

The folder is the truth, and `mlflow.json` in it says how far the store has come. Everything that is
sent is derived from the files, with the times in them, and a store keeps one point of a metric,
step and time. So sending again what an outage left in doubt does no harm. Where `mlflow.json` is
lost, the run is found by the record's `uid`, and the store is asked what it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.config.extensions import cited
from dks.config.identity import flatten
from dks.config.reading import MIB
from dks.config.secrets import without_password
from dks.runs import heartbeat
from dks.runs.attempts import computed_by
from dks.runs.best import classifier_ending
from dks.runs.journal import Entry
from dks.runs.lock import alone
from dks.runs.record import Record, RunFolder, Status
from dks.runs.superseded import executions
from dks.tracking.destination import CELL_ID, SUPERSEDED, Destination
from dks.tracking.mlflow_internals import latest_points
from dks.tracking.upload_state import RUNNING, UploadState

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param

log = logging.getLogger(__name__)

STATUS = {Status.done: "FINISHED", Status.failed: "FAILED", Status.killed: "KILLED"}
# in one call; MLflow takes 1000 of all kinds together, and 100 parameters
POINTS, PARAMS = 800, 100
_PARAM_LIMIT = 6000  # characters; MLflow cuts longer values without a word
_BLOCK = 2**20  # bytes of a text that are read at a time
LARGEST = 256 * MIB  # bytes of a file that is sent
_NAME_LIMIT = 250  # characters of a run's name, the width of PostgreSQL's column
ARTIFACTS = (  # what is kept beside the run's metrics, of the files that are there
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
FREE_TEXTS = ("code.diff", "run.log")  # they may hold passwords

Draw = Callable[[RunFolder, Path], list[Path]]  # pictures of a run, into a folder


class DeletedRun(Exception):
    """Somebody deleted the run in MLflow; it stays deleted."""


def upload(
    folder: RunFolder,
    store: Destination,
    *,
    live: bool = False,
    dead: bool = False,
    check: bool = False,
) -> int:
    """Send what the store has not got of a run; returns the number of points, epochs times metrics.

    Args:
        live: a process works on the run, so its end is not sent.
        dead: its process is gone, even if the record says that it runs.
        check: do not trust `mlflow.json`: ask the store how far it has come.

    Raises:
        DeletedRun: the run is there, and deleted.
        Exception: of many kinds: the store did not take it. What it took is noted; call again.
    """
    with alone(folder.path):
        record = folder.read_record()  # inside, for another execution may take its place
        if record is None or not record.attempts:
            return 0
        return _Upload(folder, record, store).send(live, dead, check)


def upload_pictures(folder: RunFolder, store: Destination, draw: Draw) -> bool:
    """Send pictures of a run, if it is done, all else was sent and the store has none.

    Returns whether it did.

    Raises:
        Exception: of many kinds: the store did not take them; call again.
    """
    with alone(folder.path), tempfile.TemporaryDirectory() as place:
        record, state = folder.read_record(), UploadState.read(folder)
        if (
            record is None
            or record.status is not Status.done
            or state is None
            or state.uri != store.uri
            or not _knows_end(state, record)
            or state.pictured == state.ended
        ):
            return False
        store.check_artifacts(state.run_id)
        try:
            drawn = draw(folder, Path(place))
        except Exception:  # a run can do without a picture of it
            log.warning("no picture of %s could be drawn", folder.path, exc_info=True)
            drawn = []
        # one by one: whoever draws them need not be the user to whom the other files belong
        for path in drawn:
            store.client.log_artifact(state.run_id, str(path))
        state.pictured = state.ended
        state.write(folder)
    return bool(drawn)


class _Upload:
    """One call of `upload`."""

    def __init__(self, folder: RunFolder, record: Record, store: Destination) -> None:
        self.folder, self.record, self.store, self.client = folder, record, store, store.client
        self.params: list[Param] = []  # that the store may not have yet
        self.parent: str | None = None  # that the store was told of
        self.state: UploadState

    def send(self, live: bool, dead: bool, check: bool) -> int:
        record = self.record
        self.state = state = self._begin(check)
        entries, _ = self.folder.journal.read_from(0)
        if self._has_diverged(entries):  # it began again where the store had more
            self.client.delete_run(state.run_id)
            self.state = state = self.create()
        ends = not live and record.status in STATUS and not _knows_end(state, record)
        new = [entry for entry in entries if entry.epoch > state.epoch]
        self._send_batches(new, ends)
        if state.cell_id not in ("", record.cell_id):
            self._rename()
        if ends:
            self._send_end()
        elif dead and record.status is Status.running and state.status == RUNNING:
            self._terminate(STATUS[Status.killed], self._last_sign())
            state.write(self.folder)
        if self.folder.is_superseded and not state.superseded:
            self.client.set_tag(state.run_id, SUPERSEDED, self.folder.path.name)
            state.superseded = True
            state.write(self.folder)
        return sum(len(entry.metrics) for entry in new)

    def _begin(self, check: bool) -> UploadState:
        """The state of the run in `mlflow.json`, of the one with the record's `uid`, or a new one.

        Raises:
            DeletedRun: the run is there, and deleted.
        """
        store, state = self.store, UploadState.read(self.folder)
        if state is not None and state.uri == store.uri:
            if not check:
                return state
            if (run := store.run(state.run_id)) is not None:
                if run.info.lifecycle_stage != "active":
                    raise DeletedRun(f"mlflow runs restore --run-id {state.run_id} brings it back")
                return self._checked(state, run)
        if (run := store.find(self.record.uid)) is None:
            return self.create()
        self.params = self._params()
        return self._checked(UploadState(store.uri, run.info.run_id, store.experiment), run)

    def _checked(self, state: UploadState, run: Any) -> UploadState:
        """The state by what the store really has.

        It has whole epochs, for each is sent in one call.
        """
        steps = {name: step for name, (step, _) in latest_points(run).items()}
        times = {
            entry.epoch: entry.time
            for entry in self.folder.journal.read_from(0)[0]
            if all(steps.get(name, 0) >= entry.epoch for name in entry.metrics)
        }
        epoch, tags, is_same = max(times, default=0), run.data.tags, state.status == run.info.status
        return dataclasses.replace(
            state,
            epoch=epoch,
            time=state.time if epoch == state.epoch and state.time else times.get(epoch),
            status=run.info.status,
            ended=state.ended if is_same else None,
            pictured=state.pictured if is_same else None,
            superseded=SUPERSEDED in tags,
            cell_id=tags.get(CELL_ID, ""),
        )

    def create(self) -> UploadState:
        """A new run in the store, after what it takes the place of is marked there as superseded.

        So no reader ever finds both.
        """
        record, store, superseded = self.record, self.store, self.folder.is_superseded
        self._mark_earlier()
        tags = {
            **self._attempt_tags(),
            **self._identity_tags(),
            "dks.role": "cell",
            "dks.seed": str(record.seed),
            "mlflow.source.name": record.command or "dks",
            "mlflow.source.type": "JOB" if record.attempts[-1].job else "LOCAL",
            **({SUPERSEDED: self.folder.path.name} if superseded else {}),
            **({} if record.sweep is None else {"dks.sweep": record.sweep}),
        }
        with contextlib.suppress(OSError, KeyError):  # nobody has a name in some containers
            tags["mlflow.user"] = getuser()
        run = self.client.create_run(
            store.experiment,
            milliseconds(record.attempts[0].started),
            {key: without_password(value) for key, value in tags.items()},
            (without_password(record.label) or record.cell_id)[:_NAME_LIMIT],
        )
        self.params = self._params()
        return UploadState(
            store.uri,
            run.info.run_id,
            store.experiment,
            attempts=len(record.attempts),
            superseded=superseded,
            cell_id=record.cell_id,
        )

    def _mark_earlier(self) -> None:
        for each in executions(self.folder):
            record, state = each.read_record(), UploadState.read(each)
            run = self.store.find(record.uid) if record is not None else None
            if run is None and state is not None and state.uri == self.store.uri:
                run = self.store.run(state.run_id)
            if run is not None and run.info.lifecycle_stage == "active":
                self.client.set_tag(run.info.run_id, SUPERSEDED, each.path.name)

    def _params(self) -> list[Param]:
        """The configuration; of a value that is too long for MLflow the beginning.

        The whole is in an artifact at the end.
        """
        from mlflow.entities import Param

        return [Param(key, _cut(text)) for key, text in self._config().items()]

    def _config(self) -> dict[str, str]:
        """Dotted key -> value, without passwords."""
        values = flatten(dataclasses.asdict(self.folder.read_config()))
        return {key: without_password(str(value)) for key, value in values.items()}

    def _send_batches(self, entries: Sequence[Entry], ends: bool) -> None:
        """The configuration, the tags of an attempt, epochs and the summary of a run that ends.

        In as few calls as they fit into, for each takes a database several milliseconds.
        """
        from mlflow.entities import RunTag

        state, attempts = self.state, len(self.record.attempts)
        goes_on = state.attempts < attempts  # in a new attempt
        values = self._attempt_tags() if goes_on else {}
        if ends:  # what an attempt has contributed is known when it has trained
            values["dks.computed_by"] = self._computed_by()
        tags, params = [RunTag(key, value) for key, value in values.items()], self.params
        while len(params) > PARAMS:
            self.client.log_batch(state.run_id, params=params[:PARAMS])
            params = params[PARAMS:]
        batches = _batches(entries, self._summary() if ends else [])
        if not batches and (params or tags):
            batches = [([], None)]
        for points, last in batches:
            self.client.log_batch(state.run_id, metrics=points, params=params, tags=tags)
            if goes_on:
                if state.status != RUNNING:
                    self.client.update_run(state.run_id, status=RUNNING)
                state.attempts, state.status, state.ended = attempts, RUNNING, None
            if last is not None:
                state.epoch, state.time = last.epoch, last.time
            state.write(self.folder)
            params, tags, goes_on = [], [], False

    def _attempt_tags(self) -> dict[str, str]:
        """What may be another in each attempt."""
        record, attempt = self.record, self.record.attempts[-1]
        self.parent = self.store.parent(record.sweep)
        extensions = cited(each for begun in record.attempts for each in begun.extensions)
        return {
            # it may have been lost with a damaged record
            **({"dks.uid": record.uid} if record.uid else {}),
            "dks.attempts": str(len(record.attempts)),
            **({"dks.code": attempt.code} if attempt.code else {}),
            "dks.computed_by": self._computed_by(),
            "dks.device": attempt.device,
            **({"dks.extensions": json.dumps(extensions)} if extensions else {}),
            "dks.git_commit": attempt.git_commit or "unknown",
            "mlflow.source.git.commit": (attempt.git_commit or "").removesuffix("-dirty"),
            **({} if self.parent is None else {"mlflow.parentRunId": self.parent}),
        }

    def _computed_by(self) -> str:
        return json.dumps([dataclasses.asdict(each) for each in computed_by(self.record.attempts)])

    def _identity_tags(self) -> dict[str, str]:
        record = self.record
        return {
            CELL_ID: record.cell_id,
            "dks.config_id": record.config_id,
            "dks.method": record.method,
            "dks.schema_version": str(record.schema_version),
        }

    def _summary(self) -> list[Metric]:
        """What is known at the end; nothing of a run that failed before it could begin."""
        from mlflow.entities import Metric

        if (ended := self.record.attempts[-1].ended) is None:
            return []
        when, best = milliseconds(ended), self.folder.best(self.record)
        points = [
            Metric(f"best/{name}", value, when, int(best[f"epoch{classifier_ending(name)}"]))
            for name, value in best.items()
        ]
        costs = self.record.cost.items()
        return points + [Metric(f"cost/{name}", value, when, 0) for name, value in costs]

    def _rename(self) -> None:
        """The tags and files that name a cell by its id, after it got another one.

        MLflow's params stay what they were.
        """
        for key, value in self._identity_tags().items():
            self.client.set_tag(self.state.run_id, key, value)
        if _knows_end(self.state, self.record):
            self._send_files()
        self.state.cell_id = self.record.cell_id
        self.state.write(self.folder)

    def _send_end(self) -> None:
        """How it ended, and files."""
        ended = self.record.attempts[-1].ended
        if ended is None:  # it failed before it could begin
            return
        # it may not have been there before
        if (parent := self.store.parent(self.record.sweep)) != self.parent:
            self.client.set_tag(self.state.run_id, "mlflow.parentRunId", parent)
        self._terminate(STATUS[self.record.status], milliseconds(ended))
        try:
            self._send_files()
            self.state.ended = ended
        finally:
            self.state.write(self.folder)

    def _terminate(self, status: str, when: int) -> None:
        """Not before it began: the clock may have been set back, or be another machine's."""
        begun = milliseconds(self.record.attempts[0].started)
        self.client.set_terminated(self.state.run_id, status, max(when, begun))
        self.state.status = status

    def _send_files(self) -> None:
        """All in one call."""
        self.store.check_artifacts(self.state.run_id)
        with tempfile.TemporaryDirectory() as place:
            lay_out(self.folder, folder := Path(place))
            for key, text in self._config().items():
                if _cut(text) != text:
                    (folder / "params").mkdir(exist_ok=True)
                    (folder / "params" / f"{key}.txt").write_text(text, encoding="utf-8")
            self.client.log_artifacts(self.state.run_id, place)

    def _has_diverged(self, entries: Sequence[Entry]) -> bool:
        """Has the store what the journal has no more, for it was measured again?

        That is so where a run lost its checkpoints. It is seen when the run comes to the last epoch
        that the store has; a journal that is damaged and never gets there takes nothing away from
        the store.
        """
        epoch, when = self.state.epoch, self.state.time
        return any(entry.epoch == epoch and when not in (None, entry.time) for entry in entries)

    def _last_sign(self) -> int:
        """When a run that is gone was last seen."""
        beat = round(1000 * (heartbeat.last(self.folder.path) or 0))
        return max(beat, milliseconds(self.record.attempts[-1].started))


def lay_out(run: RunFolder, into: Path) -> None:
    """The files of a run that are sent, as links; free texts as copies without passwords."""
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


def milliseconds(when: str) -> int:
    """ISO 8601 as MLflow counts time, from 1970."""
    return round(1000 * datetime.fromisoformat(when).timestamp())


def _cut(value: str) -> str:
    """What MLflow holds of a param."""
    if len(value) <= _PARAM_LIMIT:
        return value
    rest = f"... ({len(value)} characters, all of them in the artifacts, params/)"
    return value[: _PARAM_LIMIT - 100] + rest


def _knows_end(state: UploadState, record: Record) -> bool:
    return state.status == STATUS.get(record.status) and state.ended == record.attempts[-1].ended


def _batches(
    entries: Sequence[Entry], summary: list[Metric]
) -> list[tuple[list[Metric], Entry | None]]:
    """The points of each call, of whole epochs, with the last of these."""
    from mlflow.entities import Metric

    pieces: list[tuple[list[Metric], Entry | None]] = []
    for entry in entries:
        when, values = milliseconds(entry.time), entry.metrics.items()
        pieces.append(([Metric(name, value, when, entry.epoch) for name, value in values], entry))
    if summary:
        pieces.append((summary, None))
    batches: list[tuple[list[Metric], Entry | None]] = []
    for points, last in pieces:
        if batches and len(batches[-1][0]) + len(points) <= POINTS:
            batches[-1] = batches[-1][0] + points, last or batches[-1][1]
        else:
            batches.append((points, last))
    return batches
