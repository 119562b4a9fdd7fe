"""Passwords in the URIs of stores: they belong into the environment, and never into what is shown or kept."""

from __future__ import annotations

import re


def without_password(text: str) -> str:
    """The URI of a store, or a text in which one stands, fit to be shown."""
    text = re.sub(r"(?<=://)([^\s:/@]*):[^\s?]*@", r"\1@", text)
    return re.sub(r"(?i)(?<=[?&])(\w*passw(?:or)?d)=[^\s&]*", r"\1=...", text)


def has_password(uri: str) -> bool:
    """Does it hold one?"""
    return without_password(uri) != uri
