"""The sources of images by name.

Those of this folder, one file each, and extensions.

A source is a module with two functions. `inspect(data)` returns the `Facts` of the data without
decoding an image, and raises RequestError where files are missing or wrong. `load(data)` returns
the training and the test set: an `ImageSet`, decoded in memory, or `ImageFiles`, decoded anew in
every epoch.

A source may have a third one, so that runs on it can be planned where its files are not.
`expected(data)` returns the Facts that `inspect` will find in the files, or None where only the
files can tell; `inspect` then says by `AbsentError` that they are not there, rather than wrong.

And a fourth, where decoding takes seconds. `files(data)` returns the files that `load` decodes, all
of them under `data.root`; what was decoded is kept for as long as the fingerprint is the same, or
without one the files are (`dks/data/decoded.py`).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import cast

from dks.config.errors import RequestError
from dks.config.registry import find, own_modules


class AbsentError(RequestError):
    """The files are not on this machine."""


# Modules that are several sources, or one of another name than their own.
_NAMES = {"cifar": ("cifar10", "cifar100"), "imagefolder": ("imagefolder", "imagenet")}
SOURCES = {
    name: module
    for file, module in own_modules("data", "def inspect(").items()
    for name in _NAMES.get(file, (file,))
}


def source(name: str) -> ModuleType | SimpleNamespace:
    """The module of that source, or what has the functions of one; NAME@VERSION for an extension.

    Raises:
        RequestError: there is none, or the extension cannot be loaded.
    """
    if name not in SOURCES:
        return cast(SimpleNamespace, find("data", name, SOURCES).component.value)
    return import_module(SOURCES[name])
