"""Our training step and evaluation, with the parts that a run has, but without its folder."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import torch

from dks.config.schema import Config
from dks.data.images import ImageSet
from dks.machine.interruption import Interruption
from dks.models import build_network
from dks.runs.record import RunFolder
from dks.training.arithmetic import choose_operations
from dks.training.trainer import Trainer


class Ours:
    """As `plain_loop.PlainLoop`."""

    def __init__(
        self, config: Config, train: ImageSet, test: ImageSet, device: torch.device
    ) -> None:
        self.compute = config.compute
        network = build_network(config).to(device).to(memory_format=torch.channels_last)
        # nothing is read there, and nothing written
        folder = RunFolder(Path(tempfile.gettempdir()) / "no run")
        self.trainer = Trainer(
            config, network, train, test, torch.empty(0), device, folder, [], Interruption()
        )
        self._batches = itertools.chain.from_iterable(
            map(self.trainer.train_batches.epoch, itertools.count(1))
        )

    def steps(self, count: int) -> float:
        """Take that many steps, without end over the training set.

        Returns the mean loss since the first one.
        """
        choose_operations(self.compute)
        self.trainer.network.train()
        for _ in range(count):
            self.trainer._step(next(self._batches))
        self.trainer.guard.flush()
        return self.trainer.tally.read("train")["train/loss"]  # waits for the device

    def evaluate(self) -> float:
        """The top-1 error of c1 on the test set, percent."""
        choose_operations(self.compute)
        return self.trainer._evaluated("test")["test/top1_error"]
