"""The MLflow store in an SQLite file.

Made as a whole or not at all, and used after whoever wrote to it has died.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from dks.config.errors import RequestError
from dks.config.schema import Tracking
from dks.tracking import database, mlflow_internals, store
from dks.tracking.cache import RowCache
from tests.conftest import ROOT

LOCAL = Tracking(uri="sqlite:///mlflow.db")
PREPARE = (
    "from dks.config.schema import Tracking; from dks.tracking.store import prepare; "
    "prepare(Tracking(uri='sqlite:///mlflow.db'))"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]


def names() -> list[str]:
    """What lies in the current folder, but for locks."""
    return sorted(path.name for path in Path().iterdir() if path.suffix != ".lock")


def half_made(path: Path) -> None:
    """As a process leaves it that is killed while it makes MLflow's tables one after another in the
    place itself.
    """
    with closing(sqlite3.connect(path)) as made, made:
        made.execute(
            "CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT, "
            "lifecycle_stage TEXT)"
        )
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
        made.execute("INSERT INTO alembic_version VALUES ('89d4b8295536')")


def with_hot_journal(path: Path, change: str) -> None:
    """Change a database and die in the middle of the commit.

    Its file holds parts of the change, and the journal what was.
    """
    code = (
        f"import os, sqlite3; store = sqlite3.connect({str(path)!r}); store.execute('PRAGMA "
        f"cache_size = 1'); "
        f"store.execute('CREATE TABLE filling (x)'); store.execute(\"{change}\"); "
        "store.execute('INSERT INTO filling VALUES (zeroblob(1000000))'); os._exit(0)"
    )
    subprocess.run(python(code), check=True)
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0


def test_a_store_that_was_left_half_made_is_made_anew(in_folder: Path) -> None:
    half_made(Path("mlflow.db"))
    for left in ("mlflow.db-journal", ".mlflow.db.draft", ".mlflow.db.draft-journal"):
        Path(left).write_bytes(b"of somebody who was killed")
    assert store.look(LOCAL) is None, "it is as good as none"
    assert store.prepare(LOCAL) == "1"
    assert store.look(LOCAL) == "1"
    assert names() == ["mlflow.db"]


def test_a_database_of_something_else_is_no_store_that_was_left_half_made(in_folder: Path) -> None:
    half_made(Path("mlflow.db"))
    with closing(sqlite3.connect("mlflow.db")) as other, other:
        other.execute("CREATE TABLE measured (x)")
        other.execute("INSERT INTO measured VALUES (1)")
    content = Path("mlflow.db").read_bytes()
    with pytest.raises(RequestError, match=r"^sqlite:///mlflow\.db was made by an older MLflow"):
        store.prepare(LOCAL)
    assert Path("mlflow.db").read_bytes() == content


def test_a_store_is_used_after_whoever_wrote_to_it_has_died(in_folder: Path) -> None:
    half_made(Path("mlflow.db"))
    with closing(sqlite3.connect("mlflow.db")) as made, made:
        made.execute(
            "UPDATE alembic_version SET version_num = ?", (mlflow_internals.migrations()[1],)
        )
        made.execute("INSERT INTO experiments VALUES (7, 'dks', 'active')")
    with_hot_journal(Path("mlflow.db"), "UPDATE alembic_version SET version_num = 'fff'")
    assert store.look(LOCAL) == store.prepare(LOCAL) == "7"
    assert names() == ["mlflow.db"], "what was not committed is rolled back"


def test_a_database_elsewhere_that_was_left_half_made_is_made_anew(in_folder: Path) -> None:
    """Asked through SQLAlchemy, as PostgreSQL is."""
    half_made(Path("elsewhere.db"))
    elsewhere = "sqlite+pysqlite:///elsewhere.db"
    assert mlflow_internals.schema(elsewhere) is None
    with closing(sqlite3.connect("elsewhere.db")) as made, made:
        made.execute("INSERT INTO experiments VALUES (0, 'Default', 'active')")
    found = mlflow_internals.schema(elsewhere)
    assert found is not None and (found.found, found.known) == ("89d4b8295536", True)


def test_what_was_kept_of_runs_is_read_after_whoever_wrote_it_has_died(in_folder: Path) -> None:
    cache = RowCache("runs")
    cache.write({"a": ("stamp", {"seed": 1})})  # type: ignore[dict-item]
    with_hot_journal(cache.path, "UPDATE rows SET stamp = 'half'")
    assert cache.read() == {"a": ("stamp", {"seed": 1})}


def test_a_store_is_only_read_by_who_looks(in_folder: Path) -> None:
    half_made(Path("mlflow.db"))
    with (
        closing(database.read_sqlite("sqlite:///mlflow.db")) as read,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        read.execute("DELETE FROM alembic_version")
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        database.read_sqlite("sqlite:///none.db")
    assert names() == ["mlflow.db"]


@pytest.mark.slow
def test_whoever_makes_a_store_may_be_killed(in_folder: Path) -> None:
    """When its draft has an eighth of its bytes; two begin at once after it."""
    maker, draft = subprocess.Popen(python(PREPARE)), Path(".mlflow.db.draft")
    until = time.monotonic() + 60
    while not (draft.exists() and draft.stat().st_size >= 100_000):
        assert maker.poll() is None and time.monotonic() < until
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert "mlflow.db" not in names() and draft.exists()
    makers = [
        subprocess.Popen(python(PREPARE), stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [(each.communicate()[1], each.returncode) for each in makers] == [("", 0)] * 2
    assert names() == ["mlflow.db"]
    assert store.look(LOCAL) == "1"


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_leaves_no_half_a_store(in_folder: Path) -> None:
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, 200 << "
        f"10)); {PREPARE}"
    )
    done = subprocess.run(python(limited), capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "dks.config.errors.RequestError: tracking.uri=sqlite:///mlflow.db cannot be opened: a "
        "file may have 200.0 KiB at most "
        "(ulimit -f); raise that limit; or choose tracking=off"
    )
    assert names() == []
