"""Where runs are tracked: an MLflow store in a database, or an MLflow server.

Nothing is written there.
"""

from __future__ import annotations

import os
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from dks.config.errors import RequestError, one_line
from dks.config.schema import Tracking
from dks.config.secrets import without_password
from dks.tools.doctor.check import Finding, Level, green, grey, red, yellow
from dks.tools.doctor.machine import SKEW, WRONG
from dks.tracking.addresses import exposed, point_at
from dks.tracking.database import SQLITE, read_sqlite
from dks.tracking.mlflow_internals import schema
from dks.tracking.store import load_mlflow, reason, said

CONNECT, ANSWER = 3.0, 4.0  # seconds for a connection, and for an answer
EXPIRES = 14  # days before a certificate's end from which on there is a warning
ROUND_TRIPS = 3


def tracking(choice: Tracking) -> Iterator[Finding]:
    """The store or server that the configuration names."""
    uri = choice.uri or ""
    if not uri:
        yield grey("tracking", "off: runs are kept in their folders only")
    elif uri.startswith(("http://", "https://")):
        yield from _server(uri.rstrip("/"), choice.experiment)
    else:
        yield from _store(uri, choice.experiment)


def client(choice: Tracking) -> Iterator[Finding]:
    """MLflow's client is imported, which takes seconds on a slow disk and says nothing about a
    server.
    """
    if not (choice.uri or "").startswith(("http://", "https://")):
        return
    began = time.monotonic()
    load_mlflow()
    import mlflow.utils.credentials
    import mlflow.utils.rest_utils

    yield green(
        "client", f"MLflow {mlflow.__version__}, imported in {time.monotonic() - began:.1f} s"
    )


def _store(uri: str, experiment: str) -> Iterator[Finding]:
    """A database, read only."""
    name = without_password(uri)
    elsewhere = "name another one by tracking.uri=..., or tracking=off"
    if uri.startswith(SQLITE):
        file = Path(uri.removeprefix(SQLITE))
        if not file.parent.is_dir():
            yield red(
                "store",
                f"there is no folder {file.parent}",
                f"mkdir -p {file.parent}; or {elsewhere}",
            )
            return
        if not file.exists() or (file.is_file() and not file.stat().st_size):
            yield green("store", f"{name} is not there yet; the first run makes it")
            return
    try:
        found = schema(uri)
    except ModuleNotFoundError as error:
        yield red(
            "store", f"no driver for {name}: {one_line(str(error))}", 'pip install "dks[postgres]"'
        )
        return
    except Exception as error:  # of sqlite3 and of SQLAlchemy, all of them about this store
        why = reason(error)
        if "locked" in why:
            yield yellow(
                "store",
                f"{name}: {why}",
                "another program is writing for long; see who: fuser -v FILE",
            )
        else:
            yield red(
                "store",
                f"{name} cannot be read: {why}",
                f"put back a back-up of it; or {elsewhere}",
            )
        return
    if found is None:
        yield green(
            "store", f"{name} is a database without MLflow's tables; the first run makes them"
        )
        return
    if not found.fits:
        back_up = (
            f"cp {file} {file}.backup"
            if uri.startswith(SQLITE)
            else "make a back-up of the database"
        )
        problem = found.problem(uri)
        yield red(
            "schema",
            problem,
            f"{back_up}; then: mlflow db upgrade {name}" if found.known else elsewhere,
        )
        return
    yield green("schema", f"{found.found}, the one of MLflow {metadata.version('mlflow')}")
    try:
        yield from _content(uri, name, experiment)
    except Exception as error:
        yield red(
            "store",
            f"{name} cannot be read: {reason(error)}",
            f"put back a back-up of it; or {elsewhere}",
        )


def _content(uri: str, name: str, experiment: str) -> Iterator[Finding]:
    """Is the file whole, and what is in the experiment?"""
    from sqlalchemy import text

    with _connection(uri) as connection:
        if uri.startswith(SQLITE):
            found = [str(row[0]) for row in connection.execute(text("PRAGMA quick_check(3)"))]
            if found != ["ok"]:
                advice = (
                    "put back a back-up; or save what is left: sqlite3 FILE .recover | sqlite3 NEW"
                )
                yield red("integrity", f"{name} is damaged: {one_line('; '.join(found))}", advice)
                return
            size = Path(uri.removeprefix(SQLITE)).stat().st_size
            yield green("store", f"{name}, {size / 2**20:,.1f} MiB, whole")
        else:
            yield green("store", f"{name} answers")
        query = text("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = :name")
        row = connection.execute(query, {"name": experiment}).fetchone()
        if row is None:
            yield green("experiment", f"{experiment} is not there yet; the first run makes it")
            return
        if row[1] != "active":
            advice = f"mlflow experiments restore -x {row[0]}; or tracking.experiment=NAME"
            yield red("experiment", f"{experiment} was deleted in MLflow", advice)
            return
        query = text(
            "SELECT status, count(*) FROM runs WHERE experiment_id = :id AND lifecycle_stage = "
            "'active' GROUP BY status"
        )
        counts = {
            str(status): int(count) for status, count in connection.execute(query, {"id": row[0]})
        }
        shown = (
            ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
            or "no runs yet"
        )
        yield green("experiment", f"{experiment}: {shown}")


def _connection(uri: str) -> Any:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if uri.startswith(SQLITE):
        return create_engine(
            "sqlite://", creator=partial(read_sqlite, uri, CONNECT), poolclass=NullPool
        ).connect()
    waits = {"connect_timeout": round(ANSWER)} if uri.startswith(("postgresql", "mysql")) else {}
    return create_engine(uri, poolclass=NullPool, connect_args=waits).connect()


def _server(uri: str, experiment: str) -> Iterator[Finding]:
    """From the bottom up, for each layer needs the one below.

    Name, connection, certificate, answers, account.
    """
    name = without_password(uri)
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise RequestError(f"tracking.uri={name}: {error}") from error
    if not host:
        raise RequestError(f"tracking.uri={name} names no host; write http://HOST:PORT")
    if _proxied(uri):
        yield grey(
            "connection",
            f"through the proxy that the environment names (NO_PROXY={host} goes without)",
        )
    else:
        reached = False
        for finding in _connect(host, port, parts.scheme == "https"):
            reached = finding.level is not Level.red
            yield finding
        if not reached:
            return
    yield from _answers(uri, name, experiment)


def _proxied(uri: str) -> bool:
    import requests

    return bool(requests.utils.get_environ_proxies(uri))


def _connect(host: str, port: int, encrypted: bool) -> Iterator[Finding]:
    """DNS, TCP, TLS; the last finding is red if it fails."""
    try:
        addresses = list(
            dict.fromkeys(
                str(found[4][0])
                for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        )
    except OSError as error:
        yield red(
            "name",
            f"{host}: {error.strerror or error}",
            "correct the name in tracking.uri, or this machine's DNS (/etc/resolv.conf)",
        )
        return
    if addresses != [host]:
        yield green("name", f"{host} is {', '.join(addresses[:3])}")
    began = time.perf_counter()
    try:
        plain = socket.create_connection((host, port), timeout=CONNECT)
    except OSError as error:
        advice = (
            f"start it, open port {port} in the firewall, or correct tracking.uri; `dks "
            f"sync` sends later what runs keep"
        )
        yield red("connection", f"{host}:{port}: {error.strerror or error}", advice)
        return
    with closing(plain):
        yield green("connection", f"port {port} in {1000 * (time.perf_counter() - began):.1f} ms")
        if encrypted:
            yield _certificate(plain, host)


def _certificate(plain: socket.socket, host: str) -> Finding:
    authority = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get(
        "REQUESTS_CA_BUNDLE"
    )
    try:
        import certifi

        with ssl.create_default_context(cafile=authority or certifi.where()).wrap_socket(
            plain, server_hostname=host
        ) as secure:
            ends = ssl.cert_time_to_seconds(str((secure.getpeercert() or {})["notAfter"]))
            version = secure.version()
    except ssl.SSLCertVerificationError as error:
        advice = (
            "MLFLOW_TRACKING_SERVER_CERT_PATH=FILE names the certificate of your own "
            "authority; an expired one must be renewed"
        )
        return red("certificate", f"not accepted: {error.verify_message}", advice)
    except OSError as error:  # SSLError is one
        return red(
            "certificate",
            f"no TLS: {one_line(str(error))}",
            "is it http:// rather than https:// at this port?",
        )
    days = (ends - time.time()) / 86400
    text = f"valid for {days:,.0f} days, {version}"
    if days < EXPIRES:
        return yellow("certificate", text, "renew it on the server before then")
    return green("certificate", text)


def _answers(uri: str, name: str, experiment: str) -> Iterator[Finding]:
    """HTTP, as MLflow's client speaks it, with its account."""
    point_at(uri)
    took, offsets = list[float](), list[float]()
    for _ in range(ROUND_TRIPS):
        before, began = time.time(), time.perf_counter()
        try:
            health = _get(uri, "/health")
        except Exception as error:  # of requests and of MLflow
            yield red(
                "answer",
                f"{name}: {_why(error)}",
                "is it an MLflow server, and well? its log says more; `dks sync` sends later",
            )
            return
        took.append(time.perf_counter() - began)
        date = _date(health)
        if date is not None:  # it is cut to whole seconds
            offsets.append(date.timestamp() + 0.5 - (before + took[-1] / 2))
    if health.status_code in (401, 403):
        yield _refused(health, uri)
        return
    if health.status_code != 200 or health.text.strip() != "OK":
        text = f"{name}/health: {health.status_code} {said(health.text, 100)!r}, not OK"
        yield red(
            "answer",
            text,
            "that is no MLflow server, or a proxy before it that cannot reach it; correct "
            "tracking.uri",
        )
        return
    yield green(
        "answer", f"/health says OK, {1000 * statistics.median(took):.1f} ms there and back"
    )
    if told := exposed(uri):
        yield yellow("encryption", told, "let a server that speaks TLS stand before it")
    yield _clock(offsets)
    yield from _version(uri)
    yield _account(uri, experiment)


def _clock(offsets: list[float]) -> Finding:
    """The server's clock against this machine's."""
    if not offsets:
        return grey("clock", "the server tells no time")
    offset = min(offsets, key=abs)
    text = (
        f"the server's is {abs(offset):,.0f} s {'ahead of' if offset > 0 else 'behind'} this "
        f"machine's"
    )
    advice = (
        "one of the two is wrong: timedatectl set-ntp true on both; times of runs and of "
        "the store will not agree"
    )
    if abs(offset) > WRONG:
        return red("clock", text, advice)
    if abs(offset) > SKEW:
        return yellow("clock", text, advice)
    return green("clock", "the server's and this machine's agree")


def _version(uri: str) -> Iterator[Finding]:
    here = metadata.version("mlflow")
    try:
        answer = _get(uri, "/version")
    except Exception as error:
        yield yellow("version", f"not told: {_why(error)}", "look at the server's log")
        return
    there = said(answer.text, 40)
    if answer.status_code != 200:
        yield yellow(
            "version",
            f"not told: {answer.status_code}",
            "an MLflow server from 1.28 on tells it; is it one?",
        )
    elif there.split(".")[:1] != here.split(".")[:1]:
        yield red(
            "version",
            f"the server has MLflow {there}, this machine {here}",
            f"pip install mlflow=={there}",
        )
    elif there.split(".")[:2] != here.split(".")[:2]:
        advice = f"nothing, unless something fails; then pip install mlflow=={there}"
        yield yellow("version", f"the server has MLflow {there}, this machine {here}", advice)
    else:
        yield green("version", f"MLflow {there}, here {here}")


def _account(uri: str, experiment: str) -> Finding:
    """Whether the API takes us, and what it says of the experiment."""
    try:
        answer = _get(
            uri, f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment)}"
        )
        if answer.status_code in (401, 403):
            return _refused(answer, uri)
        content = answer.json()
    except Exception as error:
        return red(
            "account",
            f"the API does not answer as MLflow's: {_why(error)}",
            "correct tracking.uri, or see the server's log",
        )
    if content.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return green(
            "account",
            f"accepted; the experiment {experiment} is not there yet, the first run makes it",
        )
    found = content.get("experiment")
    if answer.status_code != 200 or not isinstance(found, dict):
        message = said(str(content.get("message", content)))
        return red(
            "account", f"the API says {answer.status_code}: {message}", "see the server's log"
        )
    if found.get("lifecycle_stage") != "active":
        number = found.get("experiment_id")
        return red(
            "experiment",
            f"{experiment} was deleted in MLflow",
            f"mlflow experiments restore -x {number}; or tracking.experiment=NAME",
        )
    return green("account", f"accepted; the experiment {experiment} is there")


def _refused(answer: Any, uri: str) -> Finding:
    told = said(answer.text, 100)
    given = [
        name
        for name in (
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_TRACKING_PASSWORD",
            "MLFLOW_TRACKING_TOKEN",
        )
        if os.environ.get(name)
    ]
    # it answers /health under any name, and nothing else
    if answer.status_code == 403 and "host header" in told.lower():
        host = urlsplit(uri).netloc.rpartition("@")[2]
        return red(
            "host", f"403: {told}", f"start the server with: mlflow server --allowed-hosts {host}"
        )
    if answer.status_code == 403:
        text = f"403, the account may not: {told}"
        return red(
            "account",
            text,
            "ask for the permission to edit this experiment, or set another account's variables",
        )
    text = "401, not accepted" + (f" ({', '.join(given)} set)" if given else ", for none is given")
    return red(
        "account",
        text,
        "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..., or "
        "MLFLOW_TRACKING_TOKEN=...",
    )


def _get(uri: str, path: str) -> Any:
    """The answer, whatever its status."""
    load_mlflow()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", timeout=ANSWER)


def _why(error: BaseException) -> str:
    """The last cause in words, without a password."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)


def _date(answer: Any) -> datetime | None:
    try:
        date = parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, TypeError, ValueError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
