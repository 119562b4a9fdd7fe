"""What is used of MLflow that it does not promise to keep: private names, tables, wordings.

Nothing else in this package knows them. `pyproject.toml` has an upper bound on MLflow's version,
and `tests/tracking/test_mlflow_internals.py` names what another version has broken.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dks.config.reading import require_file
from dks.config.secrets import without_password
from dks.tracking.database import SQLITE, Database, connected

# --- the version of the tables in a database


@dataclass(frozen=True)
class Schema:
    """The version of MLflow's tables, by the names of its migrations."""

    found: str | None  # None: MLflow's tables, and no version
    newest: str  # of the MLflow that is installed
    known: bool  # does the installed MLflow know the one that was found?

    @property
    def fits(self) -> bool:
        return self.found == self.newest

    def problem(self, uri: str) -> str:
        """What is wrong and what to do, for a database that does not fit."""
        name = without_password(uri)
        if self.known:
            return (
                f"{name} was made by an older MLflow (its schema is {self.found}, the installed "
                f"one needs {self.newest}); make a back-up of it, then run: mlflow db upgrade "
                f"{name}"
            )
        return (
            f"{name} was made by another MLflow, which the installed one does not know (its "
            f"schema is {self.found}, not {self.newest}); install that version of MLflow, or name "
            f"another tracking.uri"
        )


def schema(uri: str) -> Schema | None:
    """The version of the tables in a database, read without MLflow, whose import takes seconds.

    None where there are none yet, or where making them was broken off.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, sqlite3.Error: it cannot be read.
    """
    if uri.startswith(SQLITE):
        file = Path(uri.removeprefix(SQLITE))
        if not file.exists():
            return None
        require_file(file)
        if not file.stat().st_size:
            return None
    with connected(uri) as database:
        tables = database.tables()
        if is_half_made(database) or tables.isdisjoint({"alembic_version", "experiments"}):
            return None
        rows: list[Any] = []
        if "alembic_version" in tables:
            rows = database.select("SELECT version_num FROM alembic_version")
    known, newest = migrations()
    found = rows[0][0] if rows else None
    return Schema(found, newest, found in known)


def is_half_made(database: Database) -> bool:
    """Was whoever made MLflow's tables killed? The first experiment comes last.

    Migrations rename the table. A file that holds anything that migrations do not write is
    somebody's, whatever its tables are called.
    """
    tables = database.tables()
    if not database.is_sqlite:
        return "experiments" in tables and not database.select("SELECT 1 FROM experiments LIMIT 1")
    return not tables.isdisjoint({"experiments", "_alembic_tmp_experiments"}) and not any(
        database.select(f'SELECT 1 FROM "{name}" LIMIT 1')
        for name in tables - {"alembic_version", "workspaces"}
    )


@cache
def migrations() -> tuple[frozenset[str], str]:
    """All schema versions that the installed MLflow knows, and the newest.

    Read from the text of its migrations, for running them to ask, as Alembic does, imports all of
    MLflow.
    """
    found = importlib.util.find_spec("mlflow")
    assert found is not None and found.submodule_search_locations is not None, "a dependency"
    package = Path(next(iter(found.submodule_search_locations)))
    names, before = set[str](), set[str]()
    for path in (package / "store" / "db_migrations" / "versions").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"^revision\s*=\s*[\"'](\w+)", text, re.MULTILINE))
        for line in re.findall(r"^down_revision\s*=\s*(.+)$", text, re.MULTILINE):
            before |= set(re.findall(r"\w+", line))
    (newest,) = names - before
    return frozenset(names), newest


def make_tables(path: Path) -> None:
    """MLflow's tables in a new SQLite file."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"{SQLITE}{path}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


# --- the tables

# all experiments: id, name, "active" or "deleted"
EXPERIMENTS = "SELECT experiment_id, name, lifecycle_stage FROM experiments"
# the runs of an experiment that are a cell, without deleted and superseded ones
CELLS = """
SELECT r.run_uuid, c.value, r.experiment_id, r.status, r.start_time, r.end_time FROM runs r
JOIN tags c ON c.run_uuid = r.run_uuid AND c.key = 'dks.cell_id'
JOIN tags o ON o.run_uuid = r.run_uuid AND o.key = 'dks.role' AND o.value = 'cell'
WHERE r.experiment_id = :experiment AND r.lifecycle_stage = 'active' AND NOT EXISTS
(SELECT 1 FROM tags s WHERE s.run_uuid = r.run_uuid AND s.key = 'dks.superseded')
"""
# of the runs :ids, those of the keys :keys
TAGS = "SELECT run_uuid, key, value FROM tags WHERE key IN :keys AND run_uuid IN :ids"
PARAMS = "SELECT run_uuid, key, value FROM params WHERE key IN :keys AND run_uuid IN :ids"
ALL_PARAMS = "SELECT key, value FROM params WHERE run_uuid = :id ORDER BY key"
LATEST = "SELECT run_uuid, key, step, value, is_nan FROM latest_metrics WHERE run_uuid IN :ids"


def points_query(database: Database, at_step: bool) -> str:
    """Run, metric, step, time, value and NaN of the metrics :keys of the runs :ids, at :step."""
    query = "SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics"
    index = "index_metrics_run_uuid_key_step"  # not in stores of old versions
    if database.is_sqlite and database.select(
        "SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = :index", index=index
    ):  # SQLite would look through a metric of all runs
        query += f" INDEXED BY {index}"
    query += " WHERE run_uuid IN :ids AND key IN :keys"
    return query + (" AND step = :step" if at_step else "")


# --- the client


def use_session(make: Callable[..., Any]) -> None:
    """All requests of MLflow's client go through the session that this makes."""
    from mlflow.utils import request_utils

    request_utils._get_request_session = make


def get(uri: str, path: str, **options: Any) -> Any:
    """The answer of a server as MLflow's client gets it, whatever its status."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", **options)


# the histories of a metric of several runs, which the client has no method for
HISTORIES = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


def histories_request(run_ids: Sequence[str], metric: str, limit: int) -> dict[str, Any]:
    """What is asked of `HISTORIES`; it answers with at most 25,000 points of 100 runs."""
    return {"run_id": run_ids, "metric_key": metric, "max_results": limit}


def latest_points(run: Any) -> dict[str, tuple[int, float]]:
    """Metric -> its last step and its value then; `run.data.metrics` has no steps."""
    return {metric.key: (metric.step, metric.value) for metric in run.data._metric_objs}


# --- the words of its errors

# What matters in what MLflow's client says of a request: the server's own words, or why it could
# not be reached.
_ESSENCES = (
    r"failed with error code (?P<status>\d+) .*?Response body: '(?P<words>[^']*)",
    r"(?P<words>no whole answer in \d+ s|redirected to .*, which is to be named itself|more than "
    r"\d+ MiB in an answer)",
    r"\[Errno -?\d+\] (?P<words>[^'\")\]]+)",
    r"(?P<words>certificate verify failed: [^(]+?) \(",
    r"(?P<words>[Rr]ead timed out)",
    r"(?P<words>[Cc]onnection to \S+ timed out)",
    r"Caused by \w+\((?P<words>[^)]+)",
)


def essence(text: str) -> str:
    """The end of a long story of a request; any other text as it is."""
    if text.startswith("API request to"):
        for pattern in _ESSENCES:
            if found := re.search(pattern, text):
                status = found.groupdict().get("status")
                return f"HTTP {status}: {found['words']}" if status else found["words"]
    return text


def http_status(error: BaseException) -> int | None:
    """The status of HTTP that an error of the client stands for; None where there is none."""
    if told := re.search(r"failed with error code (\d{3})", str(error)):
        return int(told[1])
    ask = getattr(error, "get_http_status_code", None)
    return int(ask()) if ask else None


def error_code(error: BaseException) -> str | None:
    """MLflow's name for what went wrong, such as RESOURCE_DOES_NOT_EXIST."""
    return getattr(error, "error_code", None)
