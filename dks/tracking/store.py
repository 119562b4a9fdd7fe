"""The MLflow store that runs are sent to.

Opened with short time-outs, created once, never migrated unasked.

Whoever opens a store asks `prepare` first, as `open_named` does; whoever only wants to know whether
it can be used, and has no time for MLflow, asks `look`. Passwords and tokens come from the
environment, as MLflow's client reads them (MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD); nothing here repeats them, and they go only where
`dks/tracking/addresses.py` says.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from dks.config.errors import RequestError, one_line
from dks.config.schema import Tracking, TrackingKind
from dks.config.secrets import without_password
from dks.runs.disk import refusal, size_limit
from dks.tracking.addresses import HTTP, how_to_allow, is_pointed_at
from dks.tracking.database import SQLITE, TIMEOUT, connected, engine_of
from dks.tracking.mlflow_internals import (
    EXPERIMENTS,
    error_code,
    essence,
    http_status,
    is_half_made,
    make_tables,
    schema,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST = 300  # characters of what is told of a store's words
LOOK = 1.0  # seconds that a look at an SQLite store waits for whoever makes it
PAGE = 1000  # runs that a store tells of at once
LISTING = 300.0  # seconds that a list of all runs may take
# the advisory lock under which a database gets MLflow's tables: "dks" in ASCII
_CREATION = 0x646B73


class Unavailable(Exception):
    """A server that does not answer, or not to us, or not now.

    What was to be sent is sent later.
    """


def look(tracking: Tracking) -> str | None:
    """The id of the experiment, as far as that is known without MLflow, whose import takes seconds;
    nothing is made.

    None: store or experiment are not there yet, somebody is making them, or only a server can tell.

    Raises:
        RequestError: the store cannot be used: no database, another schema, an experiment that was
            deleted.
    """
    if tracking.kind is TrackingKind.server:
        _refuse_insecure()
        return None
    with _explained(tracking):
        try:
            with _alone(str(tracking.uri), LOOK):
                return _known(tracking)
        except Timeout:
            return None


def prepare(tracking: Tracking) -> str:
    """Create the store and the experiment, unless they are there; returns the experiment's id.

    Of many processes that do so at once, one creates and the others find. A database that is there
    is read without MLflow.

    Raises:
        RequestError: as `look`.
        Unavailable: a server does not answer, or refuses.
    """
    uri = str(tracking.uri)
    if tracking.kind is TrackingKind.server:
        _refuse_insecure()
        with _explained(tracking):
            return _experiment(open_client(uri), tracking.experiment)
    with _explained(tracking), _alone(uri):
        if (found := _known(tracking)) is not None:
            return found
        if uri.startswith(SQLITE):
            _make_sqlite(Path(uri.removeprefix(SQLITE)))
        return _experiment(open_client(uri), tracking.experiment)


def open_named(tracking: Tracking) -> tuple[str, MlflowClient]:
    """`prepare` and `open_client` for an address that may be anybody's.

    The id of the experiment, and the client.

    Raises:
        RequestError, Unavailable: as `prepare`; and this is a database that only the files of runs
            name.
    """
    uri = str(tracking.uri)
    if not uri.startswith((SQLITE, *HTTP)) and not is_pointed_at(uri):
        raise Unavailable(
            f"no password goes to a database that only files of runs name; {how_to_allow(uri)}"
        )
    return prepare(tracking), open_client(uri)


def _make_sqlite(path: Path) -> None:
    """Make an SQLite store, as a whole or not at all, unless the file has something in it.

    One process does at a time.
    """
    if not _is_free(path):
        return
    load_mlflow()
    draft = path.absolute().with_name(f".{path.name}.draft")
    _remove(draft)  # of a process that was killed
    try:
        draft.touch()  # as the umask has it; SQLite would never let a group write
        make_tables(draft)
        if _is_free(path):  # another program may have made one
            # with the journal of a store that is gone, which SQLite would take for that of the new
            # one
            _remove(path)
            draft.rename(path)
    finally:
        _remove(draft)


def _is_free(path: Path) -> bool:
    """Is there no database, or one that was left half made?"""
    if not path.exists() or not path.stat().st_size:
        return True
    with connected(f"{SQLITE}{path}") as database:
        return is_half_made(database)


def _remove(path: Path) -> None:
    """An SQLite file and all that SQLite keeps beside it."""
    for suffix in ("-journal", "-wal", "-shm", ""):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def _refuse_insecure() -> None:
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true":
        raise RequestError(
            "MLFLOW_TRACKING_INSECURE_TLS=true would send passwords to whoever answers; unset it, "
            "and name the certificate of your own authority in MLFLOW_TRACKING_SERVER_CERT_PATH"
        )


def _known(tracking: Tracking) -> str | None:
    """The id of the experiment in a database; None where there is none yet."""
    uri, name = str(tracking.uri), tracking.experiment
    found = schema(uri)
    if found is None:
        return None
    if not found.fits:
        raise RequestError(found.problem(uri))
    with connected(uri) as database:
        rows = {each: (number, stage) for number, each, stage in database.select(EXPERIMENTS)}
    if name not in rows:
        return None
    number, stage = rows[name]
    if stage != "active":
        raise RequestError(_deleted(name, number))
    return str(number)


def open_client(uri: str) -> MlflowClient:
    """MLflow's client for a prepared store."""
    load_mlflow()
    from mlflow import MlflowClient

    # MLflow keeps stores open by their URIs, wherever the current folder has come to be
    if uri.startswith(SQLITE):
        uri = f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return MlflowClient(tracking_uri=uri)


def load_mlflow(timeout: int = TIMEOUT) -> None:
    """Import MLflow, which takes a second or two, and have its client ask as we want it.

    Args:
        timeout: seconds that a server has for an answer, where the environment does not say it.
    """
    for name, value in {
        # read when mlflow is imported; its messages break into bars and quote servers
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        # of every run that ends, into what programs read
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        # of large files, to any address and for any time
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    }.items():
        os.environ.setdefault(name, value)
    try:
        Path.home()
    except RuntimeError:
        # MLflow looks for credentials there; in a container users may have no home, and no name
        os.environ["HOME"] = os.devnull
    from dks.tracking.transport import install

    install()


def all_cells(client: MlflowClient, experiment: str, deleted: bool = False) -> Iterator[Any]:
    """All runs of an experiment that are a cell, if need be deleted ones among them.

    Raises:
        Unavailable: the store comes to no end.
    """
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    token, until = None, time.monotonic() + LISTING
    while True:
        page = client.search_runs(
            [experiment], "tags.`dks.role` = 'cell'", view, PAGE, page_token=token
        )
        yield from page
        if not (token := page.token):
            return
        if time.monotonic() > until:
            raise Unavailable(f"its list of runs has no end in {LISTING:.0f} s")


def reason(error: BaseException) -> str:
    """What went wrong with a store, in one line without secrets."""
    # SQLAlchemy adds remarks, the statement and its values to what the database says.
    originals = [getattr(cause, "orig", None) for cause in _causes(error)]
    original = next((each for each in originals if each is not None), error)
    if getattr(original, "sqlite_errorname", "") == "SQLITE_IOERR_WRITE" and (
        limit := size_limit()
    ):
        return limit
    lines = str(original).strip().splitlines()
    return said(essence(without_password(lines[0] if lines else type(error).__name__, shortest=1)))


def said(text: str, longest: int = LONGEST) -> str:
    """What a store says, as one line that does nothing to a terminal and holds no secret.

    It is cut after these are out.
    """
    return one_line(without_password(text, shortest=1), longest)


def is_refusal(error: BaseException) -> bool:
    """Does a server answer, and say no? It will say so again, unlike one that does not answer."""
    return http_status(error) in (401, 403, 404) or any(
        type(cause).__name__ == "SSLError" for cause in _causes(error)
    )


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, _artifacts(client.tracking_uri, name)))
        except Exception as error:
            if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody else was faster
            assert found is not None, "it exists"
    if found.lifecycle_stage != "active":
        raise RequestError(_deleted(name, found.experiment_id))
    return str(found.experiment_id)


def _artifacts(uri: str, name: str) -> str | None:
    """Where the files of an experiment go.

    Beside an SQLite store that is not in the current folder; None: as MLflow has it.
    """
    folder = Path(uri.removeprefix(SQLITE)).parent
    if not uri.startswith(SQLITE) or folder == Path.cwd():
        return None
    return str(folder / "mlruns" / quote(name, safe=""))


# what to do where a server refuses, by the status of its answer
_ADVICE = {
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    403: "the account may not, or the server does not know itself by this name (mlflow server "
    "--allowed-hosts)",
    404: "no MLflow server is there",
}
_TRUST = "name the certificate of your own authority in MLFLOW_TRACKING_SERVER_CERT_PATH"


def _deleted(name: str, number: object) -> str:
    return (
        f"tracking.experiment={name} was deleted in MLflow; restore it with: mlflow experiments "
        f"restore -x {number}, or name another one"
    )


@contextmanager
def _explained(tracking: Tracking) -> Iterator[None]:
    """Errors of many kinds, all of them about this store."""
    uri = without_password(str(tracking.uri))
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        if tracking.kind is not TrackingKind.server:
            raise RequestError(
                f"tracking.uri={uri} cannot be opened: {reason(error)}; or choose tracking=off"
            ) from error
        if not is_refusal(error):
            raise Unavailable(f"it does not answer ({reason(error)})") from error
        advice = _ADVICE.get(http_status(error) or 0, _TRUST)
        if http_status(error) == 401 and not is_pointed_at(str(tracking.uri)):
            advice = f"no account was sent to what only files of runs name; {how_to_allow(uri)}"
        raise Unavailable(f"it refuses ({reason(error)}): {advice}") from error


@contextmanager
def _alone(uri: str, patience: float = -1) -> Iterator[None]:
    """Two processes that open a fresh store at once would both try to create its tables, and one
    would fail.

    Args:
        patience: seconds to wait for who makes an SQLite store; negative: without end.

    Raises:
        Timeout: it took longer.
    """
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        if not path.parent.is_dir():
            raise RequestError(f"tracking.uri={uri}: there is no folder {path.parent}")
        if why := refusal(path.parent) or (
            path.exists() and not os.access(path, os.W_OK) and os.strerror(errno.EACCES)
        ):
            raise RequestError(
                f"tracking.uri={uri} cannot be written: {why}; name another one, or choose "
                f"tracking=off"
            )
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=patience):
            yield
    elif uri.startswith("postgresql"):
        from sqlalchemy import text

        engine = engine_of(uri)
        with engine.connect() as connection:  # closing it ends the lock
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _CREATION})
            yield
    else:
        yield


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
