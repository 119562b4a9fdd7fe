"""Servers for tests of what goes out to them.

One that remembers what it is asked, one that never comes to an end.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dks.config.schema import Tracking, TrackingKind
from dks.runs.record import RunFolder
from dks.tracking import addresses

Answer = Callable[[str, str], tuple[int, str, dict[str, str]]]


@dataclass
class Remembering:
    """What an HTTP server was asked, and what it answers.

    To (method, path), a status, the body and more headers.
    """

    answer: Answer = lambda method, path: (200, "OK", {})
    uri: str = ""
    # method, path, headers by small letters
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    @property
    def credentials(self) -> set[str]:
        """All that was shown to it."""
        return {
            value
            for _, _, headers in self.asked
            for name, value in headers.items()
            if name not in HARMLESS
        }


HARMLESS = {
    *("accept", "accept-encoding", "connection", "content-length", "content-type", "host"),
    *("user-agent", "x-mlflow-client-version"),
}
REFUSAL = json.dumps({"error_code": "UNAUTHENTICATED", "message": "who are you?"})


@contextmanager
def remembering(answer: Answer | None = None) -> Iterator[Remembering]:
    found = Remembering() if answer is None else Remembering(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.asked.append((self.command, self.path, headers))
            status, body, headers = found.answer(self.command, self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body.encode())), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PUT = do_GET  # noqa: N815 (the names are given)

        def log_message(self, *_: object) -> None:
            """Not here."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        found.uri = f"http://127.0.0.1:{listening.server_port}"
        try:
            yield found
        finally:
            listening.shutdown()
            thread.join()


@dataclass
class Trickling:
    """How often it was asked, and how often whoever asked had enough."""

    uri: str = ""
    asked: int = 0
    left: int = 0


@contextmanager
def trickling(begin: bytes = b"", every: float = 0.1) -> Iterator[Trickling]:
    """A server that says this at once, and then one byte at a time, without end."""
    listening, over, found = socket.create_server(("127.0.0.1", 0)), threading.Event(), Trickling()
    found.uri = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(2**16)
            found.asked += 1
            connection.sendall(begin)
            while not over.wait(every):
                connection.sendall(b"x")
        found.left += not over.is_set()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield found
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


# --- fixtures


@pytest.fixture
def no_account(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's credentials, and nothing pointed at; the home in which there are none."""
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
def refusing() -> Iterator[Remembering]:
    """A server that lets nobody in."""
    with remembering(
        lambda method, path: (401, REFUSAL, {"Content-Type": "application/json"})
    ) as found:
        yield found


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run."""
    from tests.support.journaled import journaled

    return journaled(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def foreign(trained: RunFolder) -> Callable[..., RunFolder]:
    """Gives a run an address, as anybody may who writes to its folder."""

    def at(uri: str, kind: TrackingKind = TrackingKind.server) -> RunFolder:
        config = trained.read_config()
        config.tracking = Tracking(kind, uri)
        trained.write_config(config)
        return trained

    return at
