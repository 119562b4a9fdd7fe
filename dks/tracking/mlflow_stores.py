"""An MLflow store, read in bulk: a database by a few queries for all runs, a server by its client.

Reading creates nothing and migrates nothing. All methods raise RequestError where a store cannot be
read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dks.config.errors import RequestError
from dks.config.secrets import without_password
from dks.tracking import mlflow_internals
from dks.tracking.addresses import point_at, warn_if_exposed
from dks.tracking.database import SQLITE, Database, connected
from dks.tracking.destination import CELL_ID, SUPERSEDED
from dks.tracking.rows import FIELDS, StoredRun, restored
from dks.tracking.store import all_cells, load_mlflow, reason, said

_SOURCES = [each.source for each in FIELDS if each.source]  # tags and params
# seconds that a server has for a word, and for an answer that may be long
GREETING, PATIENCE = 15, 60

Point = tuple[str, str, int, int, float]  # run, metric, step, time in milliseconds, value


@dataclass
class StoredData:
    """What a store knows of one run."""

    texts: dict[str, str] = field(default_factory=dict)  # tags and params that a row is made of
    # metric -> its last step, and its value then
    latest: dict[str, tuple[int, float]] = field(default_factory=dict)


class StoreDatabase:
    """A database, whose tables are MLflow's own.

    Raises:
        RequestError: there is none that can be read.
    """

    IDS = 2000  # runs in one query; databases limit how many values they take

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.name, self.experiment = uri, without_password(uri), experiment
        if uri.startswith(SQLITE):
            file = Path(uri.removeprefix(SQLITE))
            if not file.is_file():
                raise RequestError(f"{self.name}: there is no file {file}")
        else:
            _check_driver(uri, self.name)

    def runs(self) -> list[StoredRun]:
        """All runs of the experiment that are a cell.

        Without deleted ones, and those whose place another one has taken.
        """
        with self._open() as database:
            if "experiments" not in database.tables():
                raise RequestError(f"{self.name} is no MLflow store: it has no table experiments")
            rows = database.select(mlflow_internals.EXPERIMENTS)
            active = {name: number for number, name, stage in rows if stage == "active"}
            if self.experiment not in active:
                raise _no_experiment(self.name, self.experiment, active)
            number = active[self.experiment]
            found = database.select(mlflow_internals.CELLS, experiment=number)
        return [
            StoredRun(run, cell, str(number), status, start or 0, end)
            for run, cell, number, status, start, end in found
        ]

    def data(self, run_ids: Sequence[str]) -> dict[str, StoredData]:
        """What is known of these runs."""
        found = {run_id: StoredData() for run_id in run_ids}
        with self._open() as database:
            for ids in _chunks(run_ids, self.IDS):
                for query in (mlflow_internals.TAGS, mlflow_internals.PARAMS):
                    for run_id, key, text in database.select(query, keys=_SOURCES, ids=ids):
                        found[run_id].texts[key] = text
                for run_id, key, step, value, is_nan in database.select(
                    mlflow_internals.LATEST, ids=ids
                ):
                    found[run_id].latest[key] = step, restored(value, is_nan)
        return found

    def points(
        self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None
    ) -> Iterator[Point]:
        """What was logged of these metrics, at one step or at all.

        In any order, repeated ones included.
        """
        at = {} if step is None else {"step": step}
        with self._open() as database:
            query = mlflow_internals.points_query(database, at_step=step is not None)
            for ids in _chunks(run_ids, self.IDS):
                for *point, value, is_nan in database.select(query, ids=ids, keys=metrics, **at):
                    run_id, key, epoch, when = point
                    yield run_id, key, epoch, when, restored(value, is_nan)

    def params(self, run_id: str) -> dict[str, str]:
        """All params of a run."""
        with self._open() as database:
            return dict(database.select(mlflow_internals.ALL_PARAMS, id=run_id))

    def place(self, run: StoredRun) -> str:
        """The URI of a run."""
        return f"runs:/{run.run_id}"

    @contextmanager
    def _open(self) -> Iterator[Database]:
        try:
            with connected(self.uri) as database:
                yield database
        except RequestError:
            raise
        except Exception as error:
            if not isinstance(error, sqlite3.Error) and not _is_sqlalchemys(error):
                raise
            why = said(str(getattr(error, "orig", None) or error))
            raise RequestError(f"{self.name} cannot be read: {why}") from error


class StoreServer:
    """A tracking server, through MLflow's client; its methods are those of `StoreDatabase`."""

    # that the server takes and gives at most in one answer about histories
    RUNS, POINTS = 100, 25_000

    def __init__(self, uri: str, experiment: str) -> None:
        point_at(uri)
        warn_if_exposed(uri)
        self.uri, self.experiment = uri.rstrip("/"), experiment
        self.name = without_password(self.uri)
        self._known: dict[str, Any] = {}  # run -> what came with the list of runs

    def runs(self) -> list[StoredRun]:
        with self._asking() as client:
            # one that does not answer is noticed at once
            mlflow_internals.get(self.uri, "/version", timeout=GREETING)
            found = client.get_experiment_by_name(self.experiment)
            if found is None or found.lifecycle_stage != "active":
                known = [each.name for each in client.search_experiments()]
                raise _no_experiment(self.name, self.experiment, known)
            self._known = {run.info.run_id: run for run in all_cells(client, found.experiment_id)}
        return [
            StoredRun(
                run_id,
                run.data.tags[CELL_ID],
                str(run.info.experiment_id),
                run.info.status,
                run.info.start_time or 0,
                run.info.end_time,
            )
            for run_id, run in self._known.items()
            if CELL_ID in run.data.tags and SUPERSEDED not in run.data.tags
        ]

    def data(self, run_ids: Sequence[str]) -> dict[str, StoredData]:
        found = {}
        for run_id in run_ids:
            run = self._known[run_id]
            latest = mlflow_internals.latest_points(run).items()
            found[run_id] = StoredData(
                run.data.tags | run.data.params,
                {name: (step, restored(value)) for name, (step, value) in latest},
            )
        return found

    def points(
        self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None
    ) -> Iterator[Point]:
        for metric in metrics:
            for ids in _chunks(run_ids, self.RUNS):
                for run_id, at, when, value in self._histories(ids, metric):
                    if step is None or at == step:
                        yield run_id, metric, at, when, restored(value)

    def params(self, run_id: str) -> dict[str, str]:
        return dict(sorted(self._known[run_id].data.params.items()))

    def place(self, run: StoredRun) -> str:
        return f"{self.name}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    def _histories(self, run_ids: Sequence[str], metric: str) -> list[tuple[str, int, int, float]]:
        """Run, step, time and value.

        What the server cuts off is asked for again, in smaller pieces.
        """
        asked = mlflow_internals.histories_request(run_ids, metric, self.POINTS)
        path = mlflow_internals.HISTORIES
        with self._asking():
            answer = mlflow_internals.get(self.uri, path, params=asked)
        if answer.status_code != 200:
            raise RequestError(
                f"{self.name} answers {answer.status_code} to {path}: {said(answer.text)}"
            )
        points = answer.json()["metrics"]
        if len(points) < self.POINTS:
            return [
                (point["run_id"], point["step"], point["timestamp"], point["value"])
                for point in points
            ]
        if len(run_ids) > 1:
            half = len(run_ids) // 2
            return self._histories(run_ids[:half], metric) + self._histories(run_ids[half:], metric)
        with self._asking() as client:
            history = client.get_metric_history(run_ids[0], metric)
        return [(run_ids[0], point.step, point.timestamp, point.value) for point in history]

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """MLflow's client."""
        load_mlflow(PATIENCE)
        from mlflow import MlflowClient

        try:
            yield MlflowClient(tracking_uri=self.uri)
        except RequestError:
            raise
        except Exception as error:  # of many kinds, all of them about this server
            raise RequestError(f"{self.name} cannot be read: {reason(error)}") from error


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _no_experiment(name: str, experiment: str, known: Iterable[str]) -> RequestError:
    there = ", ".join(sorted(known)) or "none"
    return RequestError(f"{name} has no experiment {experiment!r}; there are: {there}")


def _check_driver(uri: str, name: str) -> None:
    """Is it a database that can be read here?"""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(uri)
        kind = url.get_backend_name()
    except ArgumentError:
        kind = ""
    if kind not in ("postgresql", "mysql"):
        raise RequestError(
            f"{name} is no MLflow store that can be read; give sqlite:///FILE, postgresql://... "
            f"or http://..."
        )
    try:
        url.get_dialect().import_dbapi()
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        extra = "pip install 'dks[postgres]'" if kind == "postgresql" else "install one"
        raise RequestError(
            f"{name}: there is no driver for {kind} here ({error}); {extra}"
        ) from error


def _is_sqlalchemys(error: Exception) -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, SQLAlchemyError)
