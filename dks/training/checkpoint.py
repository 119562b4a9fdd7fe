"""What an unfinished run goes on from: weights, optimiser and random state after its last whole epoch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0  # whole epochs finished
    step: int = 0  # steps taken


def save(folder: Path, network: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write the checkpoint as a whole or not at all; the one before is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".last.pt.{os.getpid()}"
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": progress.epoch,
        "step": progress.step,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with draft.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / "last.pt")


def restore(folder: Path, network: nn.Module, optimizer: Optimizer) -> Progress:
    """Load the checkpoint, if there is one, into the network, the optimiser and the random generators."""
    path = folder / "last.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Progress(state["epoch"], state["step"])


def discard(folder: Path) -> None:
    """Remove the checkpoint of a finished run; its weights are kept elsewhere."""
    for path in folder.glob("*"):
        path.unlink()
    if folder.exists():
        folder.rmdir()
