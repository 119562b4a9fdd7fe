"""Modules of the first edition that its pages named.

Importing one warns, and will fail in the next release.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

RENAMED = {
    "dks.figures": "dks.results.figures",
    "dks.losses": "dks.objectives",
    "dks.report": "dks.results.report",
    "dks.tables": "dks.results",
    "dks.tables.study": "dks.results.study",
}


class _Finder(MetaPathFinder, Loader):
    """Finds the modules that have another name now."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self, is_package=True) if name in RENAMED else None

    def exec_module(self, module: ModuleType) -> None:
        new = import_module(RENAMED[module.__name__])
        message = f"{module.__name__} is called {new.__name__} now"
        warnings.warn(message, FutureWarning, stacklevel=2)
        module.__dict__.update({k: v for k, v in vars(new).items() if not k.startswith("__")})


sys.meta_path.append(_Finder())
