"""What an unfinished run goes on from.

Everything that decides its next step, in the newest checkpoint and the one before.

A file is what torch.save makes of a state, and behind it the SHA-256 of those bytes, which is
compared before anything else looks at them. It is written under another name and renamed, so under
its own name it is whole or not there; a disk may still damage it later, and then the one before
counts.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dks.config.errors import RequestError
from dks.config.reading import MIB, Unfit, open_file
from dks.machine.memory import free_memory
from dks.runs import damage
from dks.runs.disk import write_draft, writing
from dks.runs.journal import sync_folder

log = logging.getLogger(__name__)

NEWEST, PREVIOUS, DRAFT = "last.pt", "previous.pt", "draft.pt"
_DIGEST = hashlib.sha256().digest_size  # bytes


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0  # whole epochs trained
    step: int = 0  # steps taken in all
    batch: int = 0  # of them in the epoch under way


@dataclass(frozen=True)
class State:
    """What decides the next step of a run."""

    progress: Progress
    network: dict[str, Tensor]
    step: dict[str, Any]  # of the optimiser and of the scaling of the loss
    # of each process by its rank: random generators, sums of the epoch under way
    processes: list[dict[str, Any]]
    seconds: float  # spent in the epoch under way
    # of the training of a whole epoch whose evaluation is to follow; else none
    metrics: dict[str, float]
    entries: int  # epochs in the journal
    # seconds in each phase of the epoch under way
    phases: dict[str, float] = field(default_factory=dict)


class Damaged(Exception):
    """A checkpoint that nothing can go on from."""


def save(folder: Path, state: State) -> None:
    """Make this the newest checkpoint, as a whole or not at all.

    The newest until now is kept as the one before.

    Raises:
        DiskFull: there is no room for it.
        OSError: it cannot be written.
    """
    content = io.BytesIO()
    torch.save({**vars(state), "progress": astuple(state.progress)}, content)
    body = content.getbuffer()
    draft, newest = folder / DRAFT, folder / NEWEST
    with writing(newest, len(body)):
        folder.mkdir(parents=True, exist_ok=True)
        write_draft(draft, newest, body, hashlib.sha256(body).digest())
        if newest.exists():
            newest.replace(folder / PREVIOUS)
        draft.replace(newest)
        sync_folder(folder)


def find(folder: Path, entries: int) -> tuple[Path, State] | None:
    """The newest good checkpoint of a run that has so many epochs in its journal.

    None where there is none.

    One that is damaged, or knows of epochs that the journal has lost, is reported and removed, so
    that it never takes the place of a good one.

    Raises:
        RequestError, OSError: a file is there and cannot be read.
    """
    for path in (folder / NEWEST, folder / PREVIOUS):
        try:
            state = read(path)
            if state.entries > entries:
                raise Damaged(
                    f"is ahead of the journal, which has {entries} of {state.entries} epochs"
                )
            return path, state
        except FileNotFoundError:
            if path.name == NEWEST and (folder / PREVIOUS).exists():
                log.warning("checkpoint %s is missing; the one before it is tried", path)
        except Unfit:
            damage.make_way(path)
        except Damaged as damaged:
            log.warning("checkpoint %s %s; the one before it is tried", path, damaged)
            path.unlink()
    if entries:
        log.warning("there is no good checkpoint in %s; the run starts again from epoch 1", folder)
    return None


def read(path: Path) -> State:
    """The state in a checkpoint, on the CPU.

    Raises:
        Damaged: the file is cut or changed, or another version wrote it.
        RequestError: the memory is too small for it.
        OSError: it is not there or cannot be read.
    """
    with open_file(path) as file:
        size, free = os.fstat(file.fileno()).st_size, free_memory(torch.device("cpu"))
        if free is not None and size > free:
            raise RequestError(
                f"{path} does not fit into the memory: {size / MIB:,.0f} MiB, of which "
                f"{free / MIB:,.0f} are free"
            )
        content = memoryview(file.read())
    body = content[:-_DIGEST]
    if hashlib.sha256(body).digest() != content[-_DIGEST:]:
        raise Damaged("is damaged (its checksum is wrong)")
    try:
        values = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        # the reader raises anything on what torch.save did not write, and runs nothing of it
        raise Damaged(f"holds what no checkpoint does ({type(error).__name__})") from error
    try:
        return State(**{**values, "progress": Progress(*values["progress"])})
    except (KeyError, TypeError) as error:
        raise Damaged("was written by another version") from error


def discard(folder: Path) -> None:
    """Remove the checkpoints of a finished run; its weights are kept elsewhere."""
    if folder.exists():
        shutil.rmtree(folder)
