"""The choices of groups, and single ones read without Hydra."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

from dks.config.errors import RequestError
from dks.config.folders import cache_folder, declarations, python_path
from dks.config.names import SHORT_NAMES
from dks.config.registry import OURS, catalogue, find

__all__ = [
    "cache_folder",
    "choice_file",
    "choices",
    "declarations",
    "generated",
    "generated_names",
    "groups",
    "load_choice",
    "own_choices",
    "python_path",
]

T = TypeVar("T")


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
    return sorted({*own_choices(group), *catalogue().names(group)})


def choice_file(group: str, name: str) -> Path:
    """The file of a choice, ours or that of an extension, which may have none."""
    return catalogue().files.get((group, name), declarations("conf") / group / f"{name}.yaml")


def generated_names(group: str) -> list[str]:
    """The choices of a group that no file holds: of extensions, and their short names."""
    found, long = catalogue(), SHORT_NAMES.get(group, group)
    return [
        name
        for name in found.names(group)
        if (group, name) not in found.files and OURS not in found.choices.get((long, name), [])
    ]


def generated(group: str, name: str) -> dict[str, Any] | None:
    """The content of a choice that no file holds; None: there is none."""
    if name not in generated_names(group):
        return None
    if (long := SHORT_NAMES.get(group)) is not None:
        return {"defaults": [{f"override /{long}": name}]}
    return find(group, name).component.choice()


def load_choice(group: str, name: str, schema: type[T]) -> T:
    """The dataclass that `group=name` would give, read from its file alone.

    Raises:
        RequestError: there is no such choice, or it is that of an extension which cannot be loaded.
    """
    from omegaconf import OmegaConf

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
