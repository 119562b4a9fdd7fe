"""What leaves for a server, and how long it is listened to."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, TINY, finished_run
from small_server import REFUSAL, Remembering, remembering, trickling
from test_doctor import asked as examined

from dks import cli
from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.doctor import tracking as doctors_tracking
from dks.ledger.states import survey
from dks.sweeps import manifest
from dks.sweeps.manifest import Manifest
from dks.sweeps.sync import close_dead, sync, tell_dead
from dks.tables import mlflow_server
from dks.terminal import Display
from dks.tracking import addresses, store, transport
from dks.tracking.addresses import exposed, is_pointed_at, point_at
from dks.tracking.dispatch import Dispatch
from dks.tracking.record import RunFolder, Status
from dks.tracking.sender import Sender, sending
from dks.tracking.shipment import Note, Shipment
from dks.tracking.store import Unavailable

TOKEN = "a-token-of-mine"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's credentials, and nothing pointed at."""
    monkeypatch.setattr(addresses, "_pointed", {})
    monkeypatch.setattr(addresses, "_replays", False)
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def server() -> Iterator[Remembering]:
    """It lets nobody in."""
    with remembering(lambda method, path: (401, REFUSAL, {"Content-Type": "application/json"})) as found:
        yield found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def shared(trained: RunFolder) -> Any:
    """Gives the run an address, as anybody may who writes to its folder."""

    def at(uri: str, kind: TrackingKind = TrackingKind.server) -> RunFolder:
        config = trained.read_config()
        config.tracking = Tracking(kind, uri)
        trained.write_config(config)
        return trained

    return at


def ask(uri: str, path: str = "/version", **options: Any) -> Any:
    """As MLflow's client does."""
    store.load_mlflow()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", **options)


# --- whose addresses are whose


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
    ]
    others += [
        "https://mlflow.example.org@evil.org",
        "http://127.0.0.1:99999",
        "postgresql://me@db/mlflow?host=evil.org",
        "",
        "https://",
    ]
    assert [uri for uri in (*named, *others) if is_pointed_at(uri)] == named
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://evil.org/")
    assert is_pointed_at("https://evil.org:443/api") and not is_pointed_at("https://evil.com")


@pytest.mark.parametrize("kind", ["token", "password", "credentials", "netrc", "cookie", "header"])
def test_nothing_of_this_user_goes_to_an_address_that_nobody_named(
    kind: str, server: Remembering, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    if kind == "token":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    elif kind == "password":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TOKEN)
    elif kind == "credentials":
        (home / ".mlflow").mkdir()
        (home / ".mlflow" / "credentials").write_text(
            f"[mlflow]\nmlflow_tracking_username=ann\nmlflow_tracking_password={TOKEN}\n"
        )
    elif kind == "netrc":
        (home / ".netrc").write_text(f"default login ann password {TOKEN}\n")
        (home / ".netrc").chmod(0o600)
    elif kind == "cookie":
        options = {"cookies": {"session": TOKEN}}
    else:
        options = {"extra_headers": {"X-Api-Key": TOKEN}}
    assert ask(server.uri, **options).status_code == 401
    assert server.credentials == set()
    point_at(server.uri)
    ask(server.uri, **options)
    assert len(server.credentials) == 1, "that there was something to be left out"


def test_a_certificate_of_this_user_is_shown_where_it_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from requests import PreparedRequest
    from requests.adapters import HTTPAdapter

    shown = []

    def send(self: Any, request: Any, stream: Any, timeout: Any, verify: Any, cert: Any, proxies: Any) -> None:
        shown.append(cert)
        raise ConnectionError

    monkeypatch.setattr(HTTPAdapter, "send", send)
    request = PreparedRequest()
    request.prepare("GET", "https://mlflow.example.org")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            transport.Transport().send(request, timeout=1, cert="mine.pem")
        point_at("https://mlflow.example.org")
    assert shown == [None, "mine.pem"]


def test_no_redirection_is_followed_and_files_for_another_host_have_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    with remembering() as other, remembering(lambda *_: (307, "", {"Location": f"{other.uri}/there"})) as server:
        point_at(server.uri)
        with pytest.raises(Exception, match="redirected") as failed:
            ask(server.uri)
        assert store.reason(failed.value) == f"redirected to {other.uri}, which is to be named itself"
        assert (len(server.asked), server.credentials, other.asked) == (1, {f"Bearer {TOKEN}"}, [])
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        (tmp_path / "x.txt").write_text("x")
        place = other.uri.replace("http:", "mlflow-artifacts:")
        for uri in (f"{other.uri}/files", f"{place}/files"):
            get_artifact_repository(uri, server.uri).log_artifact(str(tmp_path / "x.txt"))
        assert [method for method, _, _ in other.asked] == ["PUT", "PUT"] and other.credentials == set()


# --- runs of somebody else


def test_an_address_from_the_folder_of_a_run_is_asked_without_credentials(
    shared: Any, server: Remembering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shared(server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    command = ["sync", "--runs-dir", str(run.path.parent)]

    def said(*more: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main([*command, *more])
        told = capsys.readouterr()
        assert left.value.code == 1
        return told.out + told.err

    assert (
        f"it refuses (UNAUTHENTICATED: who are you?): no account was sent to what stands only in the files of runs; "
        f"MLFLOW_TRACKING_URI={server.uri} in your environment, or dks sync --store {server.uri}, says that it is yours"
    ) in said()
    assert server.asked and server.credentials == set()
    assert "set MLFLOW_TRACKING_USERNAME" in said("--store", server.uri)
    assert server.credentials == {f"Bearer {TOKEN}"}
    server.asked.clear()
    monkeypatch.setattr(addresses, "_pointed", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    said()
    assert server.credentials == {f"Bearer {TOKEN}"}


def test_a_status_tells_no_foreign_server_more(shared: Any, server: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `dks sweep status` and `dks sweep wait` tell of runs that died."""
    run = shared(server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    record = run.read_record()
    whole = run.record_file.read_text()
    record.status = Status.killed
    run.write_record(record)
    Note(server.uri, "1", "1").write(run)
    try:
        (problem,) = tell_dead(close_dead(survey(str(run.path.parent), [run.cell_id])))
    finally:
        run.record_file.write_text(whole)
        run.mlflow_file.unlink()
    assert "no account was sent to what stands only in the files of runs" in problem
    assert server.asked and server.credentials == set()


@pytest.mark.parametrize("uri", ["postgresql://evil.example.org/db", "mysql://evil.example.org/db", "databricks://evil"])
def test_no_password_goes_to_a_database_that_a_folder_names(shared: Any, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(uri: str) -> None:
        raise AssertionError(uri)

    monkeypatch.setattr(store, "_engine", opened)
    monkeypatch.setattr(store, "open_client", opened)
    monkeypatch.setenv("PGPASSWORD", TOKEN)
    run = shared(uri, TrackingKind.server if "databricks" in uri else TrackingKind.local)
    (sent,) = sync(str(run.path.parent)).runs
    assert sent.problem == (
        f"no password goes to a database that stands only in the files of runs; MLFLOW_TRACKING_URI={uri} in your "
        f"environment, or dks sync --store {uri}, says that it is yours"
    )


def test_a_foreign_server_says_not_where_files_go_on_this_machine(tmp_path: Path) -> None:
    info = SimpleNamespace(artifact_uri="")
    client: Any = SimpleNamespace(get_run=lambda run_id: SimpleNamespace(info=info))
    shipment = Shipment(RunFolder(tmp_path), client, "https://evil.org", "1")
    for info.artifact_uri in ("/root/.config", "file:///root", "s3://evil/x", "sftp://evil/x"):
        with pytest.raises(Unavailable, match=f"^it wants the files of runs at {info.artifact_uri}; MLFLOW_TRACKING_URI="):
            shipment._check_place("1")
    for info.artifact_uri in ("mlflow-artifacts:/1/a", "https://evil.org/files"):
        shipment._check_place("1")
    point_at("https://evil.org")
    info.artifact_uri = "/shared/mlruns"
    shipment._check_place("1")


def test_runs_that_this_user_begins_are_sent_with_credentials(server: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    values = {"kind": "server", "uri": server.uri, "experiment": "dks", "drain_seconds": 1.0}
    sender = Dispatch()
    sender.obey({"sweep": "mine", "status": "RUNNING", "tracking": values})
    sender.work()
    assert "no account was sent" in sender.open(values, own=False)["silent"]
    assert server.asked and server.credentials == set(), "`dks sweep wait` has the address from a folder"
    assert "set MLFLOW_TRACKING_USERNAME" in sender.open(values, own=True)["silent"]
    assert server.credentials == {f"Bearer {TOKEN}"}


def opened(monkeypatch: pytest.MonkeyPatch, *command: str) -> list[bool]:
    """Which addresses the process that sends would be told to be this user's, by a command that runs nothing."""
    told: list[bool] = []

    def stop(self: Sender, command: dict[str, Any]) -> None:
        told.append(command["own"])
        raise RequestError("that was enough")

    monkeypatch.setattr(addresses, "_pointed", {})
    monkeypatch.setattr(addresses, "_replays", False)
    monkeypatch.setattr(Sender, "_tell", stop)
    with pytest.raises(SystemExit):
        cli.main(list(command))
    return told


def test_a_sweep_that_is_asked_for_again_names_no_server_of_this_user(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may write to `results/` may write there whose server it is."""
    typed = [*TINY, "seed=1,2", "tracking=server", "tracking.uri=http://127.0.0.1:9"]
    assert opened(monkeypatch, "train", "-m", *typed) == [True]
    (in_folder / "runs").mkdir()
    manifest.write(Manifest("mine", "mine", ["seed"], "runs", [], request=typed), "results")
    assert opened(monkeypatch, "sweep", "run", "mine") == [False]
    assert opened(monkeypatch, "sweep", "retry", "mine") == [] and addresses._replays, "none of its cells was begun"
    assert opened(monkeypatch, "sweep", "run", "mine", "tracking.uri=http://127.0.0.1:9") == [True]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert opened(monkeypatch, "sweep", "run", "mine") == [True]
    capsys.readouterr()


def test_a_job_of_slurm_is_told_which_server_is_this_users(monkeypatch: pytest.MonkeyPatch) -> None:
    from dks.sweeps.slurm import _importable

    def told() -> list[str]:
        return [line for line in _importable() if "MLFLOW" in line]

    point_at("sqlite:///mlflow.db")
    assert told() == []
    point_at("https://mlflow.example.org/$(touch made)")
    assert told() == ["export MLFLOW_TRACKING_URI='https://mlflow.example.org/$(touch made)'"]
    monkeypatch.setattr(addresses, "_pointed", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://other.example.org")
    assert told() == ["export MLFLOW_TRACKING_URI=https://other.example.org"]


def test_a_password_that_can_be_read_on_the_way_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, hidden = "http://mlflow.example.org:5000", "https://mlflow.example.org"
    nearby = ("http://localhost:5000", "http://127.0.0.2:5000", "http://[::1]:5000")
    for uri in (plain, hidden, *nearby):
        point_at(uri)
        assert exposed(uri) is None, "there is nothing to be read"
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").touch()
    assert str(home / ".mlflow" / "credentials") in str(exposed(plain))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    assert exposed(plain) == (
        f"{plain} is not encrypted: whoever is on the way can read MLFLOW_TRACKING_TOKEN; https:// protects it"
    )
    assert [uri for uri in (hidden, *nearby, "http://elsewhere.example.org") if exposed(uri)] == []


# --- time


ANSWERS = {
    "a status": b"HTTP/1.1 200",
    "headers": b"HTTP/1.1 200 OK\r\nX: ",
    "a body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "a body without a length": b"HTTP/1.1 200 OK\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n",
}


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_has_a_time_for_all_of_it(what: str) -> None:
    store.load_mlflow()
    with trickling(ANSWERS[what]) as server:
        began = time.monotonic()
        with pytest.raises(Exception, match="timeout exception no whole answer in 1 s") as failed:
            ask(server.uri, timeout=0.6)
        assert 0.5 < time.monotonic() - began < 3
        assert store.reason(failed.value) == "no whole answer in 1 s"
        while not server.left:
            assert time.monotonic() - began < 10, "nothing of it is left behind"
            time.sleep(0.05)


def test_an_answer_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LARGEST", 2**20)
    with remembering(lambda *_: (200, "x" * 2**20, {})) as server:
        assert len(ask(server.uri).text) == 2**20
        server.answer = lambda *_: (200, "x" * (2**20 + 1), {})
        with pytest.raises(Exception, match="more than 1 MiB in an answer"):
            ask(server.uri)


def test_what_is_sent_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file on a slow network is no server that hangs."""
    seconds = []
    within = transport._within
    monkeypatch.setattr(transport, "_within", lambda limit: seconds.append(limit) or within(limit))
    with remembering() as server:
        ask(server.uri, timeout=10)
        ask(server.uri, timeout=10, data=b"x" * 1_000_000)
    assert seconds == [10, 20]


def test_a_server_that_trickles_is_one_line_for_every_command(
    shared: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(mlflow_server, "GREETING", 1)
    monkeypatch.setattr(doctors_tracking, "ANSWER", 1)
    with trickling(ANSWERS["a body"]) as server:
        uri, run = server.uri, shared(server.uri)
        began = time.monotonic()
        with pytest.raises(SystemExit) as left:
            cli.main(["sync", "--runs-dir", str(run.path.parent)])
        told = capsys.readouterr()
        assert (left.value.code, told.err) == (1, "")
        assert told.out.splitlines() == [
            f"{uri}: 0 points of 0 runs sent",
            f"  1 run not sent ({run.cell_id}): it does not answer (no whole answer in 1 s)",
        ]
        with pytest.raises(RequestError, match=f"^{uri} cannot be read: no whole answer in 1 s$"):
            mlflow_server.Server(uri, "dks").runs()
        assert examined(uri)["answer"].found == f"{uri}: no whole answer in 1 s"
        assert Dispatch().open({"kind": "server", "uri": uri}, True) == {
            "silent": "it does not answer (no whole answer in 1 s)"
        }
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_run_waits_for_no_server_that_trickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with trickling(ANSWERS["a body"]) as server:
        sender = Sender(print)
        began = time.monotonic()
        assert sender.open(Tracking(TrackingKind.server, server.uri)) == "it does not answer (no whole answer in 2 s)"
        run = finished_run(tmp_path)
        config = run.read_config()
        config.tracking = Tracking(TrackingKind.server, server.uri)
        run.write_config(config)
        sender.begin(run.path)
        sender.end(run.path)
        (line,) = sender.finish(1)
        why = "it does not answer (no whole answer in 2 s)"
        assert line == f"{server.uri} has not got everything: {why}; 1 run to be completed by: dks sync"
        assert time.monotonic() - began < 60, "most of it is the start of a process"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["told to finish", "terminated"])
def test_what_sends_ends_whatever_it_waits_for(how: str, tmp_path: Path) -> None:
    """Were there no time for an answer, as a database may have none."""
    from subprocess import PIPE, Popen

    command = [sys.executable, "-P", "-m", "dks.commands.sender"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}
    with trickling(ANSWERS["a body"]) as server, Popen(command, stdin=PIPE, stdout=PIPE, env=variables, cwd=tmp_path) as sender:
        assert sender.stdin is not None
        values = {"kind": "server", "uri": server.uri, "experiment": "dks", "drain_seconds": 1.0}
        sender.stdin.write(json.dumps({"open": values}).encode() + b"\n")
        sender.stdin.flush()
        try:
            until = time.monotonic() + 120
            while not server.asked:
                assert time.monotonic() < until
                time.sleep(0.1)
            if how == "terminated":
                sender.terminate()
            else:
                sender.stdin.write(b'{"finish": 0.5}\n')
                sender.stdin.flush()
            assert sender.wait(13) == 1
        finally:
            sender.kill()


def test_a_list_without_an_end_comes_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(list[int]):
        token = "more"

    monkeypatch.setattr(store, "LISTING", 0.2)
    with pytest.raises(Unavailable, match="its list of runs has no end"):
        list(store.all_cells(SimpleNamespace(search_runs=lambda *_, **__: Page([1])), "1"))  # type: ignore[arg-type]


# --- words


def test_what_a_server_says_does_nothing_to_a_terminal(
    shared: Any, server: Remembering, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "\x1b[2J\x9b1m[bold red]gone[/]\r\u202e"
    shown = r"\x1b[2J\x9b1m[bold red]gone[/]"
    body = json.dumps({"error_code": "UNAUTHENTICATED", "message": words})
    server.answer = lambda *_: (401, body, {})
    run = shared(server.uri)
    with pytest.raises(SystemExit):
        cli.main(["sync", "--runs-dir", str(run.path.parent)])
    said = capsys.readouterr().out
    assert shown in said and "\x1b" not in said and "\r" not in said
    with pytest.raises(RequestError) as refused:
        mlflow_server.Server(server.uri, "dks").runs()
    assert shown in str(refused.value)
    server.answer = lambda *_: (200, words, {})
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL")
    store.load_mlflow()
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # which is read when it is imported
    with pytest.raises(SystemExit):
        cli.main(["sync", "--runs-dir", str(run.path.parent)])
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    display = Display()
    monkeypatch.setattr(Sender, "_tell", lambda self, command: None)
    monkeypatch.setattr(Sender, "finish", lambda self, patience: [f"{server.uri} has not got everything: {words}"])
    with sending(Tracking(TrackingKind.server, server.uri), display.say):
        pass
    assert shown in capsys.readouterr().err
