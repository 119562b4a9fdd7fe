"""Whose servers are whose.

This user's passwords and tokens go where this user says, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dks.cli import main as cli
from dks.config.errors import RequestError
from dks.config.schema import TrackingKind
from dks.sweeps import manifest
from dks.sweeps.manifest import Manifest
from dks.tracking import addresses, database, store
from dks.tracking.addresses import exposed, is_pointed_at, point_at
from dks.tracking.destination import Destination
from dks.tracking.sender import Sender
from dks.tracking.store import Unavailable
from dks.tracking.sync import sync
from dks.tracking.upload_loop import UploadLoop
from tests.conftest import TINY
from tests.support.small_server import Remembering

pytestmark = pytest.mark.usefixtures("no_account")

TOKEN = "a-token-of-mine"


def test_only_what_this_user_names_is_pointed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("https://Mlflow.example.org/prefix")
    point_at("http://127.0.0.1:5000")
    point_at("postgresql://me@db/mlflow")
    named = [
        "https://mlflow.example.org:443/api",
        "https://ann@mlflow.example.org",
        "http://127.0.0.1:5000/",
        "postgresql://me@db/mlflow",
    ]
    others = [
        "http://mlflow.example.org",
        "https://mlflow.example.org:8443",
        "https://mlflow.example.org.evil.org",
        "http://127.0.0.1",
        "https://mlflow.example.org@evil.org",
        "https://evil.org\\@mlflow.example.org",
        "http://127.0.0.1:99999",
        "postgresql://me@db/mlflow?host=evil.org",
        "",
        "https://",
    ]
    assert [uri for uri in (*named, *others) if is_pointed_at(uri)] == named
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://evil.org/")
    assert is_pointed_at("https://evil.org:443/api") and not is_pointed_at("https://evil.com")


def test_a_password_that_can_be_read_on_the_way_is_said(
    no_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, hidden = "http://mlflow.example.org:5000", "https://mlflow.example.org"
    nearby = ("http://localhost:5000", "http://127.0.0.2:5000", "http://[::1]:5000")
    for uri in (plain, hidden, *nearby):
        point_at(uri)
        assert exposed(uri) is None, "there is nothing to be read"
    (no_account / ".mlflow").mkdir()
    (no_account / ".mlflow" / "credentials").touch()
    assert str(no_account / ".mlflow" / "credentials") in str(exposed(plain))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    assert plain in str(exposed(plain)) and "MLFLOW_TRACKING_TOKEN" in str(exposed(plain))
    assert [uri for uri in (hidden, *nearby, "http://elsewhere.example.org") if exposed(uri)] == []


# --- runs of somebody else


@pytest.mark.slow
def test_an_address_from_the_folder_of_a_run_is_asked_without_credentials(
    foreign: Any,
    refusing: Remembering,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = foreign(refusing.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    command = ["sync", "--runs-dir", str(run.path.parent)]

    def said(*more: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main([*command, *more])
        captured = capsys.readouterr()
        assert left.value.code == 1
        return captured.out + captured.err

    told = said()
    assert "UNAUTHENTICATED: who are you?" in told
    assert f"MLFLOW_TRACKING_URI={refusing.uri} " in told
    assert f"dks sync --store {refusing.uri}" in told
    assert refusing.asked and refusing.credentials == set()
    assert "set MLFLOW_TRACKING_USERNAME" in said("--store", refusing.uri)
    assert refusing.credentials == {f"Bearer {TOKEN}"}
    refusing.asked.clear()
    monkeypatch.setattr(addresses, "_pointed", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing.uri)
    said()
    assert refusing.credentials == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "uri", ["postgresql://evil.example.org/db", "mysql://evil.example.org/db", "databricks://evil"]
)
def test_no_password_goes_to_a_database_that_a_folder_names(
    foreign: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(uri: str) -> None:
        raise AssertionError(uri)

    monkeypatch.setattr(store, "engine_of", opened)
    monkeypatch.setattr(database, "engine_of", opened)
    monkeypatch.setattr(store, "open_client", opened)
    monkeypatch.setenv("PGPASSWORD", TOKEN)
    run = foreign(uri, TrackingKind.server if "databricks" in uri else TrackingKind.local)
    (sent,) = sync(str(run.path.parent)).runs
    assert f"dks sync --store {uri}" in str(sent.problem)


def test_a_foreign_server_says_not_where_files_go_on_this_machine() -> None:
    info = SimpleNamespace(artifact_uri="")
    client: Any = SimpleNamespace(get_run=lambda run_id: SimpleNamespace(info=info))
    destination = Destination(client, "https://evil.org", "1")
    for info.artifact_uri in ("/etc/somewhere", "file:///etc", "s3://evil/x", "sftp://evil/x"):
        with pytest.raises(
            Unavailable,
            match=f"^it wants the files of runs at {info.artifact_uri}; MLFLOW_TRACKING_URI=",
        ):
            destination.check_artifacts("1")
    for info.artifact_uri in ("mlflow-artifacts:/1/a", "https://evil.org/files"):
        destination.check_artifacts("1")
    point_at("https://evil.org")
    info.artifact_uri = "/shared/mlruns"
    destination.check_artifacts("1")


def test_runs_that_this_user_begins_are_sent_with_credentials(
    refusing: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    values = {"kind": "server", "uri": refusing.uri, "experiment": "dks", "drain_seconds": 1.0}
    loop = UploadLoop()
    loop.handle({"sweep": "mine", "status": "RUNNING", "tracking": values})
    loop.work()
    assert "no account was sent" in loop.handle({"open": values, "own": False})["opened"]["silent"]
    assert refusing.asked and refusing.credentials == set(), (
        "`dks sweep wait` has the address from a folder"
    )
    assert (
        "set MLFLOW_TRACKING_USERNAME"
        in loop.handle({"open": values, "own": True})["opened"]["silent"]
    )
    assert refusing.credentials == {f"Bearer {TOKEN}"}


def opened(monkeypatch: pytest.MonkeyPatch, *command: str) -> list[bool]:
    """Which addresses the process that sends would be told to be this user's, by a command that
    runs nothing.
    """
    told: list[bool] = []

    def stop(self: Sender, command: dict[str, Any]) -> None:
        told.append(command["own"])
        raise RequestError("that was enough")

    monkeypatch.setattr(addresses, "_pointed", {})
    monkeypatch.setattr(addresses, "_replays", False)
    monkeypatch.setattr(Sender, "_command", stop)
    with pytest.raises(SystemExit):
        cli.main(list(command))
    return told


@pytest.mark.slow
def test_a_sweep_that_is_asked_for_again_names_no_server_of_this_user(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may write to `results/` may write there whose server it is."""
    typed = [*TINY, "seed=1,2", "tracking=server", "tracking.uri=http://127.0.0.1:9"]
    assert opened(monkeypatch, "train", "-m", *typed) == [True]
    (in_folder / "runs").mkdir()
    manifest.write(Manifest("mine", "mine", ["seed"], "runs", [], request=typed), "results")
    assert opened(monkeypatch, "sweep", "run", "mine") == [False]
    assert opened(monkeypatch, "sweep", "retry", "mine") == [] and addresses._replays, (
        "none of its cells was begun"
    )
    assert opened(monkeypatch, "sweep", "run", "mine", "tracking.uri=http://127.0.0.1:9") == [True]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert opened(monkeypatch, "sweep", "run", "mine") == [True]
    capsys.readouterr()


def test_a_job_of_slurm_is_told_which_server_is_this_users(monkeypatch: pytest.MonkeyPatch) -> None:
    from dks.sweeps.launchers.slurm import _importable

    def told() -> list[str]:
        return [line for line in _importable() if "MLFLOW" in line]

    point_at("sqlite:///mlflow.db")
    assert told() == []
    point_at("https://mlflow.example.org/$(touch made)")
    assert told() == ["export MLFLOW_TRACKING_URI='https://mlflow.example.org/$(touch made)'"]
    monkeypatch.setattr(addresses, "_pointed", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://other.example.org")
    assert told() == ["export MLFLOW_TRACKING_URI=https://other.example.org"]
