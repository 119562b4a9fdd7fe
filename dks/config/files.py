"""Where the declarations and this user's cache are, and single choices read without Hydra."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Any, TypeVar, cast

from dks.config.errors import RequestError

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent.parent


def declarations(name: str) -> Path:
    """`conf`, `sweeps`, `analysis` or `constraints.txt`.

    Inside an installed wheel, or beside the package in a checkout.
    """
    shipped = _PACKAGE / "share" / name
    return shipped if shipped.exists() else _PACKAGE.parent / name


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
    root, installed = _PACKAGE.parent, Path(sysconfig.get_path("purelib")).resolve()
    paths = [path for path in given.split(os.pathsep) if path]
    return (
        given
        if root == installed
        else os.pathsep.join([str(root), *(path for path in paths if path != str(root))])
    )


def groups() -> list[str]:
    """The groups that have choices, sorted."""
    return sorted(
        path.name
        for path in declarations("conf").iterdir()
        if path.is_dir() and path.name != "hydra"
    )


def own_choices(group: str) -> list[str]:
    """The names one can write after `group=` without any extension, sorted."""
    return sorted(path.stem for path in (declarations("conf") / group).glob("*.yaml"))


def choices(group: str) -> list[str]:
    """The names one can write after `group=`, sorted.

    None of the extensions among them is imported.
    """
    from dks.config.catalogue import catalogue  # which needs this module

    return sorted({*own_choices(group), *catalogue().names(group)})


def choice_file(group: str, name: str) -> Path:
    """The file of a choice, ours or that of an extension, which may have none."""
    from dks.config.catalogue import catalogue

    return catalogue().files.get((group, name), declarations("conf") / group / f"{name}.yaml")


def load_choice(group: str, name: str, schema: type[T]) -> T:
    """The dataclass that `group=name` would give, read from its file alone.

    Raises:
        RequestError: there is no such choice, or it is that of an extension which cannot be loaded.
    """
    from omegaconf import OmegaConf

    from dks.config.catalogue import catalogue
    from dks.config.extensions import generated

    if name not in choices(group):
        raise RequestError(
            f"{group}={name}: no such choice; choose from {', '.join(choices(group))}"
        )
    catalogue().refuse_twins(group, name)
    made = generated(group, name)
    values: Any = (
        OmegaConf.load(choice_file(group, name)) if made is None else OmegaConf.create(made)
    )
    values.pop("defaults", None)
    values = values.get(group, values)  # files that also set other groups say `# @package _global_`
    return cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))
