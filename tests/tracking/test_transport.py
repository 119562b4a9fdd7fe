"""What leaves for a server, and how long it is listened to."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dks.cli import main as cli
from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.runs.terminal import Display
from dks.tracking import mlflow_stores, store, transport
from dks.tracking.addresses import point_at
from dks.tracking.sender import Sender, sending
from dks.tracking.store import Unavailable
from dks.tracking.upload_loop import UploadLoop
from tests.conftest import ROOT
from tests.support.journaled import journaled
from tests.support.small_server import Remembering, remembering, trickling

pytestmark = pytest.mark.usefixtures("no_account")

TOKEN = "a-token-of-mine"


def ask(uri: str, path: str = "/version", **options: Any) -> Any:
    """As MLflow's client does."""
    store.load_mlflow()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", **options)


# --- credentials


@pytest.mark.parametrize("kind", ["token", "password", "credentials", "netrc", "cookie", "header"])
def test_nothing_of_this_user_goes_to_an_address_that_nobody_named(
    kind: str, refusing: Remembering, no_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    if kind == "token":
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    elif kind == "password":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TOKEN)
    elif kind == "credentials":
        (no_account / ".mlflow").mkdir()
        (no_account / ".mlflow" / "credentials").write_text(
            f"[mlflow]\nmlflow_tracking_username=ann\nmlflow_tracking_password={TOKEN}\n"
        )
    elif kind == "netrc":
        (no_account / ".netrc").write_text(f"default login ann password {TOKEN}\n")
        (no_account / ".netrc").chmod(0o600)
    elif kind == "cookie":
        options = {"cookies": {"session": TOKEN}}
    else:
        options = {"extra_headers": {"X-Api-Key": TOKEN}}
    assert ask(refusing.uri, **options).status_code == 401
    assert refusing.credentials == set()
    point_at(refusing.uri)
    ask(refusing.uri, **options)
    assert len(refusing.credentials) == 1, "that there was something to be left out"


def test_a_certificate_of_this_user_is_shown_where_it_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from requests import PreparedRequest
    from requests.adapters import HTTPAdapter

    shown = []

    def send(
        self: Any, request: Any, stream: Any, timeout: Any, verify: Any, cert: Any, proxies: Any
    ) -> None:
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
    with (
        remembering() as other,
        remembering(lambda *_: (307, "", {"Location": f"{other.uri}/there"})) as server,
    ):
        point_at(server.uri)
        with pytest.raises(Exception, match="redirected") as failed:
            ask(server.uri)
        assert (
            store.reason(failed.value) == f"redirected to {other.uri}, which is to be named itself"
        )
        assert (len(server.asked), server.credentials, other.asked) == (1, {f"Bearer {TOKEN}"}, [])
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        (tmp_path / "x.txt").write_text("x")
        place = other.uri.replace("http:", "mlflow-artifacts:")
        for uri in (f"{other.uri}/files", f"{place}/files"):
            get_artifact_repository(uri, server.uri).log_artifact(str(tmp_path / "x.txt"))
        assert [method for method, _, _ in other.asked] == [
            "PUT",
            "PUT",
        ] and other.credentials == set()


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
    foreign: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(mlflow_stores, "GREETING", 1)
    with trickling(ANSWERS["a body"]) as server:
        uri, run = server.uri, foreign(server.uri)
        began = time.monotonic()
        with pytest.raises(SystemExit) as left:
            cli.main(["sync", "--runs-dir", str(run.path.parent)])
        told = capsys.readouterr()
        assert (left.value.code, told.err) == (1, "")
        summary, problem = told.out.splitlines()
        assert summary == f"{uri}: 0 points of 0 runs sent"
        assert run.cell_id in problem and "no whole answer in 1 s" in problem
        with pytest.raises(RequestError, match=f"^{uri} cannot be read: no whole answer in 1 s$"):
            mlflow_stores.StoreServer(uri, "dks").runs()
        assert UploadLoop().handle({"open": {"kind": "server", "uri": uri}, "own": True}) == {
            "opened": {"silent": "it does not answer (no whole answer in 1 s)"}
        }
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_run_waits_for_no_server_that_trickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with trickling(ANSWERS["a body"]) as server:
        tracking, sender = Tracking(TrackingKind.server, server.uri), Sender(print)
        began = time.monotonic()
        assert "no whole answer in 2 s" in str(sender.open(tracking))
        run = journaled(tmp_path)
        config = run.read_config()
        config.tracking = tracking
        run.write_config(config)
        sender.begin(run.path)
        sender.end(run.path)
        (line,) = sender.finish(1)
        assert all(part in line for part in (server.uri, "no whole answer", "1 run", "dks sync"))
        assert time.monotonic() - began < 60, "most of it is the start of a process"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["told to finish", "terminated"])
def test_what_sends_ends_whatever_it_waits_for(how: str, tmp_path: Path) -> None:
    """Were there no time for an answer, as a database may have none."""
    from subprocess import PIPE, Popen

    command = [sys.executable, "-P", "-m", "dks.cli.sender"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}
    with (
        trickling(ANSWERS["a body"]) as server,
        Popen(command, stdin=PIPE, stdout=PIPE, env=variables, cwd=tmp_path) as sender,
    ):
        assert sender.stdin is not None
        values = {"kind": "server", "uri": server.uri, "experiment": "dks", "drain_seconds": 1.0}
        sender.stdin.write(json.dumps({"open": values, "own": True}).encode() + b"\n")
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
    foreign: Any,
    refusing: Remembering,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = "\x1b[2J\x9b1m[bold red]gone[/]\r\u202e"
    shown = r"\x1b[2J\x9b1m[bold red]gone[/]"
    body = json.dumps({"error_code": "UNAUTHENTICATED", "message": words})
    refusing.answer = lambda *_: (401, body, {})
    run = foreign(refusing.uri)
    with pytest.raises(SystemExit):
        cli.main(["sync", "--runs-dir", str(run.path.parent)])
    said = capsys.readouterr().out
    assert shown in said and "\x1b" not in said and "\r" not in said
    with pytest.raises(RequestError) as refused:
        mlflow_stores.StoreServer(refusing.uri, "dks").runs()
    assert shown in str(refused.value)
    refusing.answer = lambda *_: (200, words, {})
    with pytest.raises(SystemExit):
        cli.main(["sync", "--runs-dir", str(run.path.parent)])
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    display = Display()
    monkeypatch.setattr(Sender, "_command", lambda self, command: None)
    monkeypatch.setattr(
        Sender,
        "finish",
        lambda self, patience, hurry: [f"{refusing.uri} has not got everything: {words}"],
    )
    with sending(Tracking(TrackingKind.server, refusing.uri), display.say):
        pass
    assert shown in capsys.readouterr().err
