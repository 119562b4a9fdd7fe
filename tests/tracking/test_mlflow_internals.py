"""What another version of MLflow has broken, by name: a failing case says what to mend.

Each case tries one thing of `dks/tracking/mlflow_internals.py` on the MLflow that is installed.
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dks.tracking import database, mlflow_internals, store
from dks.tracking.rows import restored
from tests.tracking.conftest import client, uri


@pytest.fixture
def run_id(here: Path) -> str:
    """A run with tags, params and odd numbers."""
    tags = {"dks.role": "cell", "dks.cell_id": "abc"}
    made = client().create_run("1", 1000, tags, "x").info.run_id
    client().log_param(made, "recipe.epochs", 2)
    for step, value in enumerate((math.inf, -math.inf, math.nan), 1):
        client().log_metric(made, "test/loss", value, timestamp=step, step=step)
    client().set_terminated(made, "FINISHED", 2000)
    return str(made)


def test_the_newest_schema_is_the_one_that_mlflow_makes(here: Path) -> None:
    found = mlflow_internals.schema(uri())
    assert found is not None and found.fits and found.known
    assert mlflow_internals.schema("sqlite:///none.db") is None
    _, newest = mlflow_internals.migrations()
    with database.connected(uri()) as opened:
        assert opened.select("SELECT version_num FROM alembic_version") == [(newest,)]


def test_tables_hold_what_was_logged(run_id: str) -> None:
    with database.connected(uri()) as opened:
        select = opened.select
        assert (1, "dks", "active") in select(mlflow_internals.EXPERIMENTS)
        (cell,) = select(mlflow_internals.CELLS, experiment=1)
        assert cell == (run_id, "abc", 1, "FINISHED", 1000, 2000)
        assert select(mlflow_internals.TAGS, keys=["dks.role"], ids=[run_id]) == [
            (run_id, "dks.role", "cell")
        ]
        assert select(mlflow_internals.PARAMS, keys=["recipe.epochs"], ids=[run_id]) == [
            (run_id, "recipe.epochs", "2")
        ]
        assert select(mlflow_internals.ALL_PARAMS, id=run_id) == [("recipe.epochs", "2")]
        (latest,) = select(mlflow_internals.LATEST, ids=[run_id])
        assert latest[:3] == (run_id, "test/loss", 3) and math.isnan(restored(*latest[3:]))
        query = mlflow_internals.points_query(opened, at_step=False)
        assert "index_metrics_run_uuid_key_step" in query, "without it SQLite reads all runs"
        points = sorted(select(query, ids=[run_id], keys=["test/loss"]))
        values = [restored(value, is_nan) for *_, value, is_nan in points]
        assert [each[:4] for each in points] == [
            (run_id, "test/loss", step, step) for step in (1, 2, 3)
        ]
        assert values[:2] == [math.inf, -math.inf] and math.isnan(values[2])
        query = mlflow_internals.points_query(opened, at_step=True)
        assert len(select(query, ids=[run_id], keys=["test/loss"], step=2)) == 1


def test_runs_tell_the_steps_of_their_metrics(run_id: str) -> None:
    ((name, (step, value)),) = mlflow_internals.latest_points(client().get_run(run_id)).items()
    assert (name, step) == ("test/loss", 3) and math.isnan(value)


def test_errors_have_codes(here: Path) -> None:
    with pytest.raises(Exception, match="none") as missing:
        client().get_run("none")
    assert mlflow_internals.error_code(missing.value) == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(Exception, match="dks") as twice:
        client().create_experiment("dks")
    assert mlflow_internals.error_code(twice.value) == "RESOURCE_ALREADY_EXISTS"
    assert mlflow_internals.error_code(ValueError()) is None


def test_requests_go_through_our_session(monkeypatch: pytest.MonkeyPatch) -> None:
    store.load_mlflow()
    from mlflow.utils import request_utils

    asked: list[Any] = []

    class Session:
        def request(self, method: str, url: str, **options: Any) -> None:
            asked.append((method, url, options["timeout"]))
            raise ConnectionError("stop")

    monkeypatch.setattr(request_utils, "_get_request_session", request_utils._get_request_session)
    mlflow_internals.use_session(lambda *_, **__: Session())
    with pytest.raises(Exception, match="stop"):
        mlflow_internals.get("http://127.0.0.1:9", "/version", timeout=3)
    assert asked == [("GET", "http://127.0.0.1:9/version", 3)]


@pytest.mark.slow
def test_tables_can_be_made(tmp_path: Path) -> None:
    mlflow_internals.make_tables(tmp_path / "new.db")
    with closing(database.read_sqlite(f"sqlite:///{tmp_path / 'new.db'}")) as made:
        assert made.execute("SELECT name FROM experiments").fetchall() == [("Default",)]


REFUSED = (
    "API request to http://h:9/api/2.0/x failed with exception HTTPConnectionPool(host='h', "
    "port=9): Max retries exceeded with url: /api/2.0/x (Caused by "
    "NewConnectionError(\"HTTPConnection(host='h', port=9): Failed to establish a new connection: "
    '[Errno 111] Connection refused"))'
)
UNTRUSTED = (
    "API request to https://h/api failed with exception HTTPSConnectionPool(host='h', port=443): "
    "Max retries exceeded with url: /api (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
    "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate "
    "(_ssl.c:1006)')))"
)
DENIED = (
    "API request to endpoint /api/2.0/x failed with error code 401 != 200. Response body: 'You are "
    "not authenticated.'"
)
SLOW = (
    "API request to http://h/api failed with exception HTTPConnectionPool(host='h', port=80): Read "
    "timed out. (read timeout=10)"
)


@pytest.mark.parametrize(
    ("said", "short"),
    [
        (REFUSED, "Connection refused"),
        (UNTRUSTED, "certificate verify failed: self-signed certificate"),
        (DENIED, "HTTP 401: You are not authenticated."),
        (SLOW, "Read timed out"),
        ("database is locked", "database is locked"),
    ],
)
def test_what_goes_wrong_with_a_request_is_said_in_few_words(said: str, short: str) -> None:
    assert store.reason(RuntimeError(said)) == short
    assert mlflow_internals.http_status(RuntimeError(said)) == (401 if said == DENIED else None)
