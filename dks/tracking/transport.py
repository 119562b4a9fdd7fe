"""How MLflow's client reaches servers.

An answer has a total time and a size, and credentials go to known addresses only.

A time-out of `requests` is that of each read: a server that sends one byte a second would be
listened to for ever.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError, ReadTimeout  # noqa: A004
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from dks.config.reading import MIB
from dks.tracking.addresses import is_pointed_at
from dks.tracking.mlflow_internals import use_session

LARGEST = 256 * MIB  # bytes of an answer
SLOWEST = 100_000  # bytes a second that are sent at least, or the network is taken for none
# What a request needs; whatever else there is may be a credential.
PLAIN = {
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "user-agent",
}
PLAIN |= {"x-mlflow-client-version"}


class Transport(HTTPAdapter):
    """Sends a request once, to where it is addressed, and reads the whole answer within its
    time-out.
    """

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        if not is_pointed_at(str(request.url)):
            for name in [name for name in request.headers if name.lower() not in PLAIN]:
                del request.headers[name]
            cert = None
        seconds = timeout + int(request.headers.get("Content-Length") or 0) / SLOWEST
        with _within(seconds) as limit:
            try:
                response = super().send(request, True, timeout, verify, cert, proxies)
                content = bytearray()
                for piece in response.iter_content(2**16):
                    content += piece
                    if len(content) > LARGEST:
                        raise ConnectionError(
                            f"more than {LARGEST / MIB:.0f} MiB in an answer", request=request
                        )
            except Exception:
                if not limit.late:
                    raise
            if limit.late:
                raise ReadTimeout(f"no whole answer in {seconds:.0f} s", request=request)
        response._content = bytes(content)
        if response.is_redirect:
            place = urlsplit(urljoin(str(request.url), response.headers["location"]))
            name = f"{place.scheme}://{place.netloc.rpartition('@')[2]}"
            raise ConnectionError(
                f"redirected to {name}, which is to be named itself", request=request
            )
        return response


class _Limit:
    """The time that a request has.

    When it is over, its connections are cut off, whatever is being read from them.
    """

    def __init__(self) -> None:
        self.late = False
        self._connections: list[HTTPConnection] = []
        # of answers that end with their connection, which knows its socket no more
        self._sockets: list[Any] = []

    def watch(self, connection: HTTPConnection) -> None:
        self._connections.append(connection)
        self._sockets.append(connection.sock)
        if self.late:
            raise TimeoutError

    def cut(self) -> None:
        self.late = True
        for each in {*self._sockets, *(connection.sock for connection in self._connections)} - {
            None
        }:
            with suppress(OSError, TypeError):
                # that of a TLS socket forgets what is being read
                socket.socket.shutdown(each, socket.SHUT_RDWR)


_under_way = threading.local()


@contextmanager
def _within(seconds: float) -> Iterator[_Limit]:
    _under_way.limit = limit = _Limit()
    timer = threading.Timer(seconds, limit.cut)
    timer.daemon = True
    timer.start()
    try:
        yield limit
    finally:
        timer.cancel()
        _under_way.limit = None


class _Watched:
    """A connection that is known to the request under way before anything is waited for."""

    def connect(self) -> None:
        _watch(self)
        super().connect()  # type: ignore[misc]

    def request(self, *arguments: Any, **options: Any) -> None:
        _watch(self)
        super().request(*arguments, **options)  # type: ignore[misc]

    def getresponse(self) -> Any:
        _watch(self)
        return super().getresponse()  # type: ignore[misc]


def _watch(connection: Any) -> None:
    if (limit := getattr(_under_way, "limit", None)) is not None:
        limit.watch(connection)


class _Plain(_Watched, HTTPConnection):
    pass


class _Encrypted(_Watched, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _EncryptedPool(HTTPSConnectionPool):
    ConnectionCls = _Encrypted


_POOLS = {"http": _PlainPool, "https": _EncryptedPool}


def install() -> None:
    """All requests of MLflow's client go through `Transport` from now on."""
    use_session(lambda *_, **__: _session(os.getpid()))


@lru_cache(maxsize=1)
def _session(process: int) -> Session:
    """One for each process: a fork must not use the connections of its parent."""
    session = Session()
    for scheme in _POOLS:
        session.mount(f"{scheme}://", Transport())
    return session
