"""Passwords and tokens: they belong into the environment, and never into what is shown or kept.

What is left out of any text:

- of an address the password behind its user; with http and https a user who has none as well, for a
  token may stand there;
- the values of parameters that say token, secret, password, signature, credential or key
  (`?sig=...&X-Amz-Signature=...`);
- what an `Authorization:` header says, whatever its scheme;
- a password among the settings of a database (`host=db password=...`, `Server=db;Pwd=...`);
- the values of environment variables whose names say token, secret, password, passphrase,
  credential or key with one of their words or its end: WANDB_API_KEY, PGPASSWORD,
  AWS_SESSION_TOKEN, DB_PASS. KEYBOARD and TOKENIZERS_PARALLELISM do not.

Values of less than `SHORTEST` characters stay, for they are words and numbers that mean something
else in a text. So do names of files: of a variable that says so (TLS_KEY_FILE), and paths that are
there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus

# What opens stores: what a store itself says is blanked of these values however short they are.
VARIABLES = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
SHORTEST = 8
BLANK = "..."

# a word of a name
_SAYS = re.compile(r"(?i)(token|secret|passw(or)?d|passphrase|credential|key)s?\d*$|^(pass|pwd)$")
# the last word of the name of what is no secret itself
_PLACES = {"file", "path", "dir", "folder", "sock"}

# All have an end, so that a long line with many addresses is read once and not once for each of
# them.
_KINDS = (
    r"token|secret|passw(?:or)?d|passphrase|pwd|signature|credential"
    r"|(?:api|access|account)[_-]?key(?:_?id)?"
)
_QUOTE = r"(?:\\{0,3}[\"'])?"  # in JSON within JSON there are some before it
_KEY = r"(?:[\w.-]{0,60}[_.-])?key"  # sslkey=FILE is none
_PATTERNS = (
    # the latter as GitHub has it
    (re.compile(r"(?i)(https?://)[^\s/?#:@]{1,1000}(?::(?:x-oauth-basic)?)?@"), r"\1"),
    (re.compile(r"(?<=://)([^\s:/@]*):[^\s?]{0,1000}@"), r"\1@"),
    (
        re.compile(rf"(?i)([?&;#](?:[\w.-]{{0,60}}(?:{_KINDS})|{_KEY}|sig)=)[^\s&;#\"'<>]*"),
        rf"\1{BLANK}",
    ),
    (
        re.compile(
            rf"(?i)(authorization{_QUOTE}\s?[:=]\s?b?\[?{_QUOTE}(?:[\w-]{{1,30}}[ "
            rf"\t])?)[^\s\"'\\](?:=\"[^\"\n]*\"|[^\"'\\\n])*"
        ),
        rf"\1{BLANK}",
    ),
)
_VALUE = r"('(?:[^'\\\n]|\\.){0,200}'|\"[^\"\n]{0,200}\"|[^\s;,'\"()]+)"
_SETTING = re.compile(rf"(?i)(?<![\w.-])((?:ssl)?passw(?:or)?d|pwd)(\s?=\s?){_VALUE}")
# Another setting.
_BEFORE = re.compile(rf"\w\s?=\s?{_VALUE}\s+$")
_BEHIND = re.compile(r"(\s+|;(\w+ )?)\w+\s?=\s?[^=]")


def without_password(text: str, shortest: int = SHORTEST) -> str:
    """Any text, fit to be shown and kept.

    Args:
        shortest: values of `VARIABLES` with so many characters are blanked; 1: all, for what a
            store itself has said.
    """
    text = _plain(text)
    for secret in _forms(tuple(_secrets(shortest))):
        text = text.replace(secret, BLANK)
    return text


def has_password(uri: str) -> bool:
    """Does it hold one, or a token?"""
    return _plain(uri) != uri


def _plain(text: str) -> str:
    for pattern, rest in _PATTERNS:
        text = pattern.sub(rest, text)
    return _SETTING.sub(_setting, text)


def _setting(found: re.Match[str]) -> str:
    """In code `password=...` is an argument.

    Among settings, which no comma parts, it is a password.
    """
    begin, end = found.span()
    if _BEFORE.search(found.string[max(0, begin - 200) : begin]) or _BEHIND.match(
        found.string[end : end + 100]
    ):
        return f"{found[1]}{found[2]}{BLANK}"
    return found[0]


def _secrets(shortest: int) -> Iterator[str]:
    for name in filter(_is_secret, os.environ):
        value = os.environ[name]
        if name in VARIABLES:
            yield from [value] if len(value) >= shortest else []
        elif not _is_path(value):
            # a key may have several
            yield from (line for line in value.splitlines() if len(line) >= SHORTEST)


@lru_cache(maxsize=4)
def _forms(secrets: tuple[str, ...]) -> list[str]:
    """As they are, and as they stand in addresses and in JSON.

    One that has another in it goes first.
    """
    found = set[str]()
    for each in filter(None, secrets):
        content = os.fsencode(each)  # variables hold any bytes
        found |= {
            each,
            quote(content),
            quote(content, safe=""),
            quote_plus(content),
            json.dumps(each)[1:-1],
        }
    return sorted(found, key=len, reverse=True)


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    words = re.findall(r"[^\W_]+", name)
    return name != "PWD" and any(map(_SAYS.search, words)) and words[-1].lower() not in _PLACES


@lru_cache(maxsize=4096)
def _is_path(value: str) -> bool:
    if not value.startswith(("/", "~", "./", "../")):
        return False
    path = Path(os.path.expanduser(value))  # noqa: PTH111 (where there is no home, it stays as it is)
    try:
        return path.exists() or (path.parent.is_dir() and path.parent != Path("/"))
    except (OSError, ValueError):
        return False
