"""The servers and the proxy that tests of tracking stand on do what they say."""

from __future__ import annotations

import json
import math
import ssl
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from dks.runs.journal import Journal
from tests.support.small_server import Remembering, remembering
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


@pytest.fixture
def upstream() -> Iterator[Remembering]:
    """A server that says how many requests it got."""
    with remembering() as server:
        server.answer = lambda method, path: (200, str(len(server.asked)), {})
        yield server


def port(server: Remembering) -> int:
    return int(server.uri.rpartition(":")[2])


def ask(uri: str, timeout: float = 5, **headers: str) -> str:
    request = urllib.request.Request(uri, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return str(answer.read().decode())


def test_a_proxy_fails_as_networks_do(upstream: Remembering) -> None:
    with FaultyProxy(port(upstream)) as proxy:
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
        proxy.behave("cut")
        with pytest.raises(OSError, match=r"reset|closed"):
            ask(proxy.uri)
        proxy.behave("lose")
        with pytest.raises(TimeoutError):
            ask(proxy.uri, timeout=0.3)
        assert len(upstream.asked) == 4, "whose answers were withheld"
        proxy.behave("pass")
        assert ask(proxy.uri) == "5"
    assert proxy.counts == {"pass": 2, "drop": 1, "delay": 1, "cut": 1, "lose": 1}


def test_how_often_a_proxy_cuts_is_drawn_from_its_seed(upstream: Remembering) -> None:
    def pattern(seed: int) -> str:
        seen = ""
        with FaultyProxy(port(upstream), seed) as proxy:
            proxy.behave("cut", probability=0.5)
            for _ in range(20):
                try:
                    ask(proxy.uri)
                    seen += "+"
                except OSError:
                    seen += "-"
            assert proxy.counts == {"pass": seen.count("+"), "cut": seen.count("-")}
        return seen

    assert pattern(1) == pattern(1) != pattern(2)
    assert 3 < pattern(1).count("-") < 17


def test_a_proxy_denies_and_speaks_tls(upstream: Remembering, tmp_path: Path) -> None:
    with FaultyProxy(port(upstream), authorization="Bearer token") as proxy:
        for headers in ({}, {"Authorization": "Bearer other"}, {"X": "Bearer token"}):
            with pytest.raises(urllib.error.HTTPError, match="401") as denied:
                ask(proxy.uri, **headers)
            denied.value.close()
        assert not upstream.asked
        assert ask(proxy.uri, Authorization="Bearer token") == "1"
        assert proxy.counts == {"denied": 3, "pass": 1}
    certificate = Certificate(tmp_path)
    with FaultyProxy(port(upstream), tls=certificate.context) as proxy:
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(proxy.uri)
        trusting = ssl.create_default_context(cafile=str(certificate.path))
        with urllib.request.urlopen(proxy.uri, timeout=5, context=trusting) as answer:
            assert answer.read() == b"2"


# --- a server and its database


def check_comparison(uri: str, run: Path) -> None:
    """What the store at this URI holds of a run's journal is compared to the last point."""
    from mlflow.entities import Metric

    run.mkdir()
    journal = Journal(run / "metrics.jsonl")
    for epoch, odd in enumerate((math.nan, math.inf, -math.inf), 1):
        journal.append(epoch, epoch, {"a": 1.5 * epoch, "odd": odd})
    client = mlflow_client(uri)
    run_id = client.create_run(client.create_experiment("mine")).info.run_id
    (run / "mlflow.json").write_text(json.dumps({"run_id": run_id}))
    entries = journal.read()

    def send(number: int, later: int = 0) -> None:
        entry = entries[number]
        when = round(1000 * datetime.fromisoformat(entry.time).timestamp()) + later
        points = [Metric(name, value, when, entry.epoch) for name, value in entry.metrics.items()]
        client.log_batch(run_id, points)

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
    run = tmp_path / "run"
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
        run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
        assert len(stored_points(client, run_id)) == 10
    assert "secret" not in server.log()


@pytest.mark.slow
@pytest.mark.usefixtures("basic_auth")
def test_a_server_asks_for_a_password_and_answers_only_to_hosts_that_it_knows(
    tmp_path: Path,
) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    api = "api/2.0/mlflow/experiments/get?experiment_id=0"
    known = b64encode(b"ann:long enough for it").decode()
    account = ("ann", "long enough for it")
    with MlflowServer(tmp_path / "closed", store, authentication=account) as server:
        with pytest.raises(urllib.error.HTTPError, match="401") as denied:
            ask(f"{server.uri}/{api}")
        denied.value.close()
        assert "Default" in ask(f"{server.uri}/{api}", Authorization=f"Basic {known}")
    hosts = ("--allowed-hosts", "mlflow.example.org")
    with MlflowServer(tmp_path / "named", store, *hosts) as server:
        with pytest.raises(urllib.error.HTTPError, match="403") as denied:
            ask(f"{server.uri}/{api}")
        denied.value.close()
        assert "Default" in ask(f"{server.uri}/{api}", Host="mlflow.example.org")
