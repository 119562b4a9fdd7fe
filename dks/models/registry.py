"""The families of backbones by name: each module of this folder that defines `FAMILY`, named after
its file, and extensions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from dks.config.registry import find, own_modules

if TYPE_CHECKING:
    from dks.models.family import Family

FAMILIES = own_modules("models", "FAMILY = ")


def family(name: str) -> Family:
    """The family of that name; NAME@VERSION for an extension.

    Raises:
        RequestError: there is none, or the extension cannot be loaded.
    """
    if name not in FAMILIES:
        return cast("Family", find("backbone", name, FAMILIES).component.value)
    return cast("Family", import_module(FAMILIES[name]).FAMILY)
