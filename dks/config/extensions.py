"""The extensions that a run uses: what its record says of them, and whether they are here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.errors import RequestError
from dks.config.registry import KINDS, VARIABLE, find

if TYPE_CHECKING:
    from dks.config.schema import Config


def used(config: Config) -> list[dict[str, str]]:
    """For a record: the extensions of a resolved configuration.

    Those that cannot be loaded are left out.
    """
    described = []
    for kind, reference in references(config):
        try:
            described.append(find(kind, reference).described())
        except RequestError:  # whoever needs it says so
            continue
    return described


def cited(recorded: Iterable[object]) -> list[dict[str, str]]:
    """What records say of the extensions of runs, each once, with the name of a file in place of
    its path on some machine.

    Args:
        recorded: as `Extension.described` has it; what is not is left out.
    """
    found: list[dict[str, str]] = []
    for each in recorded:
        if not isinstance(each, Mapping):
            continue
        one = {
            key: str(each[key])
            for key in ("kind", "name", "version", "package", "package_version", "sha256")
            if key in each
        }
        if "file" in each:
            one["file"] = re.split(r"[/\\]", str(each["file"]))[-1]
        if one and one not in found:
            found.append(one)
    return found


def references(config: Config) -> list[tuple[str, str]]:
    """(kind, NAME@VERSION) of every extension that a resolved configuration names."""
    found = []
    for kind, key in KINDS.items():
        part, name = key.split(".")
        reference = str(getattr(getattr(config, part), name))
        if "@" in reference:
            found.append((kind, reference))
    return found


def require(config: Config, recorded: Sequence[Mapping[str, str]]) -> list[Path]:
    """See that the extensions of a run are here, in its versions.

    Args:
        recorded: what the run's record says of them, the latest last.

    Returns:
        The files whose content is not what it was, though their versions are.

    Raises:
        RequestError: one is not here; the message says where the run had it from.
    """
    latest = {(each["kind"], f"{each['name']}@{each['version']}"): each for each in recorded}
    changed = []
    for kind, reference in references(config):
        known = latest.get((kind, reference))
        try:
            origin = find(kind, reference).offer.origin
        except RequestError as error:
            raise RequestError(
                *(line + (_hint(known) if known else "") for line in error.problems)
            ) from error
        if (
            known is not None
            and origin.file is not None
            and known.get("sha256", origin.sha256) != origin.sha256
        ):
            changed.append(origin.file)
    return changed


def _hint(recorded: Mapping[str, str]) -> str:
    if "file" in recorded:
        return (
            f"; the run had it from {VARIABLE}={recorded['file']} (sha256 "
            f"{recorded['sha256'][:12]})"
        )
    return (
        f"; the run had it from: pip install {recorded['package']}=={recorded['package_version']}"
    )
