"""A current folder with an empty store."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dks.config.schema import Tracking
from dks.runs.record import RunFolder
from dks.tracking.store import prepare
from dks.tracking.upload_state import UploadState
from tests.support.tracking_services import assert_holds_journal, mlflow_client


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an experiment and nothing in it; making one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare(Tracking(uri=f"sqlite:///{path}"))
    return path


@pytest.fixture
def here(in_folder: Path, empty_store: Path) -> Path:
    """A current folder with an empty store, whose artifacts are kept in it."""
    shutil.copy(empty_store, "mlflow.db")
    with closing(sqlite3.connect("mlflow.db")) as connection, connection:
        place = str(in_folder / "mlruns")
        connection.execute("UPDATE experiments SET artifact_location = ?", (place,))
    return in_folder


def uri() -> str:
    """Of the store in the current folder, as a whole.

    MLflow keeps stores open as long as the process lives, by their URIs.
    """
    return f"sqlite:///{Path.cwd()}/mlflow.db"


def tracked() -> tuple[str, ...]:
    return "tracking=local", f"tracking.uri={uri()}"


def client() -> Any:
    return mlflow_client(uri())


def state(run: RunFolder) -> UploadState:
    found = UploadState.read(run)
    assert found is not None
    return found


def check(run: RunFolder, store: str | None = None) -> None:
    """The store holds the journal: every point once."""
    assert_holds_journal(mlflow_client(store or uri()), run.path)


def status(run: RunFolder) -> str:
    return str(client().get_run(state(run).run_id).info.status)
