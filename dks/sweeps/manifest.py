"""`results/<sweep>/sweep.json`: what was asked for.

States and tables are read from it without composing anything again.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dks.config.errors import RequestError, short
from dks.config.files import groups
from dks.config.names import is_cell_id, is_sweep_name
from dks.config.reading import MIB, read_text
from dks.runs.record import check_types, write_atomically

LARGEST = 512 * MIB  # bytes of a manifest; that of 100,000 cells has some hundred million


@dataclass(frozen=True)
class ManifestCell:
    """One point of the sweep and the cell that it means."""

    labels: dict[str, str]
    cell_id: str
    config_id: str
    baseline_id: str  # config_id of the plain network under the same conditions
    seed: int
    method: str
    overrides: list[str]
    # config_id of the same network deeply supervised, where this is not what it is already
    ds_id: str | None = None
    # of the network in training, from deep to shallow
    classifiers: list[str] = field(default_factory=lambda: ["c1"])
    classes: int = 0  # that each of them tells apart; 0: not known
    computed: str = ""  # what is not as in compute=standard
    setting_id: str = ""  # the config_id in compute=standard, where this is another one


@dataclass(frozen=True)
class Manifest:
    """The content of `sweep.json`."""

    name: str
    title: str
    axes: list[str]
    runs_dir: str
    cells: list[ManifestCell]  # of its table
    rows: list[str] | None = None  # axes of the table where the sweep names them
    columns: list[str] | None = None
    # runs that choose a hyper-parameter; not in the table
    selection: list[ManifestCell] = field(default_factory=list)
    # of each choice: candidate -> ids of its runs
    choices: list[dict[str, list[str]]] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)  # a line for every choice that is still open
    decided: list[str] = field(default_factory=list)  # a line for every choice that was made
    # labels of its table's cells that wait for such a choice
    pending: list[dict[str, str]] = field(default_factory=list)
    # of each, the settings of all candidates
    pending_ids: list[list[str]] = field(default_factory=list)
    # names of the sweeps it is the union of; the tables are theirs
    parts: list[str] = field(default_factory=list)
    # setting_id -> what is not as the paper has it in this place
    differs: dict[str, list[str]] = field(default_factory=dict)
    named: str | None = None  # the file in `sweeps/` that it was made from
    # overrides as typed: with `named`, the way to ask for it again
    request: list[str] = field(default_factory=list)
    # what it was made from -> digest, see dks/sweeps/changes.py
    definition: dict[str, str] = field(default_factory=dict)

    @property
    def cell_ids(self) -> list[str]:
        """All different cells, those of selections included."""
        return list(dict.fromkeys(cell.cell_id for cell in (*self.selection, *self.cells)))


def write(manifest: Manifest, results_dir: str) -> Path:
    """Write it, as a whole or not at all."""
    path = file(results_dir, manifest.name)
    write_atomically(path, json.dumps(asdict(manifest), indent=1) + "\n")
    return path


def file(results_dir: str, name: str) -> Path:
    """Where the manifest of a sweep lies."""
    return Path(results_dir) / name / "sweep.json"


def read(results_dir: str, name: str) -> Manifest:
    """The manifest of a sweep that was begun in `results_dir`.

    What stands before the digits of its name is enough where that is clear: there is only one such
    sweep, or one has all cells of the others and more.

    Raises:
        RequestError: there is no such sweep, several that could be meant, or its file is damaged.
    """
    path = file(results_dir, name)
    if not is_sweep_name(name) or not path.exists():
        path = file(results_dir, _only_variant(results_dir, name))
    try:
        values: dict[str, Any] = json.loads(read_text(path, LARGEST))
        for key in ("cells", "selection"):
            values[key] = [check_types(ManifestCell(**cell)) for cell in values.get(key, [])]
        found = check_types(Manifest(**values))
        _check_names(found)
        return found
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"{path} is damaged ({error}); type the sweep's command again, which writes it anew: "
            f"the runs are not touched"
        ) from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error


def is_current(sweep: Manifest, results_dir: str) -> bool:
    """Does what lies in `results_dir` under its name mean the same cells? Another command may have
    taken that name since.
    """
    try:
        found = read(results_dir, sweep.name)
    except RequestError:  # nobody's
        return True
    return (found.runs_dir, {*found.cell_ids}) == (sweep.runs_dir, {*sweep.cell_ids})


def _check_names(found: Manifest) -> None:
    """Names of folders and words of command lines.

    A file that someone else made could name any place, and give any option.

    Raises:
        ValueError: one of them is none.
    """
    for name in (found.name, *found.parts, *filter(None, [found.named]), *found.definition):
        if not is_sweep_name(name):
            raise ValueError(f"{short(name)} is no name of a sweep")
    for cell in (*found.cells, *found.selection):
        if not is_cell_id(cell.cell_id):
            raise ValueError(f"{short(cell.cell_id)} is no id of a cell")
    if len(found.pending_ids) not in (0, len(found.pending)) or not all(
        is_cell_id(each) for ids in found.pending_ids for each in ids
    ):
        raise ValueError("pending_ids are no ids of what is pending")
    if {cell_id for choice in found.choices for its in choice.values() for cell_id in its} - {
        *found.cell_ids
    }:
        raise ValueError("a choice is made by cells that are not in it")
    for line in found.request:
        key, given, value = line.lstrip("~+").partition("=")
        is_key = re.fullmatch(r"[A-Za-z_][\w.-]*", key) is not None and key.split(".")[0] != "hydra"
        # a file of another folder, which could set what Hydra itself does
        outside = key in groups() and "/" in value
        if not is_key or outside or not (given or line.startswith("~")):
            raise ValueError(f"{short(line)} is no key of a configuration with its value")


def known(results_dir: str) -> list[str]:
    """The sweeps that were begun in `results_dir`, sorted."""
    return sorted(path.parent.name for path in Path(results_dir).glob("*/sweep.json"))


def _only_variant(results_dir: str, name: str) -> str:
    variants = variants_of(results_dir, name) if is_sweep_name(name) else []
    if not variants:
        raise RequestError(
            f"no sweep '{short(name)}' in {short(results_dir)}; there are "
            f"{', '.join(known(results_dir)) or 'none yet'}"
        )
    cells = (
        {each: {*read(results_dir, each).cell_ids} for each in variants}
        if len(variants) > 1
        else {variants[0]: set[str]()}
    )
    for each, its in cells.items():
        if all(its > others for other, others in cells.items() if other != each):
            return each
    raise RequestError(
        f"{name} was begun with several sets of values; choose from {', '.join(variants)}"
    )


def variants_of(results_dir: str, name: str) -> list[str]:
    """The begun sweeps `name-<6 hex digits>`.

    The same keys, or the same named sweep, with other values.
    """
    return [found for found in known(results_dir) if _is_variant(found, name)]


def _is_variant(found: str, name: str) -> bool:
    stem, _, digest = found.rpartition("-")
    return (
        stem == name and len(digest) == 6 and all(digit in "0123456789abcdef" for digit in digest)
    )
