"""The families of backbones by name. A new one is one file in this folder and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from dks.config.errors import RequestError
from dks.models.family import Family

FAMILIES = {
    "cifar_resnet": "dks.models.cifar_resnet",
    "densenet": "dks.models.densenet",
    "imagenet_resnet": "dks.models.imagenet_resnet",
    "mobilenet": "dks.models.mobilenet",
    "wrn": "dks.models.wrn",
}


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in FAMILIES:
        raise RequestError(f"backbone.family={name}: no such family; choose from {', '.join(sorted(FAMILIES))}")
    return cast(Family, import_module(FAMILIES[name]).FAMILY)
