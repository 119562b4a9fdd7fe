"""The two sources of tables, run folders and MLflow stores.

They tell the same of the same runs, and change nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dks.config.errors import RequestError
from dks.config.schema import Tracking
from dks.config.secrets import without_password
from dks.machine.interruption import Interrupted
from dks.runs.journal import Journal
from dks.runs.record import RunFolder, Status
from dks.tracking import cache
from dks.tracking.addresses import point_at
from dks.tracking.destination import Destination
from dks.tracking.mlflow_source import MlflowSource
from dks.tracking.mlflow_stores import StoreDatabase, StoreServer
from dks.tracking.records import RecordSource
from dks.tracking.rows import COLUMNS, TOP1
from dks.tracking.sender import sent_elsewhere
from dks.tracking.store import open_client, prepare
from dks.tracking.sync import sync
from dks.tracking.upload import upload
from dks.training.run import run_cell
from tests.conftest import finished_run, queued, raise_at
from tests.support.tracking_services import MlflowServer, mlflow_client

CURVES = ("test/top1_error", "train/loss", "test/loss")


def executed(
    folder: Path, uri: str, *overrides: str, error: BaseException | None = None
) -> RunFolder:
    """A run of two epochs, tracked; with an error it ends in its second."""
    run = queued(folder, "tracking.kind=local", f"tracking.uri={uri}", *overrides)
    with pytest.MonkeyPatch.context() as patch:
        if error is not None:
            patch.setattr("dks.runs.terminal.RunView.stepped", raise_at(2, error))
        with sent_elsewhere():
            try:
                run_cell(run.path)
            except KeyboardInterrupt:
                assert isinstance(error, Interrupted)
    assert not sync(str(folder / "runs"), [run.cell_id]).failed
    return run


def made(
    folder: Path,
    uri: str,
    seed: int,
    metrics: Sequence[tuple[int, dict[str, float]]],
    tells_best: bool = True,
) -> RunFolder:
    """A run whose journal says this, epoch by epoch, and that was shipped.

    Earlier versions did not tell the best epoch.
    """
    run = executed(folder, uri, f"seed={seed}", "recipe.epochs=1")
    run.journal.path.unlink()
    journal = Journal(run.journal.path)
    for epoch, values in metrics:
        journal.append(epoch, epoch, values)
        time.sleep(0.002)  # MLflow counts milliseconds
    record = run.read_record()
    assert record is not None
    entries = {entry.epoch: {"epoch": entry.epoch, **entry.metrics} for entry in journal.read()}
    record.final = entries[max(entries)]
    record.best = min(entries.values(), key=lambda each: each[TOP1])
    run.write_record(record)
    mlflow_client(uri).delete_run(noted(run)["run_id"])
    run.mlflow_file.unlink()
    run.write_record(record if tells_best else dataclasses.replace(record, best={}))
    assert not sync(str(folder / "runs"), [run.cell_id]).failed
    run.write_record(record)
    return run


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """MLflow puts its artifacts into the current folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def fill(folder: Path, uri: str) -> dict[str, str]:
    """Runs of every kind, in `folder/runs` and in the store; what they are -> their cell."""
    client = mlflow_client(uri)
    cells = {
        "done": executed(folder, uri, "seed=1"),
        "baseline": executed(folder, uri, "seed=1", "method=baseline"),
        "resumed": executed(folder, uri, "seed=2", error=Interrupted("SIGTERM")),
        "killed": executed(folder, uri, "seed=3", error=Interrupted("SIGTERM")),
        "failed": executed(folder, uri, "seed=4", error=RuntimeError("out of memory")),
        "exploded": executed(folder, uri, "seed=5", "recipe.lr=1e30", "data.train_images=320"),
    }
    with sent_elsewhere():
        run_cell(cells["resumed"].path)
    sync(str(folder / "runs"), [cells["resumed"].cell_id])
    nan, inf = math.nan, math.inf
    cells["odd"] = made(
        folder,
        uri,
        6,
        [
            (1, {TOP1: 50.0, "test/loss": inf, "train/loss": 3.0}),
            (2, {TOP1: 40.0, "test/loss": nan, "train/loss": 2.0}),
            (3, {TOP1: 40.0, "test/loss": -inf, "train/loss": 1.0}),
            (4, {TOP1: 60.0, "test/loss": nan, "train/loss": inf}),
        ],
    )
    # The best epoch of c2 is another one; in the record, as in that of earlier versions, all is of
    # c1's.
    apart = [(40.0, 20.0), (30.0, 25.0), (35.0, 30.0)]
    cells["apart"] = made(
        folder, uri, 8, [(at, {TOP1: c1, f"{TOP1}_c2": c2}) for at, (c1, c2) in enumerate(apart, 1)]
    )
    # The same step twice, as a store gets it from a run that went on without knowing what was sent
    # before.
    first = [(1, {TOP1: 30.0, "test/loss": 1.0}), (2, {TOP1: 20.0, "test/loss": 2.0})]
    cells["repeated"] = made(folder, uri, 7, first, tells_best=False)
    run_id = noted(cells["repeated"])["run_id"]
    later = round(1000 * time.time()) + 1000
    from mlflow.entities import Metric

    client.log_batch(
        run_id,
        [Metric(TOP1, 10.0, later, 1), Metric(TOP1, 25.0, later, 2), Metric(TOP1, 99.0, 1, 2)],
    )
    journal = cells["repeated"].journal
    journal.append(1, 1, {TOP1: 10.0, "test/loss": 1.0})
    journal.append(2, 2, {TOP1: 25.0, "test/loss": 2.0})
    record = cells["repeated"].read_record()
    assert record is not None
    record.final = {"epoch": 2, TOP1: 25.0, "test/loss": 2.0}
    record.best = {"epoch": 1, TOP1: 10.0, "test/loss": 1.0}
    cells["repeated"].write_record(record)
    # A cell that has more than one run in the store, begun later: none is finished, so the one with
    #     the folder counts.
    tags = {"dks.role": "cell", "dks.cell_id": cells["done"].cell_id}
    experiment = noted(cells["done"])["experiment_id"]
    client.create_run(experiment, later, tags)
    client.set_terminated(client.create_run(experiment, later, tags).info.run_id, "KILLED")
    # One whose place the finished one has taken, though it was begun later: as a clock that was set
    #     back has it.
    client.set_terminated(
        client.create_run(experiment, later, {**tags, "dks.superseded": "1"}).info.run_id
    )
    # What is no cell, what was deleted, and what belongs to somebody else.
    client.create_run(experiment, tags={"dks.role": "sweep"})
    client.delete_run(
        client.create_run(
            experiment, tags={"dks.role": "cell", "dks.cell_id": "deleted"}
        ).info.run_id
    )
    client.create_run(
        client.create_experiment("other"), tags={"dks.role": "cell", "dks.cell_id": "elsewhere"}
    )
    return {name: run.cell_id for name, run in cells.items()}


def noted(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.mlflow_file.read_text())
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """A folder with runs and a store of every kind of them: folder, URI, what they are -> cell.

    Only to be read.
    """
    folder = tmp_path_factory.mktemp("filled")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with inside(folder):
        return folder, uri, fill(folder, uri)


@pytest.fixture
def copied(
    filled: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> tuple[Path, str, dict[str, str]]:
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
    assert {
        name: (run["state"], run["epoch"], run["epochs"], run["attempts"])
        for name, run in found.items()
    } == {
        "done": ("done", 2, 2, 1),
        "baseline": ("done", 2, 2, 1),
        "resumed": ("done", 2, 2, 2),
        "killed": ("killed", 1, 2, 1),
        "failed": ("failed", 1, 2, 1),
        "exploded": ("failed", 0, 2, 1),
        "odd": ("done", 4, 1, 1),
        "apart": ("done", 3, 1, 1),
        "repeated": ("done", 2, 1, 1),
    }
    odd, repeated = found["odd"], found["repeated"]
    assert (odd["final/test/top1_error"], odd["final/train/loss"]) == (60.0, math.inf)
    assert math.isnan(odd["final/test/loss"])
    assert (odd["best/epoch"], odd["best/test/top1_error"], odd["best/train/loss"]) == (
        2,
        40.0,
        2.0,
    )
    assert (
        repeated["final/test/top1_error"],
        repeated["best/test/top1_error"],
        repeated["best/epoch"],
    ) == (25.0, 10.0, 1)
    apart = [f"best/{name}" for name in ("epoch", TOP1, "epoch_c2", f"{TOP1}_c2")]
    assert found["apart"][apart].tolist() == [2, 30.0, 1, 20.0]
    assert found["killed"]["best/epoch"] == 1
    assert found["killed"]["final/test/top1_error"] == found["killed"]["best/test/top1_error"]
    assert math.isnan(found["exploded"]["final/test/top1_error"])
    assert all(run["cost/seconds"] > 0 for run in found.values())
    assert found["done"]["cost/training_flops"] > found["baseline"]["cost/training_flops"] > 0
    assert (found["done"]["seed"], found["done"]["method"], found["baseline"]["method"]) == (
        1,
        "dks",
        "baseline",
    )
    assert found["done"]["data_fingerprint"] is None


def check_curves(curves: pd.DataFrame, cells: dict[str, str]) -> None:
    assert list(curves) == ["cell_id", "epoch", "metric", "value"]
    assert not curves.duplicated(["cell_id", "epoch", "metric"]).any()
    values = {
        name: curves[(curves["cell_id"] == cell) & (curves["metric"] == TOP1)]
        for name, cell in cells.items()
    }
    assert values["repeated"]["value"].tolist() == [10.0, 25.0]
    assert values["odd"]["epoch"].tolist() == [1, 2, 3, 4]
    losses = curves[(curves["cell_id"] == cells["odd"]) & (curves["metric"] == "test/loss")][
        "value"
    ].tolist()
    assert losses[0] == math.inf
    assert losses[2] == -math.inf
    assert math.isnan(losses[1])
    assert math.isnan(losses[3])
    assert values["exploded"].empty


# --- what they tell


def test_both_sources_tell_the_same_of_the_same_runs(
    filled: tuple[Path, str, dict[str, str]],
) -> None:
    folder, uri, cells = filled
    store, records = MlflowSource(uri), RecordSource(folder / "runs")
    for _ in range(2):  # the second time from what is kept
        runs = assert_same(store, records)
        assert set(runs.index) == set(cells.values())
        check_numbers(runs, cells)
    check_curves(records.histories(list(cells.values()), CURVES), cells)
    assert runs["started"].str.endswith("+00:00").all()
    assert records.runs(["nobody"]).empty
    assert set(COLUMNS) <= set(store.runs(["nobody"]))
    assert math.isnan(records.runs()["cost/peak_memory_mib"].min()) is False


def test_a_store_of_an_earlier_version_tells_the_best_epoch_by_its_history(
    copied: tuple[Path, str, dict[str, str]],
) -> None:
    folder, uri, cells = copied
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for table in ("metrics", "latest_metrics"):
            assert (
                store.execute(
                    f"DELETE FROM {table} WHERE key LIKE 'best/%' OR key LIKE 'cost/%'"
                ).rowcount
                > 0
            )
    runs, theirs = (
        source.runs().drop(columns="place")
        for source in (RecordSource(folder / "runs"), MlflowSource(uri))
    )
    costs = [name for name in runs if name.startswith("cost/")]
    assert theirs[["cost/seconds", "cost/training_flops"]].isna().all(axis=None)
    shared = [name for name in runs if name not in costs]
    pd.testing.assert_frame_equal(runs[shared], theirs[shared])


def test_a_store_that_has_all_classifiers_in_the_best_epoch_of_c1_is_read_by_its_history(
    copied: tuple[Path, str, dict[str, str]],
) -> None:
    """As earlier versions sent it."""
    folder, uri, cells = copied
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for table in ("metrics", "latest_metrics"):
            assert store.execute(f"DELETE FROM {table} WHERE key LIKE 'best/epoch%'").rowcount > 0
            wrong = (
                f"UPDATE {table} SET step = 2, value = 25 WHERE key = "
                f"'best/test/top1_error_c2' AND value = 20"
            )
            assert store.execute(wrong).rowcount == 1
    runs, theirs = (
        source.runs().drop(columns="place")
        for source in (RecordSource(folder / "runs"), MlflowSource(uri))
    )
    pd.testing.assert_frame_equal(runs, theirs)
    check_numbers(theirs.set_index("cell_id"), cells)


def test_sending_a_run_again_changes_nothing(copied: tuple[Path, str, dict[str, str]]) -> None:
    folder, uri, cells = copied

    def content() -> list[Any]:
        queries = ("SELECT * FROM metrics", "SELECT * FROM latest_metrics", "SELECT * FROM runs")
        with closing(sqlite3.connect(folder / "mlflow.db")) as store:
            return [sorted(store.execute(query).fetchall(), key=repr) for query in queries]

    before = content()
    run = RunFolder(folder / "runs" / cells["done"])
    record, state = run.read_record(), noted(run)
    assert record is not None
    run.mlflow_file.write_text(json.dumps({**state, "uri": uri, "epoch": 0}))
    with inside(folder):
        assert upload(run, Destination(open_client(uri), uri, state["experiment_id"])) > 0
        assert content() == before
        (sent,) = sync(str(folder / "runs"), [run.cell_id], Tracking(uri=uri)).runs
    assert sent.points == 0 and not sent.told, "the store has been asked what it has"
    assert content() == before


def test_the_states_of_unfinished_runs_are_those_of_the_ledger(tmp_path: Path) -> None:
    source = RecordSource(tmp_path / "runs")
    assert source.runs().empty
    assert len(source.histories(["nobody"], [TOP1])) == 0
    run = queued(tmp_path)
    assert source.runs().empty, "whoever planned it is gone"
    record = run.read_record()
    assert record is not None
    record.status = Status.running
    run.write_record(record)
    run.journal.append(1, 1, {TOP1: 70.0})
    (tmp_path / "runs" / "a_file").touch()
    (tmp_path / "runs" / "no_run").mkdir()
    assert source.runs()["state"].tolist() == ["killed"]
    assert run.claim()
    for epoch in (2, 3):
        run.journal.append(epoch, epoch, {TOP1: 70.0 - epoch})
        (found,) = source.runs().to_dict("records")
        assert (found["state"], found["epoch"], found["best/test/top1_error"]) == (
            "running",
            epoch,
            70.0 - epoch,
        )
    run.release()


def test_a_running_run_in_a_store_is_read_again_and_a_finished_one_is_not(
    copied: tuple[Path, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
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
    client.log_metric(killed, TOP1, 1.0, step=2)
    for _ in range(2):
        runs = source.runs().set_index("cell_id")
        assert read.pop() == [killed]
        assert runs.loc[cells["killed"]][["state", "epoch", "best/epoch"]].tolist() == [
            "running",
            2,
            2,
        ]
    client.set_terminated(killed)
    client.delete_run(noted(RunFolder(folder / "runs" / cells["failed"]))["run_id"])
    assert source.runs().set_index("cell_id")["state"][cells["killed"]] == "done"
    assert read.pop() == [killed]
    assert cells["failed"] not in set(source.runs()["cell_id"])
    assert not read


# --- what is kept


def test_a_record_is_read_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [finished_run(tmp_path, f"seed={seed}") for seed in (1, 2)]
    read: list[str] = []
    original = RunFolder.read_record

    def counted(self: RunFolder) -> Any:
        read.append(self.cell_id)
        return original(self)

    monkeypatch.setattr(RunFolder, "read_record", counted)
    source = RecordSource(tmp_path / "runs")
    first = source.runs()
    assert sorted(read) == sorted(run.cell_id for run in runs)
    read.clear()
    pd.testing.assert_frame_equal(RecordSource(tmp_path / "runs").runs(), first)
    pd.testing.assert_frame_equal(
        source.runs([first["cell_id"][1]]), first.iloc[1:].reset_index(drop=True)
    )
    assert not read
    record = original(runs[0])
    assert record is not None
    record.final[TOP1] = 12.5
    runs[0].write_record(record)
    assert source.runs().set_index("cell_id")["final/test/top1_error"][runs[0].cell_id] == 12.5
    assert read == [runs[0].cell_id]
    # MLflow took the run after its record was written.
    runs[1].mlflow_file.write_text('{"uri": "sqlite:///mlflow.db", "run_id": "f00", "epoch": 2}')
    assert source.runs().set_index("cell_id")["mlflow_run_id"].to_dict() == {
        runs[0].cell_id: None,
        runs[1].cell_id: "f00",
    }
    shutil.rmtree(runs[0].path)
    assert source.runs()["cell_id"].tolist() == [runs[1].cell_id]
    whole = source.runs()
    runs[1].record_file.write_text("{")
    for _ in range(2):  # what other files say is not kept
        read.clear()
        rebuilt = source.runs()
        assert read == [runs[1].cell_id]
        same = [
            "cell_id",
            "config_id",
            "seed",
            "method",
            "state",
            "epoch",
            "final/test/top1_error",
            "best/test/top1_error",
        ]
        pd.testing.assert_frame_equal(rebuilt[same], whole[same])


def kept_file(folder: Path) -> Path:
    (file,) = (folder / "cache").rglob("*.sqlite")
    return file


@pytest.mark.parametrize(
    "harm", ["damaged", "truncated", "other version", "other tables", "no JSON", "unwritable"]
)
def test_what_is_kept_is_never_needed(
    tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path)
    source = RecordSource(tmp_path / "runs")
    expected = source.runs()
    file = kept_file(tmp_path)
    whole = file.read_bytes()
    if harm == "damaged":
        file.write_bytes(b"garbage" * 1000)
    elif harm == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif harm == "other version":
        monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    elif harm == "unwritable":
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("a file where a folder should be")
    else:
        with closing(sqlite3.connect(file)) as store, store:
            store.execute("UPDATE rows SET row = 'x'" if harm == "no JSON" else "DROP TABLE rows")
    for _ in range(2):
        pd.testing.assert_frame_equal(source.runs(), expected)
    if harm != "unwritable":
        kept = cache.RowCache(f"records {tmp_path / 'runs'}").read()
        assert list(kept) == expected["cell_id"].tolist(), "it is there again"


def test_files_that_nobody_used_for_long_go(tmp_path: Path) -> None:
    old = cache.RowCache("old")
    old.write({"a": ("1", {"x": 1})})
    long_ago = time.time() - cache.UNUSED - 1
    os.utime(old.path, (long_ago, long_ago))
    new = cache.RowCache("new")
    new.write({"b": ("2", {"x": math.inf})})
    assert not old.path.exists()
    assert new.read() == {"b": ("2", {"x": math.inf})}
    new.write({}, ["b"])
    assert new.read() == {}


# --- what is refused


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///nothing.db", r"sqlite:///nothing\.db: there is no file nothing\.db"),
        (
            "mlruns",
            r"mlruns is no MLflow store that can be read; give sqlite:///FILE, "
            r"postgresql://\.\.\. or http://\.\.\.",
        ),
        ("oracle://me:secret@host/db", r"oracle://me@host/db is no MLflow store"),
        (
            "mysql+nodriver://me:secret@host/db",
            r"mysql\+nodriver://me@host/db: there is no driver for mysql here",
        ),
    ],
)
def test_a_store_that_is_not_there_is_refused_in_one_line(
    uri: str, message: str, in_folder: Path
) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        MlflowSource(uri).runs()
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
    assert not list(in_folder.iterdir()), "reading creates nothing"


def test_without_a_driver_postgresql_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        RequestError,
        match=r"postgresql://me@host/db: there is no driver .* pip install 'dks\[postgres\]'",
    ):
        MlflowSource("postgresql://me:secret@host/db")


def test_an_experiment_that_is_not_there_is_refused_with_those_that_are(
    filled: tuple[Path, str, dict[str, str]],
) -> None:
    with pytest.raises(
        RequestError, match=r"has no experiment 'mine'; there are: Default, dks, other"
    ):
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


def test_reading_leaves_a_store_as_it_was(
    filled: tuple[Path, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, cells = filled
    monkeypatch.chdir(folder)  # where a relative URI means the store

    def seen() -> list[tuple[str, str]]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return sorted((str(path), hashlib.md5(path.read_bytes()).hexdigest()) for path in files)

    before = seen()
    source = MlflowSource("sqlite:///mlflow.db")
    assert_same(source, RecordSource("runs"))
    assert source.name == "sqlite:///mlflow.db"
    assert RecordSource("runs").name == "runs/"
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
    assert (
        without_password(f"{uri} cannot be opened: {uri}") == f"{shown} cannot be opened: {shown}"
    )


def test_a_password_is_not_shown_where_a_run_is_to_be_tracked() -> None:

    with pytest.raises(
        RequestError, match=r"tracking\.uri=nostore://me@host/db cannot be opened"
    ) as refused:
        prepare(Tracking(uri="nostore://me:secret@host/db"))
    assert "secret" not in str(refused.value)


def test_reading_imports_neither_torch_nor_mlflow(filled: tuple[Path, str, dict[str, str]]) -> None:
    code = (
        "import sys\nfrom dks.tracking.records import RecordSource\n"
        "assert len(RecordSource('runs').runs()) == 9\n"
        "heavy = {'torch', 'mlflow', 'scipy', 'sqlalchemy'} & set(sys.modules); assert not "
        "heavy, heavy\n"
        "from dks.tracking.mlflow_source import MlflowSource\n"
        "assert len(MlflowSource('sqlite:///mlflow.db').runs()) == 9\n"
        "heavy = {'torch', 'mlflow', 'scipy'} & set(sys.modules); assert not heavy, heavy\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=filled[0],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- what a run costs


def test_a_run_knows_the_operations_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dks.training import flops

    run = finished_run(tmp_path, "data.holdout=16", "compute=deterministic")
    record = run.read_record()
    assert record is not None
    assert record.cost["training_flops"] == flops.flops(run.read_config()).step * (64 - 16) * 2 > 0

    def unknown(config: Any) -> Any:
        raise RequestError("no image is there to see how large it is")

    monkeypatch.setattr(flops, "flops", unknown)
    other = finished_run(tmp_path, "seed=1").read_record()
    assert other is not None
    assert "training_flops" not in other.cost


# --- a server, and PostgreSQL


@pytest.mark.slow
def test_a_server_tells_the_same(
    copied: tuple[Path, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
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
        with pytest.raises(
            RequestError, match=r"has no experiment 'mine'; there are: Default, dks, other"
        ):
            MlflowSource(uri, "mine").runs()
    started = time.monotonic()
    with pytest.raises(RequestError, match="cannot be read") as refused:
        MlflowSource(uri.replace("//", "//me:secret@")).runs()
    assert "secret" not in str(refused.value)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_postgresql_tells_the_same(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    point_at(without_password(postgresql))
    with inside(tmp_path):
        cells = fill(tmp_path, without_password(postgresql))
    source, records = MlflowSource(postgresql), RecordSource(tmp_path / "runs")
    assert source.name == postgresql.replace(":secret", "")
    for _ in range(2):
        check_numbers(assert_same(source, records), cells)
    check_curves(source.histories(list(cells.values()), CURVES), cells)
    monkeypatch.setattr(StoreDatabase, "IDS", 3)  # several queries
    shutil.rmtree(tmp_path / "cache")
    assert_same(source, records)
    server = postgresql.rpartition("/")[0]
    for wrong in (postgresql.replace("secret", "wrong"), f"{server}/nothing"):
        with pytest.raises(RequestError, match="cannot be read") as refused:
            MlflowSource(wrong).runs()
        assert "wrong" not in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(RequestError, match="is no MLflow store"):
        MlflowSource(f"{server}/template1").runs()
