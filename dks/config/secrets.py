"""Passwords and tokens: they belong into the environment, and never into what is shown or kept."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

# What opens stores. Their values are blanked wherever they stand, if they have so many characters: shorter ones are words.
VARIABLES = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
SHORTEST = 8
BLANK = "..."


def without_password(text: str) -> str:
    """Any text, fit to be shown and kept: without the passwords of URIs, and without the values of `VARIABLES`."""
    text = _plain_uris(text)
    for secret in (os.environ.get(name, "") for name in VARIABLES):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, BLANK).replace(quote(secret, safe=""), BLANK)
    return text


def has_password(uri: str) -> bool:
    """Does it hold one?"""
    return _plain_uris(uri) != uri


def _plain_uris(text: str) -> str:
    # Passwords have an end, so that a long line with many addresses is read once and not once for each of them.
    text = re.sub(r"(?<=://)([^\s:/@]*):[^\s?]{0,1000}@", r"\1@", text)
    return re.sub(r"(?i)(?<=[?&])(\w*passw(?:or)?d)=[^\s&]*", rf"\1={BLANK}", text)
