"""A database that may hold MLflow's tables, read without MLflow, whose import takes seconds."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dks.config.reading import require_file
from dks.config.secrets import without_password

if TYPE_CHECKING:
    from sqlalchemy import Engine

SQLITE = "sqlite:///"
# seconds that a server has for an answer; MLflow would wait two minutes, and ask seven times again
TIMEOUT = 10


@dataclass(frozen=True)
class Schema:
    """The version of the tables in a database, as MLflow counts it.

    By the names of its migrations.
    """

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
                f"one needs {self.newest}); "
                f"make a back-up of it, then run: mlflow db upgrade {name}"
            )
        return (
            f"{name} was made by another MLflow, which the installed one does not know (its "
            f"schema is {self.found}, not "
            f"{self.newest}); install that version of MLflow, or name another tracking.uri"
        )


def schema(uri: str) -> Schema | None:
    """The version of the tables in a database.

    None where there are none yet, or where making them was broken off.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, sqlite3.Error: it cannot be read.
    """
    versions = _versions_sqlite(uri) if uri.startswith(SQLITE) else _versions(uri)
    if versions is None:
        return None
    known, newest = _migrations()
    found = versions[0] if versions else None
    return Schema(found, newest, found in known)


def is_half_made(store: sqlite3.Connection) -> bool:
    """Was whoever made MLflow's tables killed? The first experiment comes last.

    Migrations rename the table. What holds anything that migrations do not write is somebody's,
    whatever its tables are called.
    """
    tables = {
        name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    return not tables.isdisjoint({"experiments", "_alembic_tmp_experiments"}) and not any(
        store.execute(f'SELECT 1 FROM "{name}"').fetchone()
        for name in tables - {"alembic_version", "workspaces"}
    )


@cache
def _migrations() -> tuple[frozenset[str], str]:
    """All schema versions that the installed MLflow knows, and the newest.

    Read from the text of its migrations, for running them to ask, as Alembic does, imports all of
    MLflow.
    """
    found = importlib.util.find_spec("mlflow")
    assert found is not None and found.submodule_search_locations is not None, "a dependency"
    folder = (
        Path(next(iter(found.submodule_search_locations))) / "store" / "db_migrations" / "versions"
    )
    names, before = set[str](), set[str]()
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if own := re.search(r"^revision\s*=\s*[\"'](\w+)", text, re.MULTILINE):
            names.add(own[1])
            before |= set(
                re.findall(
                    r"\w+", "".join(re.findall(r"^down_revision\s*=\s*(.+)$", text, re.MULTILINE))
                )
            )
    (newest,) = names - before
    return frozenset(names), newest


def _versions_sqlite(uri: str) -> list[str] | None:
    file = Path(uri.removeprefix(SQLITE))
    if not file.exists():
        return None
    require_file(file)
    if not file.stat().st_size:
        return None
    with closing(read_sqlite(uri)) as store:
        if is_half_made(store):
            return None
        tables = {
            name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if "alembic_version" in tables:
            return [
                version for (version,) in store.execute("SELECT version_num FROM alembic_version")
            ]
        return [] if "experiments" in tables else None


def read_sqlite(uri: str, timeout: float = 20.0) -> sqlite3.Connection:
    """A connection that changes nothing and does not make the file it does not find.

    What somebody who died had not committed is rolled back, though.

    Args:
        timeout: seconds to wait for whoever writes.
    """
    place = quote(str(Path(uri.removeprefix(SQLITE)).absolute()))
    store = sqlite3.connect(f"file:{place}?mode=rw", uri=True, timeout=timeout)
    store.execute("PRAGMA query_only = ON")
    return store


def _versions(uri: str) -> list[str] | None:
    from sqlalchemy import inspect, text

    engine = engine_of(uri)
    with engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())
        if (
            "experiments" in tables
            and connection.execute(text("SELECT 1 FROM experiments")).first() is None
        ):
            return None
        if "alembic_version" in tables:
            return [
                str(row[0])
                for row in connection.execute(text("SELECT version_num FROM alembic_version"))
            ]
        return [] if "experiments" in tables else None


def engine_of(uri: str) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    waits: dict[str, Any] = (
        {"connect_timeout": TIMEOUT} if uri.startswith(("postgresql", "mysql")) else {}
    )
    return create_engine(uri, poolclass=NullPool, connect_args=waits)
