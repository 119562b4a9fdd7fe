"""Whose addresses are whose: passwords and tokens go only where this user's own words point.

These are the command line and the configuration that a command composes, by `point_at`, and
MLFLOW_TRACKING_URI, by which jobs are told as well. An address that stands only in the folder of a
run, or of a sweep that is asked for again, is one that anybody may have written there.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from dks.config.secrets import without_password
from dks.runs import damage

HTTP = ("http://", "https://")
_pointed: dict[str, str] = {}  # where -> the address, of this process
_replays = False  # is what is composed here also made of what was read from a file?


def point_at(uri: str) -> None:
    """This user named it, unless it may come from a file that was read (`distrust`)."""
    if not _replays:
        _pointed[_place(uri)] = uri


def distrust() -> None:
    """What is composed from now on names addresses that nobody has typed here."""
    global _replays
    _replays = True


def named() -> list[str]:
    """The stores that this user named, but for files."""
    known = [*_pointed.values(), os.environ.get("MLFLOW_TRACKING_URI", "")]
    return [uri for uri in dict.fromkeys(known) if uri and not uri.startswith("sqlite:")]


def is_pointed_at(uri: str) -> bool:
    """Did this user name it? Of a server that goes by protocol, host and port, of a database by the
    whole address.
    """
    return bool(uri) and _place(uri) in {
        *_pointed,
        _place(os.environ.get("MLFLOW_TRACKING_URI", "")),
    }


def how_to_allow(uri: str) -> str:
    """What a user says who trusts an address that stands only in the files of runs."""
    name = without_password(uri)
    return (
        f"MLFLOW_TRACKING_URI={name} in your environment, or dks sync --store {name}, says "
        f"that it is yours"
    )


def warn_if_exposed(uri: str) -> None:
    """A person is told what `exposed` says."""
    if told := exposed(uri):
        damage.warn(told)


def exposed(uri: str) -> str | None:
    """What whoever is on the way to a server could read, in a line; None: nothing."""
    if not is_pointed_at(uri):
        return None
    parts = urlsplit(uri)
    given = [
        name
        for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
        if os.environ.get(name)
    ]
    credentials = Path(os.path.expanduser("~/.mlflow/credentials"))  # noqa: PTH111
    given = given or [str(path) for path in [credentials] if path.exists()]
    if parts.scheme != "http" or _is_here(parts.hostname or "") or not given:
        return None
    return (
        f"{without_password(uri)} is not encrypted: whoever is on the way can read "
        f"{given[0]}; https:// protects it"
    )


def _is_here(host: str) -> bool:
    """This machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _place(uri: str) -> str:
    # at which requests ends the host, and urlsplit does not
    if not uri.startswith(HTTP) or "\\" in uri:
        return uri
    try:
        parts = urlsplit(uri)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return f"{parts.scheme}://{parts.hostname}:{port}"
    except ValueError:  # a port that is none
        return uri
