"""Passwords and tokens: they belong into the environment, and never into what is shown or kept."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

# What opens stores. In long texts values of fewer characters than that stay: they are words that mean something else there.
VARIABLES = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
SHORTEST = 8
BLANK = "..."


def without_password(text: str, shortest: int = SHORTEST) -> str:
    """Any text, fit to be shown and kept: without the passwords of URIs, and without the values of `VARIABLES`.

    Args:
        shortest: values of `VARIABLES` with so many characters are blanked; 1: all, for what a store itself has said.
    """
    text = _plain_uris(text)
    for secret in (os.environ.get(name, "") for name in VARIABLES):
        if secret and len(secret) >= shortest:
            text = text.replace(secret, BLANK).replace(quote(secret, safe=""), BLANK)
    return text


def has_password(uri: str) -> bool:
    """Does it hold one?"""
    return _plain_uris(uri) != uri


def _plain_uris(text: str) -> str:
    # Passwords have an end, so that a long line with many addresses is read once and not once for each of them.
    text = re.sub(r"(?<=://)([^\s:/@]*):[^\s?]{0,1000}@", r"\1@", text)
    return re.sub(r"(?i)(?<=[?&])(\w*passw(?:or)?d)=[^\s&]*", rf"\1={BLANK}", text)
