"""MLflow as a sink of the journal.

A background thread ships whole epochs, one call each, and notes in `mlflow.json` how far it got; a run that goes on, goes on
there as well. Training never waits for MLflow and never fails because of it: what the store did not take is still in the
journal.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dks.config.errors import RequestError
from dks.config.identity import EXECUTION_ONLY
from dks.config.schema import Config, Tracking, TrackingKind
from dks.tracking.journal import Entry
from dks.tracking.record import Record, RunFolder, Status, write_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_STATUS = {Status.done: "FINISHED", Status.failed: "FAILED", Status.killed: "KILLED"}
_PARAM_LIMIT = 6000  # characters; MLflow cuts longer values without a word
_NAME_LIMIT = 250  # characters; PostgreSQL refuses a run with a longer name, its column being so wide


class NullSink:
    """`tracking=off`."""

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Nothing to do."""

    def stepped(self, images: int) -> None:
        """Nothing to do."""

    def recorded(self, entry: Entry) -> None:
        """Nothing to do."""

    def close(self, record: Record) -> None:
        """Nothing to do."""


def open_sink(folder: RunFolder, config: Config, record: Record) -> NullSink | MlflowSink:
    """The sink that the configuration asks for, already at work."""
    return NullSink() if config.tracking.kind is TrackingKind.off else MlflowSink(folder, config, record)


def prepare_store(tracking: Tracking) -> str:
    """Create the store and the experiment, once, before any run starts; returns the experiment's id.

    Raises:
        RequestError: the store cannot be opened.
    """
    with _store_lock(tracking):
        try:
            client = _client(tracking)
            found = client.get_experiment_by_name(tracking.experiment)
            return str(found.experiment_id if found else client.create_experiment(tracking.experiment))
        except Exception as error:
            message = without_password((str(error).strip() or type(error).__name__).splitlines()[0])
            uri = without_password(str(tracking.uri))
            raise RequestError(f"tracking.uri={uri} cannot be opened: {message}; or choose tracking=off") from error


@contextmanager
def sweep_run(tracking: Tracking, sweep: str, tags: dict[str, str], goes_on: bool = False) -> Iterator[None]:
    """The parent run of a sweep, there and RUNNING inside this context; a sweep of the same name goes on in the same one.

    Args:
        goes_on: it stays RUNNING when the context ends well, for the cells run elsewhere; `end_sweep_run` ends it.
    """
    if tracking.kind is TrackingKind.off:
        yield
        return
    experiment, client = prepare_store(tracking), _client(tracking)
    run_id = _find(client, experiment, f"tags.`dks.sweep` = '{sweep}' and tags.`dks.role` = 'sweep'")
    if run_id is None:
        roles = {"dks.sweep": sweep, "dks.role": "sweep", "mlflow.runName": sweep, **tags}
        run_id = client.create_run(experiment, tags=roles).info.run_id
    client.update_run(run_id, status="RUNNING")
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if not goes_on or status != "FINISHED":
            client.set_terminated(run_id, status)


def end_sweep_run(tracking: Tracking, sweep: str, well: bool) -> None:
    """End the parent run of a sweep whose cells ran elsewhere, if there is one."""
    if tracking.kind is not TrackingKind.off:
        experiment, client = prepare_store(tracking), _client(tracking)
        run_id = _find(client, experiment, f"tags.`dks.sweep` = '{sweep}' and tags.`dks.role` = 'sweep'")
        if run_id is not None:
            client.set_terminated(run_id, "FINISHED" if well else "FAILED")


class MlflowSink:
    """Ships the journal of one run. Its methods return at once; only `close` waits, for a bounded time."""

    def __init__(self, folder: RunFolder, config: Config, record: Record) -> None:
        self._folder, self._config, self._record = folder, config, record
        self._events: queue.SimpleQueue[Record | None] = queue.SimpleQueue()  # None: look at the journal; a record: the end
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=f"mlflow-{folder.cell_id}", daemon=True)
        self._thread.start()

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Epochs of earlier attempts may be unsent."""
        self._events.put(None)

    def stepped(self, images: int) -> None:
        """Nothing is sent within an epoch."""

    def recorded(self, entry: Entry) -> None:
        """There is something new in the journal."""
        self._events.put(None)

    def close(self, record: Record) -> None:
        """Ship the rest and the final status, waiting at most `tracking.drain_seconds`."""
        self._events.put(record)
        self._thread.join(self._config.tracking.drain_seconds)
        if self._thread.is_alive():
            log.warning("MLflow has not taken everything in time; the journal is complete")
        elif self._error is not None:
            log.warning("MLflow failed (%s); the journal is complete", without_password(str(self._error)))

    def _work(self) -> None:
        try:
            client = _client(self._config.tracking)
            state = self._open_run(client)
            while True:
                event = self._events.get()
                self._ship(client, state)
                if event is not None:
                    self._finish(client, state["run_id"], event)
                    return
        except Exception as error:  # a sink never stops a run
            self._error = error
            log.exception("tracking stopped")

    def _open_run(self, client: MlflowClient) -> dict[str, Any]:
        """The MLflow run of this cell: the one an earlier attempt began in this store, or a new one."""
        uri, cell = self._config.tracking.uri, self._folder.cell_id
        if self._folder.mlflow_file.exists():
            state: dict[str, Any] = json.loads(self._folder.mlflow_file.read_text())
            if state["uri"] == uri:
                client.update_run(state["run_id"], status="RUNNING")
                for key, value in self._attempt_tags().items():
                    client.set_tag(state["run_id"], key, value)
                return state
        experiment = prepare_store(self._config.tracking)
        tags = self._tags()
        if self._record.sweep is not None:
            parent = _find(client, experiment, f"tags.`dks.sweep` = '{self._record.sweep}' and tags.`dks.role` = 'sweep'")
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
        begun, name = _milliseconds(self._record.attempts[0].started), self._record.label or cell
        run_id = client.create_run(experiment, begun, tags, name[:_NAME_LIMIT]).info.run_id
        self._log_params(client, run_id)
        client.log_artifact(run_id, str(self._folder.config_file))
        state = {"uri": uri, "run_id": run_id, "experiment_id": experiment, "epoch": 0}
        self._note(state)
        return state

    def _tags(self) -> dict[str, str]:
        record = self._record
        tags = {
            "dks.cell_id": record.cell_id,
            "dks.config_id": record.config_id,
            "dks.method": record.method,
            "dks.role": "cell",
            "dks.seed": str(record.seed),
            **self._attempt_tags(),
        }
        return tags if record.sweep is None else {**tags, "dks.sweep": record.sweep}

    def _attempt_tags(self) -> dict[str, str]:
        """What may be another in each attempt."""
        attempts = self._record.attempts
        return {
            "dks.attempts": str(len(attempts)),
            "dks.device": attempts[-1].device,
            "dks.git_commit": attempts[-1].git_commit or "unknown",
        }

    def _log_params(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Param

        values = {key: str(value) for key, value in flatten(dataclasses.asdict(self._config)).items()}
        params = [Param(key, value) for key, value in values.items() if len(value) <= _PARAM_LIMIT]
        client.log_batch(run_id, params=params)
        for key, value in values.items():
            if len(value) > _PARAM_LIMIT:
                client.log_text(run_id, value, f"params/{key}.txt")

    def _ship(self, client: MlflowClient, state: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        for entry in self._folder.journal.read():
            if entry.epoch > state["epoch"]:
                when = _milliseconds(entry.time)
                points = [Metric(name, value, when, entry.epoch) for name, value in entry.metrics.items()]
                client.log_batch(state["run_id"], metrics=points)
                state["epoch"] = entry.epoch
                self._note(state)

    def _finish(self, client: MlflowClient, run_id: str, record: Record) -> None:
        """What is known at the end; sent again, it changes nothing."""
        from mlflow.entities import Metric

        client.log_artifact(run_id, str(self._folder.record_file))
        ended = record.attempts[-1].ended
        assert ended is not None, "a sink is closed after the attempt has ended"
        when = _milliseconds(ended)
        best = {name: value for name, value in record.best.items() if name != "epoch"}
        points = [Metric(f"best/{name}", value, when, int(record.best["epoch"])) for name, value in best.items()]
        points += [Metric(f"cost/{name}", value, when, 0) for name, value in record.cost.items()]
        client.log_batch(run_id, metrics=points)
        client.set_terminated(run_id, _STATUS[record.status], when)

    def _note(self, state: dict[str, Any]) -> None:
        write_atomically(self._folder.mlflow_file, json.dumps(state) + "\n")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of what can change a result, as MLflow's params; enums by their values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in EXECUTION_ONLY:
            continue
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = getattr(value, "value", value)
    return flat


def without_password(text: str) -> str:
    """The URI of a store, or a text in which one stands, fit to be shown."""
    text = re.sub(r"(?<=://)([^\s:/@]*):[^\s?]*@", r"\1@", text)
    return re.sub(r"(?i)(?<=[?&])(\w*passw(?:or)?d)=[^\s&]*", r"\1=...", text)


def _milliseconds(when: str) -> int:
    """ISO 8601 as MLflow counts time, from 1970."""
    return round(1000 * datetime.fromisoformat(when).timestamp())


def _client(tracking: Tracking) -> MlflowClient:
    # Read when mlflow is imported; without it, its messages break into the progress bars.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.uri)


def _find(client: MlflowClient, experiment: str, condition: str) -> str | None:
    found = client.search_runs([experiment], condition, max_results=1)
    return found[0].info.run_id if found else None


@contextmanager
def _store_lock(tracking: Tracking) -> Iterator[None]:
    """Two processes that open a fresh SQLite store at once both try to create its tables, and one fails."""
    prefix = "sqlite:///"
    if tracking.uri and tracking.uri.startswith(prefix):
        path = Path(tracking.uri.removeprefix(prefix))
        if path.parent.is_dir():
            with FileLock(path.with_name(f".{path.name}.lock")):
                yield
            return
    yield
