"""The servers and the proxy that tests of tracking stand on do what they say."""

from __future__ import annotations

import json
import math
import ssl
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dks.runs.journal import Journal
from tests.support.tracking_services import (
    Certificate,
    FaultyProxy,
    MlflowServer,
    PostgreSQL,
    answers,
    assert_holds_journal,
    mlflow_client,
    stored_points,
)


class Counting(BaseHTTPRequestHandler):
    """Answers with the number of requests it got."""

    protocol_version = "HTTP/1.1"
    got: list[str]

    def do_GET(self) -> None:
        self.got.append(self.path)
        body = str(len(self.got)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Not here."""


@pytest.fixture
def upstream() -> Iterator[tuple[int, list[str]]]:
    """Port of an HTTP server, and what was asked of it."""

    class Handler(Counting):
        pass

    Handler.got = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port, Handler.got
    server.shutdown()
    thread.join()
    server.server_close()


def ask(uri: str, timeout: float = 5, **headers: str) -> str:
    with urllib.request.urlopen(
        urllib.request.Request(uri, headers=headers), timeout=timeout
    ) as answer:
        return str(answer.read().decode())


def test_a_proxy_passes_refuses_drops_and_delays(upstream: tuple[int, list[str]]) -> None:
    port, got = upstream
    with FaultyProxy(port) as proxy:
        assert ask(proxy.uri) == "1"
        proxy.behave("refuse")
        with pytest.raises(urllib.error.URLError, match="refused"):
            ask(proxy.uri)
        proxy.behave("drop")
        with pytest.raises(TimeoutError):
            ask(proxy.uri, timeout=0.3)
        proxy.behave("delay", seconds=0.2)
        begun = time.monotonic()
        assert ask(proxy.uri) == "2", "what was dropped never came"
        assert 0.4 <= time.monotonic() - begun < 2
        proxy.behave("pass")
        assert ask(proxy.uri) == "3"
    assert len(got) == 3
    assert proxy.counts == {"pass": 2, "drop": 1, "delay": 1}
    with pytest.raises(urllib.error.URLError, match="refused"):
        ask(proxy.uri)


def test_a_proxy_withholds_answers_to_requests_that_arrived(
    upstream: tuple[int, list[str]],
) -> None:
    port, got = upstream
    with FaultyProxy(port) as proxy:
        proxy.behave("cut")
        with pytest.raises(OSError, match=r"reset|closed"):
            ask(proxy.uri)
        assert len(got) == 1
        proxy.behave("lose")
        with pytest.raises(TimeoutError):
            ask(proxy.uri, timeout=0.3)
        assert len(got) == 2
        assert proxy.counts == {"cut": 1, "lose": 1}


def test_how_often_a_proxy_cuts_is_drawn_from_its_seed(upstream: tuple[int, list[str]]) -> None:
    def pattern(seed: int) -> str:
        seen = ""
        with FaultyProxy(upstream[0], seed) as proxy:
            proxy.behave("cut", probability=0.5)
            for _ in range(30):
                try:
                    ask(proxy.uri)
                    seen += "+"
                except OSError:
                    seen += "-"
            assert proxy.counts == {"pass": seen.count("+"), "cut": seen.count("-")}
        return seen

    assert pattern(1) == pattern(1) != pattern(2)
    assert 5 < pattern(1).count("-") < 25


def test_a_proxy_with_access_control_denies(upstream: tuple[int, list[str]]) -> None:
    port, got = upstream
    with FaultyProxy(port, authorization="Bearer token") as proxy:
        for headers in ({}, {"Authorization": "Bearer other"}, {"X": "Bearer token"}):
            with pytest.raises(urllib.error.HTTPError, match="401") as denied:
                ask(proxy.uri, **headers)
            denied.value.close()
        assert not got
        assert ask(proxy.uri, Authorization="Bearer token") == "1"
        assert proxy.counts == {"denied": 3, "pass": 1}


def test_a_proxy_speaks_tls_with_a_certificate_of_its_own(
    upstream: tuple[int, list[str]], tmp_path: Path
) -> None:
    certificate = Certificate(tmp_path)
    with FaultyProxy(upstream[0], tls=certificate.context) as proxy:
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(proxy.uri)
        trusting = ssl.create_default_context(cafile=str(certificate.path))
        with urllib.request.urlopen(proxy.uri, timeout=5, context=trusting) as answer:
            assert answer.read() == b"1"


# --- a server and its database


def run_with_journal(folder: Path) -> Path:
    journal = Journal(folder / "metrics.jsonl")
    folder.mkdir()
    for epoch in (1, 2, 3):
        values = {"a": 1.5 * epoch, "odd": (math.nan, math.inf, -math.inf)[epoch - 1]}
        journal.append(epoch, epoch, values)
    return folder


def check_comparison(uri: str, run: Path) -> None:
    """What the store at this URI holds of a run's journal is compared to the last point."""
    from mlflow.entities import Metric

    client = mlflow_client(uri)
    run_id = client.create_run(client.create_experiment("mine")).info.run_id
    (run / "mlflow.json").write_text(json.dumps({"run_id": run_id}))
    entries = Journal(run / "metrics.jsonl").read()

    def send(number: int, later: int = 0) -> None:
        entry = entries[number]
        when = round(1000 * datetime.fromisoformat(entry.time).timestamp()) + later
        client.log_batch(
            run_id,
            [Metric(name, value, when, entry.epoch) for name, value in entry.metrics.items()],
        )

    send(0)
    send(1)
    with pytest.raises(AssertionError, match=r"2 missing .*, 0 too many"):
        assert_holds_journal(client, run)
    send(2)
    assert assert_holds_journal(client, run) == run_id
    assert len(stored_points(client, run_id)) == 6
    client.log_metric(run_id, "best/a", 1.0)
    client.log_metric(run_id, "cost/seconds", 1.0)
    assert_holds_journal(client, run)
    send(1, later=1)
    with pytest.raises(AssertionError, match=r"0 missing .*, 2 too many"):
        assert_holds_journal(client, run)


@pytest.mark.slow
def test_a_server_that_is_killed_starts_again_with_what_it_held(
    postgresql_server: PostgreSQL, postgresql: str, tmp_path: Path
) -> None:
    run = run_with_journal(tmp_path / "run")
    with MlflowServer(tmp_path / "server", postgresql) as server:
        check_comparison(server.uri, run)
        server.kill()
        assert not answers(f"{server.uri}/health")
        server.start()
        client = mlflow_client(server.uri)
        assert client.get_experiment_by_name("mine") is not None
        postgresql_server.stop()
        try:
            assert answers(f"{server.uri}/health"), "which says nothing of the database"
        finally:
            postgresql_server.start()
        assert (
            len(stored_points(client, json.loads((run / "mlflow.json").read_text())["run_id"]))
            == 10
        )
        server.stop()
    assert "secret" not in server.log()


@pytest.mark.slow
@pytest.mark.usefixtures("basic_auth")
def test_a_server_asks_for_a_password(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    api = "api/2.0/mlflow/experiments/get?experiment_id=0"
    with MlflowServer(
        tmp_path / "server", store, authentication=("ann", "long enough for it")
    ) as server:
        with pytest.raises(urllib.error.HTTPError, match="401") as denied:
            ask(f"{server.uri}/{api}")
        denied.value.close()
        known = b64encode(b"ann:long enough for it").decode()
        assert "Default" in ask(f"{server.uri}/{api}", Authorization=f"Basic {known}")


@pytest.mark.slow
def test_a_server_answers_only_to_hosts_that_it_knows(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    api = "api/2.0/mlflow/experiments/get?experiment_id=0"
    with MlflowServer(
        tmp_path / "server", store, "--allowed-hosts", "mlflow.example.org"
    ) as server:
        with pytest.raises(urllib.error.HTTPError, match="403") as denied:
            ask(f"{server.uri}/{api}")
        denied.value.close()
        assert "Default" in ask(f"{server.uri}/{api}", Host="mlflow.example.org")
