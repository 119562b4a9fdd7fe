"""Where the declarations, this user's cache and this package are."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def declarations(name: str) -> Path:
    """`conf`, `sweeps`, `analysis` or `constraints.txt`.

    Inside an installed wheel, or beside the package in a checkout.
    """
    shipped = PACKAGE / "share" / name
    return shipped if shipped.exists() else PACKAGE.parent / name


def cache_folder() -> Path:
    """This user's folder for what can be made again; it may be one that cannot be made."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dks"
    except RuntimeError:  # in a container users may have no home, and no name
        return Path(os.devnull) / "dks"


def python_path(given: str = "") -> str:
    """The PYTHONPATH of processes that are to import this package from where it is.

    A bare checkout comes before what is given.

    An installed one is found without, and its folder would bring all that is installed beside it.
    """
    root, installed = PACKAGE.parent, Path(sysconfig.get_path("purelib")).resolve()
    paths = [path for path in given.split(os.pathsep) if path]
    return (
        given
        if root == installed
        else os.pathsep.join([str(root), *(path for path in paths if path != str(root))])
    )
