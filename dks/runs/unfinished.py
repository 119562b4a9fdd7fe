"""Runs that were begun on files which are not there any more, though the same command is typed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.config.names import is_cell_id
from dks.config.schema import Config
from dks.runs.record import RunFolder


def on_other_files(configs: Iterable[Config]) -> Iterator[str]:
    """A line for each run with a checkpoint that one of these cells would be, had the files under
    `data.root` not changed.

    Args:
        configs: of cells that nobody has begun.
    """
    wanted = {
        _apart_from_files(each): each for each in configs if each.data.fingerprint is not None
    }
    for runs_dir in sorted({each.runs_dir for each in wanted.values()}):
        for folder in map(RunFolder, sorted(Path(runs_dir).glob("*"))):
            if not is_cell_id(folder.cell_id) or not any(folder.checkpoints.glob("*.pt")):
                continue
            with suppress(RequestError):  # what is damaged is another matter
                begun = folder.read_config()
                if (
                    new := wanted.get(_apart_from_files(begun))
                ) and begun.data.fingerprint != new.data.fingerprint:
                    epochs = f"{len(folder.journal.read())} of {begun.recipe.epochs} epochs"
                    yield (
                        f"the files in data.root={new.data.root} are not those that "
                        f"{folder.path} was begun with ({epochs}); "
                        "put those back and it goes on, or remove that folder to begin anew"
                    )


def _apart_from_files(config: Config) -> tuple[str, ...]:
    data = config.data
    place = (
        str(Path(data.root or "").resolve()),
        str(data.image_column),
        str(data.label_column),
        config.runs_dir,
    )
    return cell_id(replace(config, data=replace(data, fingerprint=None))), *place
