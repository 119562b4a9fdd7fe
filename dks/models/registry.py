"""The families of backbones by name.

Those of this folder, one file and one line here each, and extensions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from dks.config.extensions import find

if TYPE_CHECKING:
    from dks.models.family import Family

FAMILIES = {
    "cifar_resnet": "dks.models.cifar_resnet",
    "densenet": "dks.models.densenet",
    "imagenet_resnet": "dks.models.imagenet_resnet",
    "mobilenet": "dks.models.mobilenet",
    "wrn": "dks.models.wrn",
}


def family(name: str) -> Family:
    """The family of that name; NAME@VERSION for an extension.

    Raises:
        RequestError: there is none, or the extension cannot be loaded.
    """
    if name not in FAMILIES:
        return cast("Family", find("backbone", name, FAMILIES).component.value)
    return cast("Family", import_module(FAMILIES[name]).FAMILY)
