"""The two sources of tables, run folders and MLflow stores.

They tell the same of the same runs, and change nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dks.config.errors import RequestError
from dks.config.schema import Tracking
from dks.config.secrets import without_password
from dks.runs.record import RunFolder, Status
from dks.tracking.addresses import point_at
from dks.tracking.destination import Destination
from dks.tracking.mlflow_source import MlflowSource
from dks.tracking.mlflow_stores import StoreDatabase, StoreServer
from dks.tracking.records import RecordSource
from dks.tracking.rows import COLUMNS
from dks.tracking.store import open_client
from dks.tracking.sync import sync
from dks.tracking.upload import upload
from tests.conftest import ROOT
from tests.support.journaled import ERROR, TWO, attempted, journaled
from tests.support.tracking_services import MlflowServer, mlflow_client

CURVES = (ERROR, "train/loss", "test/loss")
Filled = tuple[Path, str, dict[str, str]]


def fill(folder: Path, uri: str) -> dict[str, str]:
    """Runs of every kind, in `folder/runs` and in the store; what they are -> their cell."""

    def run(*overrides: str, **options: Any) -> RunFolder:
        return journaled(
            folder, "tracking.kind=local", f"tracking.uri={uri}", *overrides, **options
        )

    def send(*runs: RunFolder) -> None:
        assert not sync(str(folder / "runs"), [each.cell_id for each in runs]).failed

    killed = {"epochs": TWO[:1], "status": Status.killed}
    nan, inf = math.nan, math.inf
    odd = [
        {ERROR: 50.0, "test/loss": inf, "train/loss": 3.0},
        {ERROR: 40.0, "test/loss": nan, "train/loss": 2.0},
        {ERROR: 40.0, "test/loss": -inf, "train/loss": 1.0},
        {ERROR: 60.0, "test/loss": nan, "train/loss": inf},
    ]
    apart = [(40.0, 20.0), (30.0, 25.0), (35.0, 30.0)]
    cells = {
        "done": run("seed=1"),
        "baseline": run("seed=1", "method=baseline"),
        "resumed": run("seed=2", **killed),
        "killed": run("seed=3", **killed),
        "failed": run("seed=4", epochs=TWO[:1], status=Status.failed),
        "exploded": run("seed=5", epochs=(), status=Status.failed),
        "odd": run("seed=6", epochs=odd),
        "apart": run("seed=8", epochs=[{ERROR: c1, f"{ERROR}_c2": c2} for c1, c2 in apart]),
        "repeated": run(
            "seed=7", epochs=({ERROR: 30.0, "test/loss": 1.0}, {ERROR: 20.0, "test/loss": 2.0})
        ),
    }
    # In the record, as in that of earlier versions, all is of the best epoch of c1.
    change(cells["apart"], best={"epoch": 2, ERROR: 30.0, f"{ERROR}_c2": 25.0})
    change(cells["repeated"], best={})  # nor did they tell the best epoch
    send(*cells.values())
    attempted(cells["resumed"], TWO[1:])
    send(cells["resumed"])
    # The same step twice, as a store gets it from a run that went on without knowing what was sent
    # before.
    from mlflow.entities import Metric

    client, later = mlflow_client(uri), round(1000 * time.time()) + 1000
    points = [(10.0, later, 1), (25.0, later, 2), (99.0, 1, 2)]
    repeated = [Metric(ERROR, value, when, step) for value, when, step in points]
    client.log_batch(noted(cells["repeated"])["run_id"], repeated)
    cells["repeated"].journal.append(1, 1, {ERROR: 10.0, "test/loss": 1.0})
    cells["repeated"].journal.append(2, 2, {ERROR: 25.0, "test/loss": 2.0})
    final = {"epoch": 2, ERROR: 25.0, "test/loss": 2.0}
    change(cells["repeated"], final=final, best={"epoch": 1, ERROR: 10.0, "test/loss": 1.0})
    # A cell that has more than one run in the store, begun later: none is finished, so the one with
    # the folder counts; and one whose place the finished one has taken.
    tags = {"dks.role": "cell", "dks.cell_id": cells["done"].cell_id}
    experiment = noted(cells["done"])["experiment_id"]
    client.create_run(experiment, later, tags)
    client.set_terminated(client.create_run(experiment, later, tags).info.run_id, "KILLED")
    superseded = client.create_run(experiment, later, {**tags, "dks.superseded": "1"})
    client.set_terminated(superseded.info.run_id)
    # What is no cell, what was deleted, and what belongs to somebody else.
    client.create_run(experiment, tags={"dks.role": "sweep"})
    deleted = client.create_run(experiment, tags={**tags, "dks.cell_id": "deleted"})
    client.delete_run(deleted.info.run_id)
    other = client.create_experiment("other")
    client.create_run(other, tags={**tags, "dks.cell_id": "elsewhere"})
    return {name: each.cell_id for name, each in cells.items()}


def change(run: RunFolder, **values: Any) -> None:
    record = run.read_record()
    assert record is not None
    for name, value in values.items():
        setattr(record, name, value)
    run.write_record(record)


def noted(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.mlflow_file.read_text())
    return found


@pytest.fixture(scope="module")
def filled(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A folder with runs and a store of every kind of them: folder, URI, what they are -> cell.

    Only to be read.
    """
    folder = tmp_path_factory.mktemp("filled")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, uri, fill(folder, uri)


@pytest.fixture
def copied(filled: Filled, tmp_path: Path) -> Filled:
    """The same, to be changed."""
    shutil.copytree(filled[0], tmp_path / "copy")
    return tmp_path / "copy", f"sqlite:///{tmp_path / 'copy' / 'mlflow.db'}", filled[2]


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def assert_same(store: MlflowSource, records: RecordSource) -> pd.DataFrame:
    """Both tell the same of all runs but where they are; returns what."""
    runs, theirs = records.runs(), store.runs()
    pd.testing.assert_frame_equal(runs.drop(columns="place"), theirs.drop(columns="place"))
    # Which runs are asked for, and in which order, makes no difference.
    asked = [*reversed(runs["cell_id"]), "nobody", runs["cell_id"][0]]
    some = runs.iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(records.runs(asked), some)
    pd.testing.assert_frame_equal(
        store.runs(asked).drop(columns="place"), some.drop(columns="place")
    )
    pd.testing.assert_frame_equal(records.histories(asked, CURVES), store.histories(asked, CURVES))
    for cell_id in runs["cell_id"]:
        ours, params = records.config(cell_id), store.config(cell_id)
        assert {key: str(value) for key, value in ours.items()} == params
    assert records.config("nobody") == store.config("nobody") == {}
    return runs.set_index("cell_id")


def check_numbers(runs: pd.DataFrame, cells: dict[str, str]) -> None:
    """What `fill` put in."""
    found = {name: runs.loc[cell_id] for name, cell_id in cells.items()}
    told = ["state", "epoch", "attempts", "best/epoch"]
    assert {name: tuple(run[told].fillna(0)) for name, run in found.items()} == {
        "done": ("done", 2, 1, 2),
        "baseline": ("done", 2, 1, 2),
        "resumed": ("done", 2, 2, 2),
        "killed": ("killed", 1, 1, 1),
        "failed": ("failed", 1, 1, 1),
        "exploded": ("failed", 0, 1, 0),
        "odd": ("done", 4, 1, 2),
        "apart": ("done", 3, 1, 2),
        "repeated": ("done", 2, 1, 1),
    }
    odd, repeated, done = found["odd"], found["repeated"], found["done"]
    assert (odd["final/test/top1_error"], odd["final/train/loss"]) == (60.0, math.inf)
    assert math.isnan(odd["final/test/loss"])
    assert (odd["best/test/top1_error"], odd["best/train/loss"]) == (40.0, 2.0)
    assert (repeated["final/test/top1_error"], repeated["best/test/top1_error"]) == (25.0, 10.0)
    apart = [f"best/{name}" for name in (ERROR, "epoch_c2", f"{ERROR}_c2")]
    assert found["apart"][apart].tolist() == [30.0, 1, 20.0]
    assert found["killed"]["final/test/top1_error"] == 50.0
    assert math.isnan(found["exploded"]["final/test/top1_error"])
    assert done[["seed", "method", "epochs", "device"]].tolist() == [1, "dks", 2, "cpu"]
    assert done[["cost/seconds", "cost/training_flops"]].tolist() == [1.5, 1e6]
    assert found["resumed"]["cost/seconds"] == 3.0
    assert found["baseline"]["method"] == "baseline"
    assert done["data_fingerprint"] is None and done["started"].endswith("+00:00")


def check_curves(curves: pd.DataFrame, cells: dict[str, str]) -> None:
    assert list(curves) == ["cell_id", "epoch", "metric", "value"]
    assert not curves.duplicated(["cell_id", "epoch", "metric"]).any()

    def curve(name: str, metric: str) -> list[float]:
        chosen = curves[(curves["cell_id"] == cells[name]) & (curves["metric"] == metric)]
        assert chosen["epoch"].tolist() == [*range(1, len(chosen) + 1)]
        return list(chosen["value"])

    assert curve("repeated", ERROR) == [10.0, 25.0]
    losses = curve("odd", "test/loss")
    assert [losses[0], losses[2]] == [math.inf, -math.inf]
    assert math.isnan(losses[1]) and math.isnan(losses[3])
    assert curve("exploded", ERROR) == []


# --- what they tell


def test_both_sources_tell_the_same_of_the_same_runs(filled: Filled) -> None:
    folder, uri, cells = filled
    store, records = MlflowSource(uri), RecordSource(folder / "runs")
    for _ in range(2):  # the second time from what is kept
        runs = assert_same(store, records)
        assert set(runs.index) == set(cells.values())
        check_numbers(runs, cells)
    check_curves(records.histories(list(cells.values()), CURVES), cells)
    assert records.runs(["nobody"]).empty
    assert set(COLUMNS) <= set(store.runs(["nobody"]))


@pytest.mark.parametrize(
    "statements",
    [
        ["DELETE FROM {} WHERE key LIKE 'best/%'"],
        # as earlier versions sent it: all classifiers in the best epoch of c1
        [
            "DELETE FROM {} WHERE key LIKE 'best/epoch%'",
            "UPDATE {} SET step = 2, value = 25 WHERE key = 'best/test/top1_error_c2'",
        ],
    ],
)
def test_a_store_that_has_all_classifiers_in_the_best_epoch_of_c1_is_read_by_its_history(
    copied: Filled, statements: list[str]
) -> None:
    folder, uri, cells = copied
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for table in ("metrics", "latest_metrics"):
            for statement in statements:
                assert store.execute(statement.format(table)).rowcount > 0
    runs = assert_same(MlflowSource(uri), RecordSource(folder / "runs"))
    check_numbers(runs, cells)


def test_sending_a_run_again_changes_nothing(copied: Filled) -> None:
    folder, uri, cells = copied

    def content() -> list[Any]:
        queries = ("SELECT * FROM metrics", "SELECT * FROM latest_metrics", "SELECT * FROM runs")
        with closing(sqlite3.connect(folder / "mlflow.db")) as store:
            return [sorted(store.execute(query).fetchall(), key=repr) for query in queries]

    before = content()
    run = RunFolder(folder / "runs" / cells["done"])
    state = noted(run)
    run.mlflow_file.write_text(json.dumps({**state, "uri": uri, "epoch": 0}))
    assert upload(run, Destination(open_client(uri), uri, state["experiment_id"])) == 6
    assert content() == before
    (sent,) = sync(str(folder / "runs"), [run.cell_id], Tracking(uri=uri)).runs
    assert sent.points == 0 and not sent.told, "the store has been asked what it has"
    assert content() == before


def test_a_running_run_in_a_store_is_read_again_and_a_finished_one_is_not(
    copied: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, uri, cells = copied
    read: list[list[str]] = []
    data = StoreDatabase.data

    def counted(self: Any, run_ids: Sequence[str]) -> Any:
        read.append(list(run_ids))
        return data(self, run_ids)

    monkeypatch.setattr(StoreDatabase, "data", counted)
    source, client = MlflowSource(uri), mlflow_client(uri)
    source.runs()
    assert len(read.pop()) == len(cells)
    source.runs()
    MlflowSource(uri).runs()
    assert not read
    killed = noted(RunFolder(folder / "runs" / cells["killed"]))["run_id"]
    client.update_run(killed, "RUNNING")
    client.log_metric(killed, ERROR, 1.0, step=2)
    for _ in range(2):
        run = source.runs().set_index("cell_id").loc[cells["killed"]]
        assert read.pop() == [killed]
        assert run[["state", "epoch", "best/epoch"]].tolist() == ["running", 2, 2]
    client.set_terminated(killed)
    client.delete_run(noted(RunFolder(folder / "runs" / cells["failed"]))["run_id"])
    assert source.runs().set_index("cell_id")["state"][cells["killed"]] == "done"
    assert read.pop() == [killed]
    assert cells["failed"] not in set(source.runs()["cell_id"])
    assert not read


# --- what is refused


@pytest.mark.parametrize(
    ("uri", "name", "advice"),
    [
        ("sqlite:///nothing.db", "sqlite:///nothing.db", "no file nothing.db"),
        ("mlruns", "mlruns", "give sqlite:///FILE"),
        ("oracle://me:secret@host/db", "oracle://me@host/db", "give sqlite:///FILE"),
        ("mysql+none://me:secret@host/db", "mysql+none://me@host/db", "no driver for mysql"),
    ],
)
def test_a_store_that_is_not_there_is_refused_in_one_line(
    uri: str, name: str, advice: str, in_folder: Path
) -> None:
    with pytest.raises(RequestError) as refused:
        MlflowSource(uri).runs()
    said = str(refused.value)
    assert name in said and advice in said and "\n" not in said and "secret" not in said
    assert not list(in_folder.iterdir()), "reading creates nothing"


def test_without_a_driver_postgresql_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RequestError, match=r"pip install 'dks\[postgres\]'") as refused:
        MlflowSource("postgresql://me:secret@host/db")
    assert "secret" not in str(refused.value)


def test_an_experiment_that_is_not_there_is_refused_with_those_that_are(filled: Filled) -> None:
    with pytest.raises(RequestError, match=r"'mine'; there are: Default, dks, other"):
        MlflowSource(filled[1], "mine").runs()
    assert MlflowSource(filled[1], "other").runs()["cell_id"].tolist() == ["elsewhere"]


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(RequestError, match=r"x\.db cannot be read: file is not a database"):
        MlflowSource(f"sqlite:///{path}").runs()
    path.unlink()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE mine (x)")
    with pytest.raises(RequestError, match=r"x\.db is no MLflow store"):
        MlflowSource(f"sqlite:///{path}").runs()


def test_reading_leaves_a_store_as_it_was(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, _ = filled
    monkeypatch.chdir(folder)  # where a relative URI means the store

    def seen() -> list[tuple[str, str]]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return sorted((str(path), hashlib.md5(path.read_bytes()).hexdigest()) for path in files)

    before = seen()
    source, records = MlflowSource("sqlite:///mlflow.db"), RecordSource("runs")
    assert_same(source, records)
    assert (source.name, records.name) == ("sqlite:///mlflow.db", "runs/")
    assert seen() == before


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:pass@host:5432/db", "postgresql://me@host:5432/db"),
        (
            "postgresql+psycopg2://me:p@ss/w@host/db?sslmode=off",
            "postgresql+psycopg2://me@host/db?sslmode=off",
        ),
        (
            "postgresql://host/db?user=me&password=pass&x=1",
            "postgresql://host/db?user=me&password=...&x=1",
        ),
        ("https://me:pass@host/path", "https://me@host/path"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
    assert without_password(f"{uri} cannot be read: {uri}") == f"{shown} cannot be read: {shown}"


@pytest.mark.slow
def test_reading_imports_neither_torch_nor_mlflow(filled: Filled) -> None:
    code = (
        "import sys\nfrom dks.tracking.records import RecordSource\n"
        "from dks.tracking.mlflow_source import MlflowSource\n"
        "assert len(RecordSource('runs').runs()) == 9\n"
        "assert len(MlflowSource('sqlite:///mlflow.db').runs()) == 9\n"
        "heavy = {'torch', 'mlflow', 'scipy', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=filled[0],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- a server, and PostgreSQL


@pytest.mark.slow
def test_a_server_tells_the_same(copied: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store, cells = copied
    with MlflowServer(folder / "server", store) as server:
        uri, source = server.uri, MlflowSource(server.uri)
        monkeypatch.setattr("dks.tracking.store.PAGE", 3)
        check_numbers(assert_same(source, RecordSource(folder / "runs")), cells)
        check_curves(source.histories(list(cells.values()), CURVES), cells)
        assert source.runs()["place"][0].startswith(f"{uri}/#/experiments/")
        # What the server cuts off is asked for again.
        expected = source.histories(list(cells.values()), CURVES)
        for limit in (1, 2, 3):
            monkeypatch.setattr(StoreServer, "POINTS", limit)
            pd.testing.assert_frame_equal(source.histories(list(cells.values()), CURVES), expected)
        with pytest.raises(RequestError, match=r"'mine'; there are: Default, dks, other"):
            MlflowSource(uri, "mine").runs()
    started = time.monotonic()
    with pytest.raises(RequestError, match="cannot be read") as refused:
        MlflowSource(uri.replace("//", "//me:secret@")).runs()
    assert "secret" not in str(refused.value)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_postgresql_tells_the_same(
    postgresql: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    point_at(without_password(postgresql))
    cells = fill(in_folder, without_password(postgresql))
    source, records = MlflowSource(postgresql), RecordSource(in_folder / "runs")
    assert source.name == postgresql.replace(":secret", "")
    for _ in range(2):
        check_numbers(assert_same(source, records), cells)
    check_curves(source.histories(list(cells.values()), CURVES), cells)
    monkeypatch.setattr(StoreDatabase, "IDS", 3)  # several queries
    shutil.rmtree(in_folder / "cache")
    assert_same(source, records)
    server = postgresql.rpartition("/")[0]
    for wrong in (postgresql.replace("secret", "wrong"), f"{server}/nothing"):
        with pytest.raises(RequestError, match="cannot be read") as refused:
            MlflowSource(wrong).runs()
        assert "wrong" not in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(RequestError, match="is no MLflow store"):
        MlflowSource(f"{server}/template1").runs()
