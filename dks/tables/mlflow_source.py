"""Runs read from an MLflow store: a database directly, by a few queries for all runs; a server through its own interface.

Reading creates nothing and migrates nothing. What MLflow does to numbers is undone: NaN, which it stores as 0 and a mark, and
infinity, which it stores as the largest number there is.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import pandas as pd

from dks.config.errors import RequestError
from dks.sweeps.ledger import State
from dks.tables.cache import RowCache
from dks.tables.rows import TOP1, Row, best_epoch, histories_frame, numbers, runs_frame
from dks.tracking.mlflow_sink import without_password

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_STATES = {"FINISHED": State.done, "FAILED": State.failed, "KILLED": State.killed}  # and all others: running
_TAGS = tuple(
    f"dks.{name}" for name in ("cell_id", "config_id", "seed", "method", "git_commit", "device", "attempts")
)  # those that a row is made of
_PARAMS = ("recipe.epochs", "data.fingerprint")
_DATABASES = ("sqlite", "postgresql", "mysql")

Point = tuple[str, str, int, int, float]  # run, metric, step, time in milliseconds, value


@dataclass(frozen=True)
class _Run:
    """One run in the store, of those that are a cell."""

    run_id: str
    cell_id: str
    experiment_id: str
    status: str
    start: int  # milliseconds since 1970
    end: int | None

    @property
    def ended(self) -> bool:
        return self.status in _STATES and self.end is not None

    @property
    def stamp(self) -> str:
        """What changes when an ended run goes on, and ends again."""
        return f"{self.status} {self.end}"


@dataclass
class _Data:
    """What the store knows of one run."""

    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    latest: dict[str, tuple[int, float]] = dataclasses.field(
        default_factory=dict
    )  # metric -> its last step, and its value then


class _Store(Protocol):
    """How a kind of store is read. All methods raise RequestError where it cannot be."""

    def runs(self) -> list[_Run]:
        """All runs of the experiment that are a cell, deleted ones left out."""

    def data(self, run_ids: Sequence[str]) -> dict[str, _Data]:
        """Of these runs: the tags `_TAGS`, the params `_PARAMS`, all metrics."""

    def points(self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None) -> Iterator[Point]:
        """What was logged of these metrics, at one step or at all, in any order, repeated ones included."""

    def params(self, run_id: str) -> dict[str, str]:
        """All params of a run."""

    def place(self, run: _Run) -> str:
        """The URI of a run."""


class MlflowSource:
    """One experiment in the store at `uri`. Runs that ended are read once, and then only when they change."""

    def __init__(self, uri: str, experiment: str = "dks") -> None:
        self.name = without_password(uri)
        self._cache = RowCache(f"mlflow {_absolute(uri)} {experiment}")
        self._cells: dict[str, _Run] | None = None  # as they were when `runs` looked last
        self._store: _Store = (_Server if uri.startswith(("http://", "https://")) else _Database)(uri, experiment)

    def runs(self, cell_ids: Collection[str] | None = None) -> pd.DataFrame:
        """As `dks.tables.source.Source.runs`.

        Raises:
            RequestError: the store cannot be read, or has no such experiment.
        """
        everything = self._store.runs()
        of_cell = self._cells = _one_a_cell(everything)
        wanted = sorted(of_cell) if cell_ids is None else [cell_id for cell_id in dict.fromkeys(cell_ids) if cell_id in of_cell]
        chosen = {of_cell[cell_id].run_id: of_cell[cell_id] for cell_id in wanted}
        kept = self._cache.read(None if cell_ids is None else list(chosen))
        rows = {
            run_id: kept[run_id][1]
            for run_id, run in chosen.items()
            if run.ended and run_id in kept and kept[run_id][0] == run.stamp
        }
        fresh = self._read([run for run_id, run in chosen.items() if run_id not in rows])
        ended = {run_id: (chosen[run_id].stamp, row) for run_id, row in fresh.items() if chosen[run_id].ended}
        gone = kept.keys() - {run.run_id for run in everything} if cell_ids is None else ()
        self._cache.write(ended, gone)
        rows |= fresh
        return runs_frame([rows[run_id] for run_id in chosen])

    def histories(self, cell_ids: Collection[str], metrics: Collection[str]) -> pd.DataFrame:
        """As `dks.tables.source.Source.histories`.

        Raises:
            RequestError: the store cannot be read, or has no such experiment.
        """
        of_cell = self._known()
        cells = {of_cell[cell_id].run_id: cell_id for cell_id in cell_ids if cell_id in of_cell}
        points = _newest(self._store.points(list(cells), sorted(set(metrics))))
        return histories_frame(((cells[run_id], step, key, value) for (run_id, key, step), value in points.items()), cell_ids)

    def config(self, cell_id: str) -> dict[str, Any]:
        """As `dks.tables.source.Source.config`; all values are strings.

        Raises:
            RequestError: the store cannot be read, or has no such experiment.
        """
        run = self._known().get(cell_id)
        return {} if run is None else dict(self._store.params(run.run_id))

    def _known(self) -> dict[str, _Run]:
        if self._cells is None:
            self._cells = _one_a_cell(self._store.runs())
        return self._cells

    def _read(self, runs: Sequence[_Run]) -> dict[str, Row]:
        """Run -> its row."""
        data = self._store.data([run.run_id for run in runs]) if runs else {}
        rows = {run.run_id: _row(run, data[run.run_id], self._store.place(run)) for run in runs}
        untold = [run_id for run_id, row in rows.items() if row["epoch"] and "best/epoch" not in row]
        for run_id, best in self._best(untold, data).items():
            rows[run_id] |= best
        return rows

    def _best(self, run_ids: Sequence[str], data: dict[str, _Data]) -> dict[str, Row]:
        """The numbers of the best epoch of runs that do not tell them: unfinished ones, and those of earlier versions."""
        errors: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for (run_id, _, epoch), value in _newest(self._store.points(run_ids, [TOP1]) if run_ids else ()).items():
            errors[run_id].append((epoch, value))
        at: dict[int, list[str]] = defaultdict(list)
        found: dict[str, Row] = {}
        for run_id, known in errors.items():
            if (step := best_epoch(known)) is not None:
                at[step].append(run_id)
                found[run_id] = {"best/epoch": float(step)}
        for step, members in at.items():
            metrics = sorted({key for run_id in members for key in data[run_id].latest if not _is_summary(key)})
            for (run_id, metric, _), value in _newest(self._store.points(members, metrics, step)).items():
                found[run_id][f"best/{metric}"] = value
        return found


def _one_a_cell(runs: Iterable[_Run]) -> dict[str, _Run]:
    """Cell -> its run: of several a finished one, then the one that was begun last."""
    ordered = sorted(runs, key=lambda run: (_STATES.get(run.status) is State.done, run.start, run.run_id))
    return {run.cell_id: run for run in ordered}


def _newest(points: Iterable[Point]) -> dict[tuple[str, str, int], float]:
    """(run, metric, step) -> the value that was logged last."""
    found: dict[tuple[str, str, int], tuple[int, float]] = {}
    for run_id, metric, step, when, value in points:
        before = found.get((run_id, metric, step))
        # MLflow takes the larger of two values of the same time.
        if before is None or when > before[0] or (when == before[0] and not value <= before[1]):
            found[run_id, metric, step] = when, value
    return {key: value for key, (_, value) in found.items()}


def _is_summary(metric: str) -> bool:
    """Is it one of those that the sink adds at the end of a run?"""
    return metric.startswith(("best/", "cost/"))


def _row(run: _Run, data: _Data, place: str) -> Row:
    """What needs no history; without `best/...` where the run does not tell it."""
    tags, params, latest = data.tags, data.params, data.latest
    epoch = latest[TOP1][0] if TOP1 in latest else 0
    final = {key: value for key, (step, value) in latest.items() if epoch and step == epoch and not _is_summary(key)}
    summary: dict[str, float] = {}
    if run.status == "FINISHED" and f"best/{TOP1}" in latest:
        summary = {key: value for key, (_, value) in latest.items() if key.startswith("best/")}
        summary["best/epoch"] = float(latest[f"best/{TOP1}"][0])
    commit, fingerprint = tags.get("dks.git_commit", "unknown"), params.get("data.fingerprint", "None")
    return {
        "cell_id": run.cell_id,
        "config_id": tags.get("dks.config_id", ""),
        "seed": int(tags.get("dks.seed", 0)),
        "method": tags.get("dks.method", ""),
        "state": _STATES.get(run.status, State.running).value,
        "epoch": epoch,
        "epochs": int(params.get("recipe.epochs", 0)),
        "git_commit": None if commit == "unknown" else commit,
        "data_fingerprint": None if fingerprint == "None" else fingerprint,
        "device": tags.get("dks.device"),
        "started": datetime.fromtimestamp(run.start / 1000, timezone.utc).isoformat(timespec="milliseconds"),
        "mlflow_run_id": run.run_id,
        "mlflow_experiment_id": run.experiment_id,
        "place": place,
        "attempts": int(tags.get("dks.attempts", 1)),
        **numbers("final", final),
        **summary,
        **{key: value for key, (_, value) in latest.items() if key.startswith("cost/")},
    }


def _restored(value: float, is_nan: bool = False) -> float:
    """The number that was logged."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _absolute(uri: str) -> str:
    """The same from every folder, without passwords."""
    file = uri.removeprefix("sqlite:///")
    return without_password(uri) if file == uri else f"sqlite:///{Path(file).absolute()}"


def _no_experiment(name: str, experiment: str, known: Iterable[str]) -> RequestError:
    there = ", ".join(sorted(known)) or "none"
    return RequestError(f"{name} has no experiment {experiment!r}; there are: {there}")


class _Database:
    """MLflow's own tables, by SQL."""

    IDS = 2000  # runs in one query; databases limit how many values they take
    INDEX = "index_metrics_run_uuid_key_step"  # of MLflow's, where the store is not of an old version

    def __init__(self, uri: str, experiment: str) -> None:
        self.name, self.experiment = without_password(uri), experiment
        self._engine = _engine(uri, self.name)

    def runs(self) -> list[_Run]:
        with self._open() as connection:
            known = self._select(
                connection, "SELECT experiment_id, name FROM experiments e WHERE e.lifecycle_stage = 'active'", {}
            )
            ids = [number for number, name in known if name == self.experiment]
            if not ids:
                raise _no_experiment(self.name, self.experiment, {name for _, name in known})
            found = self._select(
                connection,
                "SELECT r.run_uuid, c.value, r.experiment_id, r.status, r.start_time, r.end_time FROM runs r"
                " JOIN tags c ON c.run_uuid = r.run_uuid AND c.key = 'dks.cell_id'"
                " JOIN tags o ON o.run_uuid = r.run_uuid AND o.key = 'dks.role' AND o.value = 'cell'"
                " WHERE r.experiment_id IN :experiments AND r.lifecycle_stage = 'active'",
                {"experiments": ids},
            )
        return [_Run(run, cell, str(number), status, start or 0, end) for run, cell, number, status, start, end in found]

    def data(self, run_ids: Sequence[str]) -> dict[str, _Data]:
        found = {run_id: _Data() for run_id in run_ids}
        with self._open() as connection:
            for chunk in _chunks(run_ids, self.IDS):
                for table, keys in (("tags", _TAGS), ("params", _PARAMS)):
                    query = f"SELECT t.run_uuid, t.key, t.value FROM {table} t WHERE t.key IN :keys AND t.run_uuid IN :ids"
                    for run_id, key, value in self._select(connection, query, {"keys": keys, "ids": chunk}):
                        getattr(found[run_id], table)[key] = value
                query = "SELECT m.run_uuid, m.key, m.step, m.value, m.is_nan FROM latest_metrics m WHERE m.run_uuid IN :ids"
                for run_id, key, step, value, is_nan in self._select(connection, query, {"ids": chunk}):
                    found[run_id].latest[key] = step, _restored(value, is_nan)
        return found

    def points(self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None) -> Iterator[Point]:
        query = "SELECT m.run_uuid, m.key, m.step, m.timestamp, m.value, m.is_nan FROM metrics m{} WHERE m.run_uuid IN :ids"
        query += " AND m.key IN :keys" + ("" if step is None else " AND m.step = :step")
        with self._open() as connection:
            query = query.format(self._hint(connection))
            for chunk in _chunks(run_ids, self.IDS):
                values = {"ids": chunk, "keys": list(metrics)} | ({} if step is None else {"step": step})
                for run_id, key, at, when, value, is_nan in self._select(connection, query, values):
                    yield run_id, key, at, when, _restored(value, is_nan)

    def params(self, run_id: str) -> dict[str, str]:
        with self._open() as connection:
            query = "SELECT p.key, p.value FROM params p WHERE p.run_uuid = :id ORDER BY p.key"
            return dict(map(tuple, self._select(connection, query, {"id": run_id})))

    def place(self, run: _Run) -> str:
        return f"runs:/{run.run_id}"

    def _hint(self, connection: Connection) -> str:
        """SQLite knows no better than to look through a metric of all runs, unless it is told which index to take."""
        if connection.dialect.name != "sqlite":
            return ""
        query = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'metrics' AND name = :name"
        return f" INDEXED BY {self.INDEX}" if self._select(connection, query, {"name": self.INDEX}) else ""

    @contextmanager
    def _open(self) -> Iterator[Connection]:
        from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError

        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            reason = without_password(" ".join(str(getattr(error, "orig", None) or error).split()))
            missing = isinstance(error, OperationalError | ProgrammingError) and (
                "no such table" in reason or 'relation "' in reason
            )
            what = "is no MLflow store" if missing else "cannot be read"
            raise RequestError(f"{self.name} {what}: {reason}") from error

    @staticmethod
    def _select(connection: Connection, query: str, values: dict[str, Any]) -> Sequence[Any]:
        from sqlalchemy import bindparam, text

        several: list[Any] = [
            bindparam(name, expanding=True) for name, value in values.items() if isinstance(value, list | tuple)
        ]
        return connection.execute(text(query).bindparams(*several), values).fetchall()


def _engine(uri: str, name: str) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        url = make_url(uri)
        kind = url.get_backend_name()
    except ArgumentError:
        kind = ""
    if kind not in _DATABASES:
        raise RequestError(f"{name} is no MLflow store that can be read; give sqlite:///FILE, postgresql://... or http://...")
    if kind == "sqlite":
        file = Path(url.database or "")
        if not file.is_file():
            raise RequestError(f"{name}: there is no file {file}")
        place = f"file:{quote(str(file.absolute()))}?mode=ro"  # else SQLite makes the file that it does not find

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(place, uri=True, timeout=20)

        return create_engine("sqlite://", creator=connect, poolclass=NullPool)
    try:
        return create_engine(url, poolclass=NullPool)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        extra = "pip install 'dks[postgres]'" if kind == "postgresql" else "install one"
        raise RequestError(f"{name}: there is no driver for {kind} here ({error}); {extra}") from error


class _Server:
    """A tracking server, through MLflow's client."""

    PAGE = 1000  # runs in one answer
    RUNS, POINTS = 100, 25_000  # that the server takes and gives at most in one answer about histories

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.name, self.experiment = uri.rstrip("/"), without_password(uri).rstrip("/"), experiment
        self._known: dict[str, _Data] = {}  # run -> what came with the list of runs

    def runs(self) -> list[_Run]:
        with self._asking() as client:
            self._greet()
            found = client.get_experiment_by_name(self.experiment)
            if found is None or found.lifecycle_stage != "active":
                raise _no_experiment(self.name, self.experiment, {each.name for each in client.search_experiments()})
            runs, page = [], None
            while page is None or page.token:
                page = client.search_runs(
                    [found.experiment_id], "tags.`dks.role` = 'cell'", max_results=self.PAGE, page_token=page and page.token
                )
                runs += page
        self._known = {run.info.run_id: self._data(run.data) for run in runs}
        return [
            _Run(
                run.info.run_id,
                run.data.tags["dks.cell_id"],
                str(run.info.experiment_id),
                run.info.status,
                run.info.start_time or 0,
                run.info.end_time,
            )
            for run in runs
            if "dks.cell_id" in run.data.tags
        ]

    def data(self, run_ids: Sequence[str]) -> dict[str, _Data]:
        return {run_id: self._known[run_id] for run_id in run_ids}

    def points(self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None) -> Iterator[Point]:
        for metric in metrics:
            for chunk in _chunks(run_ids, self.RUNS):
                for run_id, at, when, value in self._histories(chunk, metric):
                    if step is None or at == step:
                        yield run_id, metric, at, when, _restored(value)

    def params(self, run_id: str) -> dict[str, str]:
        return dict(sorted(self._known[run_id].params.items()))

    def place(self, run: _Run) -> str:
        return f"{self.name}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    @staticmethod
    def _data(data: Any) -> _Data:
        # `data.metrics` has no steps.
        latest = {metric.key: (metric.step, _restored(metric.value)) for metric in data._metric_objs}
        return _Data(dict(data.tags), dict(data.params), latest)

    def _histories(self, run_ids: Sequence[str], metric: str) -> list[tuple[str, int, int, float]]:
        """Run, step, time and value. What the server cuts off is asked for again, in smaller pieces."""
        query = {"run_id": run_ids, "metric_key": metric, "max_results": self.POINTS}
        path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
        with self._asking():
            answer = self._get(path, params=query)
        if answer.status_code != 200:
            raise RequestError(f"{self.name} answers {answer.status_code} to {path}: {' '.join(answer.text.split())[:200]}")
        points = answer.json()["metrics"]
        if len(points) < self.POINTS:
            return [(point["run_id"], point["step"], point["timestamp"], point["value"]) for point in points]
        if len(run_ids) > 1:
            half = len(run_ids) // 2
            return self._histories(run_ids[:half], metric) + self._histories(run_ids[half:], metric)
        with self._asking() as client:
            history = client.get_metric_history(run_ids[0], metric)
        return [(run_ids[0], point.step, point.timestamp, point.value) for point in history]

    def _greet(self) -> None:
        """A server that does not answer is noticed at once; MLflow's client would try for minutes."""
        self._get("/version", max_retries=0, timeout=15)

    def _get(self, path: str, **options: Any) -> Any:
        """The answer, whatever its status."""
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        return http_request(get_default_host_creds(self.uri), path, "GET", **options)

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """MLflow's client."""
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient

        try:
            yield MlflowClient(tracking_uri=self.uri)
        except RequestError:
            raise
        except Exception as error:  # of many kinds, all of them about this server
            reason = without_password(" ".join(str(error).split()) or type(error).__name__)
            raise RequestError(f"{self.name} cannot be read: {reason[:300]}") from error
