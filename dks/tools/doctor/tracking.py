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
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import certifi
import requests

from dks.config.errors import RequestError, one_line
from dks.config.schema import Tracking
from dks.config.secrets import without_password
from dks.tools.doctor.check import Finding, green, grey, red, yellow
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
    if (choice.uri or "").startswith(("http://", "https://")):
        began = time.monotonic()
        load_mlflow()
        import mlflow.utils.credentials
        import mlflow.utils.rest_utils

        took = time.monotonic() - began
        yield green("client", f"MLflow {mlflow.__version__}, imported in {took:.1f} s")


# A database


def _store(uri: str, experiment: str) -> Iterator[Finding]:
    """A database, read only."""
    name = without_password(uri)
    file = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    elsewhere = "name another one by tracking.uri=..., or tracking=off"
    if file is not None and not file.parent.is_dir():
        advice = f"mkdir -p {file.parent}; or {elsewhere}"
        yield red("store", f"there is no folder {file.parent}", advice)
        return
    if file is not None and not (file.exists() and (not file.is_file() or file.stat().st_size)):
        yield green("store", f"{name} is not there yet; the first run makes it")
        return
    try:
        found = schema(uri)
        if found is None:
            text = "is a database without MLflow's tables; the first run makes them"
            yield green("store", f"{name} {text}")
        elif not found.fits:
            back_up = f"cp {file} {file}.backup" if file else "make a back-up of the database"
            upgrade = f"{back_up}; then: mlflow db upgrade {name}"
            yield red("schema", found.problem(uri), upgrade if found.known else elsewhere)
        else:
            text = f"{found.found}, the one of MLflow {metadata.version('mlflow')}"
            yield green("schema", text)
            yield from _content(uri, file, experiment)
    except ModuleNotFoundError as error:
        text = f"no driver for {name}: {one_line(str(error))}"
        yield red("store", text, 'pip install "dks[postgres]"')
    except Exception as error:  # of sqlite3 and of SQLAlchemy, all of them about this store
        why = reason(error)
        if "locked" in why:
            advice = "another program is writing for long; see who: fuser -v FILE"
            yield yellow("store", f"{name}: {why}", advice)
        else:
            advice = f"put back a back-up of it; or {elsewhere}"
            yield red("store", f"{name} cannot be read: {why}", advice)


def _content(uri: str, file: Path | None, experiment: str) -> Iterator[Finding]:
    """Is the file whole, and what is in the experiment?"""
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    name = without_password(uri)
    if file is not None:
        opened = partial(read_sqlite, uri, CONNECT)
        engine = create_engine("sqlite://", creator=opened, poolclass=NullPool)
    else:
        waits = (
            {"connect_timeout": round(ANSWER)} if uri.startswith(("postgresql", "mysql")) else {}
        )
        engine = create_engine(uri, poolclass=NullPool, connect_args=waits)
    with engine.connect() as connection:
        if file is not None:
            problems = [str(row[0]) for row in connection.execute(text("PRAGMA quick_check(3)"))]
            if problems != ["ok"]:
                save = "save what is left: sqlite3 FILE .recover | sqlite3 NEW"
                damage = f"{name} is damaged: {one_line('; '.join(problems))}"
                yield red("integrity", damage, f"put back a back-up; or {save}")
                return
            yield green("store", f"{name}, {file.stat().st_size / 2**20:,.1f} MiB, whole")
        else:
            yield green("store", f"{name} answers")
        query = text("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = :name")
        row = connection.execute(query, {"name": experiment}).fetchone()
        if row is None:
            yield green("experiment", f"{experiment} is not there yet; the first run makes it")
            return
        if row[1] != "active":
            yield _deleted(experiment, row[0])
            return
        query = text(
            "SELECT status, count(*) FROM runs WHERE experiment_id = :id AND lifecycle_stage = "
            "'active' GROUP BY status ORDER BY status"
        )
        counts = [
            f"{count:,} {status}" for status, count in connection.execute(query, {"id": row[0]})
        ]
        yield green("experiment", f"{experiment}: {', '.join(counts) or 'no runs yet'}")


def _deleted(experiment: str, number: object) -> Finding:
    advice = f"mlflow experiments restore -x {number}; or tracking.experiment=NAME"
    return red("experiment", f"{experiment} was deleted in MLflow", advice)


# A server


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
    if requests.utils.get_environ_proxies(uri):
        text = f"through the proxy that the environment names (NO_PROXY={host} goes without)"
        yield grey("connection", text)
    else:
        for finding in _connect(host, port, parts.scheme == "https"):
            yield finding
            if finding.level == "red":
                return
    yield from _answers(uri, name, experiment)


def _connect(host: str, port: int, encrypted: bool) -> Iterator[Finding]:
    """DNS, TCP, TLS; the last finding is red if it fails."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        advice = "correct the name in tracking.uri, or this machine's DNS (/etc/resolv.conf)"
        yield red("name", f"{host}: {error.strerror or error}", advice)
        return
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if addresses != [host]:
        yield green("name", f"{host} is {', '.join(addresses[:3])}")
    began = time.perf_counter()
    try:
        plain = socket.create_connection((host, port), timeout=CONNECT)
    except OSError as error:
        repair = f"start it, open port {port} in the firewall, or correct tracking.uri"
        text = f"{host}:{port}: {error.strerror or error}"
        yield red("connection", text, f"{repair}; `dks sync` sends later what runs keep")
        return
    with plain:
        yield green("connection", f"port {port} in {1000 * (time.perf_counter() - began):.1f} ms")
        if encrypted:
            yield _certificate(plain, host)


def _certificate(plain: socket.socket, host: str) -> Finding:
    variables = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE")
    authority = next(filter(None, map(os.environ.get, variables)), certifi.where())
    try:
        context = ssl.create_default_context(cafile=authority)
        with context.wrap_socket(plain, server_hostname=host) as secure:
            ends = ssl.cert_time_to_seconds(str((secure.getpeercert() or {})["notAfter"]))
            version = secure.version()
    except ssl.SSLCertVerificationError as error:
        own = f"{variables[0]}=FILE names the certificate of your own authority"
        text = f"not accepted: {error.verify_message}"
        return red("certificate", text, f"{own}; an expired one must be renewed")
    except OSError as error:  # SSLError is one
        text = f"no TLS: {one_line(str(error))}"
        return red("certificate", text, "is it http:// rather than https:// at this port?")
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
            advice = "is it an MLflow server, and well? its log says more; `dks sync` sends later"
            yield red("answer", f"{name}: {_why(error)}", advice)
            return
        took.append(time.perf_counter() - began)
        try:
            date = parsedate_to_datetime(health.headers["Date"])  # it is cut to whole seconds
            offsets.append(date.timestamp() + 0.5 - (before + took[-1] / 2))
        except (KeyError, TypeError, ValueError):
            pass  # it tells no time
    if health.status_code in (401, 403):
        yield _refused(health, uri)
        return
    if health.status_code != 200 or health.text.strip() != "OK":
        text = f"{name}/health: {health.status_code} {said(health.text, 100)!r}, not OK"
        what = "that is no MLflow server, or a proxy before it that cannot reach it"
        yield red("answer", text, f"{what}; correct tracking.uri")
        return
    text = f"/health says OK, {1000 * statistics.median(took):.1f} ms there and back"
    yield green("answer", text)
    if told := exposed(uri):
        yield yellow("encryption", told, "let a server that speaks TLS stand before it")
    yield _clock(offsets)
    yield _version(uri)
    yield _account(uri, experiment)


def _clock(offsets: list[float]) -> Finding:
    """The server's clock against this machine's."""
    if not offsets:
        return grey("clock", "the server tells no time")
    offset = min(offsets, key=abs)
    if abs(offset) <= SKEW:
        return green("clock", "the server's and this machine's agree")
    side = "ahead of" if offset > 0 else "behind"
    repair = "one of the two is wrong: timedatectl set-ntp true on both"
    return (red if abs(offset) > WRONG else yellow)(
        "clock",
        f"the server's is {abs(offset):,.0f} s {side} this machine's",
        f"{repair}; times of runs and of the store will not agree",
    )


def _version(uri: str) -> Finding:
    here = metadata.version("mlflow")
    try:
        answer = _get(uri, "/version")
    except Exception as error:
        return yellow("version", f"not told: {_why(error)}", "look at the server's log")
    if answer.status_code != 200:
        advice = "an MLflow server from 1.28 on tells it; is it one?"
        return yellow("version", f"not told: {answer.status_code}", advice)
    there = said(answer.text, 40)
    text, install = f"the server has MLflow {there}, this machine {here}", f"mlflow=={there}"
    if there.split(".")[0] != here.split(".")[0]:
        return red("version", text, f"pip install {install}")
    if there.split(".")[:2] != here.split(".")[:2]:
        advice = f"nothing, unless something fails; then pip install {install}"
        return yellow("version", text, advice)
    return green("version", f"MLflow {there}, here {here}")


def _account(uri: str, experiment: str) -> Finding:
    """Whether the API takes us, and what it says of the experiment."""
    path = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment)}"
    try:
        answer = _get(uri, path)
        if answer.status_code in (401, 403):
            return _refused(answer, uri)
        content = answer.json()
    except Exception as error:
        text = f"the API does not answer as MLflow's: {_why(error)}"
        return red("account", text, "correct tracking.uri, or see the server's log")
    if content.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        text = f"the experiment {experiment} is not there yet, the first run makes it"
        return green("account", f"accepted; {text}")
    found = content.get("experiment")
    if answer.status_code != 200 or not isinstance(found, dict):
        text = f"the API says {answer.status_code}: {said(str(content.get('message', content)))}"
        return red("account", text, "see the server's log")
    if found.get("lifecycle_stage") != "active":
        return _deleted(experiment, found.get("experiment_id"))
    return green("account", f"accepted; the experiment {experiment} is there")


def _refused(answer: Any, uri: str) -> Finding:
    told = said(answer.text, 100)
    # it answers /health under any name, and nothing else
    if answer.status_code == 403 and "host header" in told.lower():
        host = urlsplit(uri).netloc.rpartition("@")[2]
        advice = f"start the server with: mlflow server --allowed-hosts {host}"
        return red("host", f"403: {told}", advice)
    if answer.status_code == 403:
        advice = (
            "ask for the permission to edit this experiment, or set another account's variables"
        )
        return red("account", f"403, the account may not: {told}", advice)
    user, password, token = (f"MLFLOW_TRACKING_{key}" for key in ("USERNAME", "PASSWORD", "TOKEN"))
    given = [name for name in (user, password, token) if os.environ.get(name)]
    text = "401, not accepted" + (f" ({', '.join(given)} set)" if given else ", for none is given")
    return red("account", text, f"export {user}=... {password}=..., or {token}=...")


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
