"""An MLflow store in a database, read by a few queries for all runs.

Reading creates nothing and migrates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.config.errors import RequestError
from dks.config.secrets import without_password
from dks.tracking.database import SQLITE, read_sqlite
from dks.tracking.mlflow_store import (
    PARAMS,
    TAGS,
    Point,
    StoredData,
    StoredRun,
    chunks,
    no_experiment,
    restored,
)
from dks.tracking.store import said
from dks.tracking.upload import SUPERSEDED

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_KINDS = ("sqlite", "postgresql", "mysql")


class Database:
    """MLflow's own tables, by SQL."""

    IDS = 2000  # runs in one query; databases limit how many values they take
    # of MLflow's, where the store is not of an old version
    INDEX = "index_metrics_run_uuid_key_step"

    def __init__(self, uri: str, experiment: str) -> None:
        self.name, self.experiment = without_password(uri), experiment
        self._engine = _engine(uri, self.name)

    def runs(self) -> list[StoredRun]:
        with self._open() as connection:
            known = self._select(
                connection,
                "SELECT experiment_id, name FROM experiments e WHERE e.lifecycle_stage = 'active'",
                {},
            )
            ids = [number for number, name in known if name == self.experiment]
            if not ids:
                raise no_experiment(self.name, self.experiment, {name for _, name in known})
            found = self._select(
                connection,
                "SELECT r.run_uuid, c.value, r.experiment_id, r.status, r.start_time, r.end_time "
                "FROM runs r"
                " JOIN tags c ON c.run_uuid = r.run_uuid AND c.key = 'dks.cell_id'"
                " JOIN tags o ON o.run_uuid = r.run_uuid AND o.key = 'dks.role' AND o.value = "
                "'cell'"
                " WHERE r.experiment_id IN :experiments AND r.lifecycle_stage = 'active'"
                " AND NOT EXISTS (SELECT 1 FROM tags s WHERE s.run_uuid = r.run_uuid AND s.key = "
                ":superseded)",
                {"experiments": ids, "superseded": SUPERSEDED},
            )
        return [
            StoredRun(run, cell, str(number), status, start or 0, end)
            for run, cell, number, status, start, end in found
        ]

    def data(self, run_ids: Sequence[str]) -> dict[str, StoredData]:
        found = {run_id: StoredData() for run_id in run_ids}
        with self._open() as connection:
            for chunk in chunks(run_ids, self.IDS):
                for table, keys in (("tags", TAGS), ("params", PARAMS)):
                    query = (
                        f"SELECT t.run_uuid, t.key, t.value FROM {table} t WHERE t.key IN "
                        f":keys AND t.run_uuid IN :ids"
                    )
                    for run_id, key, value in self._select(
                        connection, query, {"keys": keys, "ids": chunk}
                    ):
                        getattr(found[run_id], table)[key] = value
                query = (
                    "SELECT m.run_uuid, m.key, m.step, m.value, m.is_nan FROM latest_metrics "
                    "m WHERE m.run_uuid IN :ids"
                )
                for run_id, key, step, value, is_nan in self._select(
                    connection, query, {"ids": chunk}
                ):
                    found[run_id].latest[key] = step, restored(value, is_nan)
        return found

    def points(
        self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None
    ) -> Iterator[Point]:
        query = (
            "SELECT m.run_uuid, m.key, m.step, m.timestamp, m.value, m.is_nan FROM metrics "
            "m{} WHERE m.run_uuid IN :ids"
        )
        query += " AND m.key IN :keys" + ("" if step is None else " AND m.step = :step")
        with self._open() as connection:
            query = query.format(self._hint(connection))
            for chunk in chunks(run_ids, self.IDS):
                values = {"ids": chunk, "keys": list(metrics)} | (
                    {} if step is None else {"step": step}
                )
                for run_id, key, at, when, value, is_nan in self._select(connection, query, values):
                    yield run_id, key, at, when, restored(value, is_nan)

    def params(self, run_id: str) -> dict[str, str]:
        with self._open() as connection:
            query = "SELECT p.key, p.value FROM params p WHERE p.run_uuid = :id ORDER BY p.key"
            return dict(map(tuple, self._select(connection, query, {"id": run_id})))

    def place(self, run: StoredRun) -> str:
        return f"runs:/{run.run_id}"

    def _hint(self, connection: Connection) -> str:
        """SQLite knows no better than to look through a metric of all runs, unless it is told which
        index to take.
        """
        if connection.dialect.name != "sqlite":
            return ""
        query = (
            "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'metrics' "
            "AND name = :name"
        )
        return (
            f" INDEXED BY {self.INDEX}"
            if self._select(connection, query, {"name": self.INDEX})
            else ""
        )

    @contextmanager
    def _open(self) -> Iterator[Connection]:
        from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError

        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            reason = said(str(getattr(error, "orig", None) or error))
            missing = isinstance(error, OperationalError | ProgrammingError) and (
                "no such table" in reason or 'relation "' in reason
            )
            what = "is no MLflow store" if missing else "cannot be read"
            raise RequestError(f"{self.name} {what}: {reason}") from error

    @staticmethod
    def _select(connection: Connection, query: str, values: dict[str, Any]) -> Sequence[Any]:
        from sqlalchemy import bindparam, text

        several: list[Any] = [
            bindparam(name, expanding=True)
            for name, value in values.items()
            if isinstance(value, list | tuple)
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
    if kind not in _KINDS:
        raise RequestError(
            f"{name} is no MLflow store that can be read; give sqlite:///FILE, postgresql://... "
            f"or http://..."
        )
    if kind == "sqlite":
        file = Path(url.database or "")
        if not file.is_file():
            raise RequestError(f"{name}: there is no file {file}")
        return create_engine(
            "sqlite://",
            creator=partial(read_sqlite, f"{SQLITE}{file.absolute()}"),
            poolclass=NullPool,
        )
    try:
        return create_engine(url, poolclass=NullPool)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        extra = "pip install 'dks[postgres]'" if kind == "postgresql" else "install one"
        raise RequestError(
            f"{name}: there is no driver for {kind} here ({error}); {extra}"
        ) from error
