"""Stores: made as a whole or not at all, refused where they do not fit, read by who only looks."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.tracking import database, mlflow_internals, sender, store
from dks.tracking.cache import RowCache
from tests.conftest import ROOT, TINY, config

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


def change(file: str, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as changed, changed:
        for statement in statements:
            changed.execute(statement)


def half_made(path: str) -> None:
    """As a process leaves it that is killed while it makes MLflow's tables in the place itself."""
    change(
        path,
        "CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT, "
        "lifecycle_stage TEXT)",
        "CREATE TABLE alembic_version (version_num TEXT)",
        "INSERT INTO alembic_version VALUES ('89d4b8295536')",
    )


def with_hot_journal(path: Path, statement: str) -> None:
    """Change a database and die in the middle of the commit.

    Its file holds parts of the change, and the journal what was.
    """
    code = (
        f"import os, sqlite3; store = sqlite3.connect({str(path)!r}); store.execute('PRAGMA "
        f"cache_size = 1'); "
        f"store.execute('CREATE TABLE filling (x)'); store.execute(\"{statement}\"); "
        "store.execute('INSERT INTO filling VALUES (zeroblob(1000000))'); os._exit(0)"
    )
    subprocess.run(python(code), check=True)
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0


# --- made


def test_a_store_that_was_left_half_made_is_made_anew(
    in_folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "make_tables", lambda draft: shutil.copy(empty_store, draft))
    half_made("mlflow.db")
    for left in ("mlflow.db-journal", ".mlflow.db.draft", ".mlflow.db.draft-journal"):
        Path(left).write_bytes(b"of somebody who was killed")
    assert store.look(LOCAL) is None, "it is as good as none"
    assert store.prepare(LOCAL) == "1"
    assert store.look(LOCAL) == "1"
    assert names() == ["mlflow.db"]


def test_a_database_elsewhere_that_was_left_half_made_is_made_anew(in_folder: Path) -> None:
    """Asked through SQLAlchemy, as PostgreSQL is."""
    half_made("elsewhere.db")
    elsewhere = "sqlite+pysqlite:///elsewhere.db"
    assert mlflow_internals.schema(elsewhere) is None
    change("elsewhere.db", "INSERT INTO experiments VALUES (0, 'Default', 'active')")
    found = mlflow_internals.schema(elsewhere)
    assert found is not None and (found.found, found.known) == ("89d4b8295536", True)


def test_a_store_is_used_after_whoever_wrote_to_it_has_died(in_folder: Path) -> None:
    half_made("mlflow.db")
    _, newest = mlflow_internals.migrations()
    change(
        "mlflow.db",
        f"UPDATE alembic_version SET version_num = '{newest}'",
        "INSERT INTO experiments VALUES (7, 'dks', 'active')",
    )
    with_hot_journal(Path("mlflow.db"), "UPDATE alembic_version SET version_num = 'fff'")
    assert store.look(LOCAL) == store.prepare(LOCAL) == "7"
    assert names() == ["mlflow.db"], "what was not committed is rolled back"


def test_what_was_kept_of_runs_is_read_after_whoever_wrote_it_has_died(in_folder: Path) -> None:
    cache = RowCache("runs")
    cache.write({"a": ("stamp", {"seed": 1})})
    with_hot_journal(cache.path, "UPDATE rows SET stamp = 'half'")
    assert cache.read() == {"a": ("stamp", {"seed": 1})}


def test_a_store_is_that_of_the_current_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.open_client(str(LOCAL.uri)).get_experiment_by_name("dks") is not None
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    with pytest.raises(sqlite3.OperationalError):
        database.read_sqlite(str(LOCAL.uri))
    shutil.copy(here / "mlflow.db", "mlflow.db")
    change("mlflow.db", "UPDATE experiments SET name = 'mine' WHERE name = 'dks'")
    assert store.open_client(str(LOCAL.uri)).get_experiment_by_name("dks") is None


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
    *_, line = done.stderr.splitlines()
    assert "RequestError" in line and "200.0 KiB" in line and "ulimit -f" in line
    assert names() == []


# --- looked at


@pytest.mark.slow
def test_a_store_that_is_there_is_looked_at_and_prepared_without_mlflow(here: Path) -> None:
    code = (
        "import sys; from dks.config.schema import Tracking; from dks.tracking.store import "
        "look, prepare\n"
        "assert look(Tracking(uri='sqlite:///none.db')) is None\n"
        "assert look(Tracking(uri='sqlite:///mlflow.db', experiment='new')) is None\n"
        "tracking = Tracking(uri='sqlite:///mlflow.db')\n"
        "assert look(tracking) == prepare(tracking) == '1'\n"
        "assert not {'mlflow', 'sqlalchemy'} & set(sys.modules)"
    )
    done = subprocess.run(python(code), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_store_that_somebody_is_making_keeps_nobody_waiting(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOOK", 0.1)
    with FileLock(".mlflow.db.lock"):
        assert store.look(LOCAL) is None
    assert store.look(LOCAL) == "1"


def test_a_store_is_only_read_by_who_looks(in_folder: Path) -> None:
    half_made("mlflow.db")
    with (
        database.connected("sqlite:///mlflow.db") as read,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        read.select("DELETE FROM alembic_version")
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        database.read_sqlite("sqlite:///none.db")
    assert names() == ["mlflow.db"]


# --- refused


def test_a_database_of_something_else_is_no_store_that_was_left_half_made(in_folder: Path) -> None:
    half_made("mlflow.db")
    change("mlflow.db", "CREATE TABLE measured (x)", "INSERT INTO measured VALUES (1)")
    content = Path("mlflow.db").read_bytes()
    with pytest.raises(RequestError, match="older MLflow"):
        store.prepare(LOCAL)
    assert Path("mlflow.db").read_bytes() == content


@pytest.mark.parametrize(
    ("statement", "problem"),
    {
        "UPDATE alembic_version SET version_num = '89d4b8295536'": "mlflow db upgrade sqlite:///",
        "UPDATE alembic_version SET version_num = 'fff'": "fff",
        "UPDATE experiments SET lifecycle_stage = 'deleted'": "mlflow experiments restore -x 1",
        "": "file is not a database",
    }.items(),
)
def test_a_store_of_another_version_is_refused_and_left_as_it_is(
    here: Path, statement: str, problem: str
) -> None:
    if statement:
        change("mlflow.db", statement)
    else:
        Path("mlflow.db").write_text("garbage")
    before = Path("mlflow.db").read_bytes()
    for ask in (store.look, store.prepare):
        with pytest.raises(RequestError) as refused:
            ask(LOCAL)
        assert problem in str(refused.value)
    assert Path("mlflow.db").read_bytes() == before


def test_a_store_that_cannot_be_used_is_refused_before_anything_runs(
    here: Path, run_here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_start", lambda: pytest.fail("there is nothing to send"))
    Path("mlflow.db").write_text("garbage")
    for arguments in ([*TINY], ["-m", *TINY, "seed=1,2"]):
        code, _, err = run_here(*arguments, tracking="local")
        assert code == 2 and "sqlite:///mlflow.db" in err
        assert not Path("runs").exists() and not Path("results", "launches").exists()


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (("tracking=server",), "MLFLOW_TRACKING_URI"),
        (("tracking=server", "tracking.uri=sqlite:///x.db"), "https://HOST"),
        (("tracking.uri=http://host:5000",), "tracking=server"),
        (("tracking.uri=mlruns",), "sqlite:///FILE"),
        (("tracking=server", "tracking.uri=https://me:secret@host"), "MLFLOW_TRACKING_USERNAME"),
        (("tracking.uri=postgresql://me:secret@host/db",), "PGPASSWORD"),
    ],
)
def test_where_nothing_can_be_tracked_is_said_before_anything_runs(
    overrides: tuple[str, ...], advice: str
) -> None:
    with pytest.raises(RequestError) as refused:
        config(*overrides)
    assert advice in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_server_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = "https://mlflow.example.org", "https://other.example.org"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ours)
    assert config("tracking=server").tracking.uri == ours
    assert config("tracking=server", f"tracking.uri={other}").tracking.uri == other
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    with pytest.raises(RequestError, match="MLFLOW_TRACKING_SERVER_CERT_PATH"):
        store.prepare(Tracking(TrackingKind.server, ours))


@pytest.mark.parametrize("secret", ["pass5", "a long password"])
@pytest.mark.parametrize(
    "variable", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"]
)
def test_what_a_store_says_is_told_without_its_password_however_short(
    monkeypatch: pytest.MonkeyPatch, variable: str, secret: str
) -> None:
    monkeypatch.setenv(variable, secret)
    told = store.reason(RuntimeError(f"no access with {secret}; try again"))
    assert told == "no access with ...; try again"


def test_a_password_is_not_shown_where_a_run_is_to_be_tracked() -> None:
    with pytest.raises(RequestError, match=r"nostore://me@host/db") as refused:
        store.prepare(Tracking(uri="nostore://me:secret@host/db"))
    assert "secret" not in str(refused.value)
