"""A database that is only read.

A file of SQLite is read without SQLAlchemy, whose import takes a third of a second.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

SQLITE = "sqlite:///"
# seconds that a server has for an answer; MLflow would wait two minutes, and ask seven times again
TIMEOUT = 10

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Database:
    """A connection to a database."""

    connection: sqlite3.Connection | Connection

    @property
    def is_sqlite(self) -> bool:
        return isinstance(self.connection, sqlite3.Connection)

    def select(self, query: str, **values: object) -> list[Row]:
        """The rows; `:name` in the query stands for a value, or for a list of them."""
        for name, value in list(values.items()):
            if not isinstance(value, str) and isinstance(value, Collection):
                names = {f"{name}_{number}": each for number, each in enumerate(value)}
                values |= names
                places = ", ".join(f":{each}" for each in names)
                query = re.sub(rf":{name}\b", f"({places})", query)
                del values[name]
        if isinstance(self.connection, sqlite3.Connection):
            return self.connection.execute(query, values).fetchall()
        from sqlalchemy import text

        return [tuple(row) for row in self.connection.execute(text(query), values)]

    def tables(self) -> set[str]:
        """Their names."""
        if isinstance(self.connection, sqlite3.Connection):
            rows = self.select("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {name for (name,) in rows}
        from sqlalchemy import inspect

        return set(inspect(self.connection).get_table_names())


@contextmanager
def connected(uri: str) -> Iterator[Database]:
    """A database that is there.

    Raises:
        sqlite3.Error, sqlalchemy.exc.SQLAlchemyError: it cannot be read.
    """
    if uri.startswith(SQLITE):
        with closing(read_sqlite(uri)) as file:
            yield Database(file)
    else:
        with engine_of(uri).connect() as connection:
            yield Database(connection)


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


def engine_of(uri: str) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    waits: dict[str, Any] = (
        {"connect_timeout": TIMEOUT} if uri.startswith(("postgresql", "mysql")) else {}
    )
    return create_engine(uri, poolclass=NullPool, connect_args=waits)
