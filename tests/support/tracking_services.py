"""What tests of tracking share.

A real PostgreSQL, a real MLflow server, and a proxy before it that fails as networks do.
"""

from __future__ import annotations

import asyncio
import collections
import importlib.util
import json
import math
import os
import random
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dks.tracking.database import SQLITE
from tests.support.slurm_cluster import free_ports

# (metric, step, time in milliseconds since 1970, value); NaN is written "NaN", so that two
# histories can be compared
Point = tuple[str, int, int, float | str]

LARGEST = sys.float_info.max  # what MLflow stores for infinity


# --- PostgreSQL


class PostgreSQL:
    """A PostgreSQL server of its own, whose superuser is `me` with the password `secret`."""

    def __init__(self, programs: Path) -> None:
        self._programs, (self.port,) = programs, free_ports(1)
        # pytest's own folders are closed to other users
        self._place = tempfile.mkdtemp(prefix="dks-postgresql-")
        shutil.chown(self._place, "postgres")
        password = Path(self._place) / "password"
        password.write_text("secret\n")
        password.chmod(0o644)
        self._run(f"initdb -U me --auth=md5 --pwfile={password} --no-sync")
        self.start()

    def start(self) -> None:
        settings = f"-p {self.port} -h 127.0.0.1 -k {self._place} -c fsync=off"
        self._run(f"pg_ctl -l {self._place}/log -w -o '{settings}' start")

    def stop(self) -> None:
        """At once: clients lose their connections in the middle of what they do."""
        self._run("pg_ctl -w -m immediate stop")

    def uri(self, database: str) -> str:
        return f"postgresql://me:secret@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URI of an empty one."""
        from sqlalchemy import create_engine, text

        name = f"test_{time.monotonic_ns()}"
        engine = create_engine(self.uri("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.uri(name)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._place)

    def _run(self, command: str) -> None:
        program, *arguments = shlex.split(command)
        run = [str(self._programs / program), "-D", f"{self._place}/data", *arguments]
        # what is started keeps these outputs open, so they must not be pipes that one waits for
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                ["runuser", "-u", "postgres", "--", *run],
                cwd=self._place,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """The server.

    Where it cannot be started the tests that need it are skipped, except in CI, where they must
    run.
    """
    from sqlalchemy import create_engine

    try:
        driver = create_engine("postgresql://").driver
    except ModuleNotFoundError:
        driver = None
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    lacking = [
        reason
        for reason, there in {
            "the Debian package postgresql": bool(programs),
            "pip install 'dks[postgres]'": driver is not None,
            "root, to become another user": os.geteuid() == 0,
        }.items()
        if not there
    ]
    if lacking:
        assert os.environ.get("CI") != "true", lacking
        pytest.skip(f"needs {', '.join(lacking)}")
    server = PostgreSQL(programs[-1].parent)
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgresql(postgresql_server: PostgreSQL) -> str:
    """The URI of an empty database."""
    return postgresql_server.new_database()


# --- an MLflow server


class MlflowServer:
    """`mlflow server` on a port of its own, artifacts served through it.

    Inside the context it runs.

    One worker, and without the processes that run MLflow's jobs, which nothing here uses: it starts
    in half the time.

    Args:
        store: URI of its backend store.
        options: more of the command's options.
        authentication: user and password; without, everybody may do everything.
        port: it listens there; None: on any free one.
    """

    def __init__(
        self,
        folder: Path,
        store: str,
        *options: str,
        authentication: tuple[str, str] | None = None,
        port: int | None = None,
        **variables: str,
    ) -> None:
        self.folder, self.port = folder, port or free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        listen = f"--host 127.0.0.1 --port {self.port} --workers 1 --artifacts-destination"
        self._command = [sys.executable, "-m", "mlflow", "server", *listen.split()]
        self._command += [str(self.artifacts), *options]
        # The URI may hold a password, which has no place in a command line.
        self._environment = {
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self._environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", **variables}
        folder.mkdir(parents=True, exist_ok=True)
        if authentication is not None:
            self._command += ["--app-name", "basic-auth"]
            self._environment |= self._authentication(*authentication)

    def _authentication(self, user: str, password: str) -> dict[str, str]:
        """What the environment must say for `--app-name basic-auth`."""
        configuration = self.folder / "basic_auth.ini"
        configuration.touch(mode=0o600)
        configuration.write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = sqlite:///{self.folder / 'users.db'}\n"
            f"admin_username = {user}\nadmin_password = {password}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": os.urandom(16).hex(),
        }

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.kill()

    def start(self, wait: bool = True) -> None:
        assert self._process is None, "it runs"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            try:
                self.wait()
            except BaseException:
                self.kill()
                raise

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + 120
        while not answers(f"{self.uri}/health"):
            assert self._process is not None and self._process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to it and to its workers: no request under way is answered."""
        if self._process is None:
            return
        group, self._process = self._process, None
        with suppress(ProcessLookupError):  # it could not start
            os.killpg(group.pid, signal.SIGKILL)
        group.wait(60)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def basic_auth() -> None:
    """MLflow's own access control can be used.

    Where it cannot, tests are skipped, except in CI, where they must run.
    """
    if importlib.util.find_spec("flask_wtf") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "needs pip install 'mlflow[auth]'"
        )


def answers(url: str) -> bool:
    """Does somebody there answer that all is well?"""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


# --- the network between


class FaultyProxy:
    """A TCP proxy on a port of its own before a server on another one.

    Inside the context it runs, in a thread.

    What it does is set with `behave`, at any time:

    - pass: everything goes through.
    - refuse: nobody listens; open connections are closed.
    - drop: connections are accepted, and nothing goes through in either direction.
    - delay: everything goes through `seconds` later, in each direction.
    - cut: the server gets and answers a request; instead of its answer the client sees the
      connection reset.
    - lose: the server gets and answers a request; its answer never comes.

    `probability` is that of a single request to be treated so, drawn from a seeded generator.
    `counts` says how many requests passed or were dropped, delayed, cut, lost or denied.

    Args:
        upstream: the port of the server.
        authorization: requests with another header of that name, or none, are denied (401), as by a
            reverse proxy.
        tls: clients must speak TLS; this is its side of it.
    """

    KINDS = ("pass", "refuse", "drop", "delay", "cut", "lose")

    def __init__(
        self,
        upstream: int,
        seed: int = 0,
        authorization: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.upstream, (self.port,) = upstream, free_ports(1)
        self.uri = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self.counts: collections.Counter[str] = collections.Counter()
        self.authorization, self._random, self._tls = authorization, random.Random(seed), tls
        self._kind, self._seconds, self._probability = "pass", 0.0, 1.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listening: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *raised: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def behave(self, kind: str, *, seconds: float = 0.0, probability: float = 1.0) -> None:
        """From now on; requests already under way are treated as before."""
        assert kind in self.KINDS
        self._kind, self._seconds, self._probability = kind, seconds, probability
        self._do(self._close() if kind == "refuse" else self._listen())

    def _do(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, ssl=self._tls
            )

    async def _close(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _chosen(self, *kinds: str) -> bool:
        """Is what happens now to be treated in the way that is set, being one of these?"""
        return self._kind in kinds and self._random.random() < self._probability

    async def _serve(
        self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        server_out: asyncio.StreamWriter | None = None
        try:
            server_in, server_out = await asyncio.open_connection("127.0.0.1", self.upstream)
            await self._relay(client_in, client_out, server_in, server_out)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the server is gone, or the client, or this proxy ends
        finally:
            for writer in (client_out, server_out):
                if writer is not None:
                    writer.transport.abort()
            self._connections.discard(task)

    async def _relay(
        self,
        client_in: asyncio.StreamReader,
        client_out: asyncio.StreamWriter,
        server_in: asyncio.StreamReader,
        server_out: asyncio.StreamWriter,
    ) -> None:
        """Until one side closes. A request is over when the first bytes of its answer come.

        The next one begins after them.
        """
        asked = False  # a request is under way

        async def requests() -> None:
            nonlocal asked
            while data := await client_in.read(65536):
                if not asked:
                    while b"\r\n\r\n" not in data:
                        data += await client_in.readuntil(b"\r\n\r\n")
                    if self._chosen("drop"):
                        self.counts["drop"] += 1
                        await self._silence(client_in)
                        return
                    if not self._allowed(data):
                        self.counts["denied"] += 1
                        client_out.write(
                            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: "
                            b"close\r\n\r\n"
                        )
                        await client_out.drain()
                        await self._silence(client_in)
                        return
                asked = True
                await self._pause()
                server_out.write(data)
                await server_out.drain()

        async def responses() -> None:
            nonlocal asked
            while data := await server_in.read(65536):
                if asked:
                    asked = False
                    treatment = self._kind if self._chosen("cut", "lose", "delay") else "pass"
                    self.counts[treatment] += 1
                    if treatment == "cut":
                        return
                    if treatment == "lose":
                        await self._silence(server_in)
                        await asyncio.Event().wait()  # until the client has had enough
                await self._pause()
                client_out.write(data)
                await client_out.drain()

        both = [asyncio.ensure_future(requests()), asyncio.ensure_future(responses())]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    def _allowed(self, request: bytes) -> bool:
        lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
        given = [
            line.partition(b":")[2].strip().decode()
            for line in lines
            if line.lower().startswith(b"authorization:")
        ]
        return self.authorization is None or given == [self.authorization]

    async def _pause(self) -> None:
        if self._kind == "delay":
            await asyncio.sleep(self._seconds)

    @staticmethod
    async def _silence(reader: asyncio.StreamReader) -> None:
        """Take what comes, and say nothing, until that side closes."""
        while await reader.read(65536):
            pass


class Certificate:
    """A self-signed certificate for 127.0.0.1, made anew."""

    def __init__(self, folder: Path) -> None:
        self.path, key = folder / "certificate.pem", folder / "key.pem"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "
            "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
        )
        files = ["-keyout", str(key), "-out", str(self.path)]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.path, key)


# --- what MLflow holds


def journal_points(run: Path) -> list[Point]:
    """What MLflow should hold of the run in this folder, sorted."""
    points = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        when = round(1000 * datetime.fromisoformat(entry["time"]).timestamp())
        points += [
            (name, entry["epoch"], when, _stored(float(value)))
            for name, value in entry["metrics"].items()
        ]
    return sorted(points, key=str)


def stored_points(client: Any, run_id: str) -> list[Point]:
    """Every point of a run that MLflow holds, repeats included, sorted.

    Through a server or from a store.
    """
    found = [
        (point.key, point.step, point.timestamp, _stored(point.value))
        for name in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, name)
    ]
    return sorted(found, key=str)


def assert_holds_journal(client: Any, run: Path) -> str:
    """MLflow holds every point of the run's journal once, and no other but summaries.

    Returns the id of its run there.
    """
    run_id: str = json.loads((run / "mlflow.json").read_text())["run_id"]
    stored = [
        point
        for point in stored_points(client, run_id)
        if not point[0].startswith(("best/", "cost/"))
    ]
    expected = journal_points(run)
    assert expected, f"{run} has an empty journal"
    there, wanted = collections.Counter(stored), collections.Counter(expected)
    missing = sorted((wanted - there).elements(), key=str)
    surplus = sorted((there - wanted).elements(), key=str)
    assert not missing and not surplus, (
        f"{run.name}: {len(missing)} missing {missing[:5]}, {len(surplus)} too many {surplus[:5]}"
    )
    return run_id


def _stored(value: float) -> float | str:
    """As MLflow holds it, but comparable."""
    if math.isnan(value):
        return "NaN"
    return math.copysign(LARGEST, value) if math.isinf(value) else value


def mlflow_client(uri: str) -> Any:
    """MLflow keeps databases open by their URIs.

    A relative one would find the store of the test before, in another folder.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    if uri.startswith(SQLITE):
        uri = f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return MlflowClient(uri)
