"""The trainer: one network, one loss, one recipe, from the first step to the last evaluation."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dks.config.schema import Config
from dks.data.batches import Normalise, channel_statistics, evaluation_batches, training_batches
from dks.data.images import Images
from dks.models.network import SupervisedNetwork
from dks.tracking.journal import Entry
from dks.tracking.record import RunFolder
from dks.training import checkpoint
from dks.training.finite import FiniteGuard
from dks.training.interruption import Interrupted, Interruption
from dks.training.metrics import Tally, evaluate, training_losses
from dks.training.objective import Objective
from dks.training.schedule import is_milestone, learning_rate
from dks.world import ALONE, World


class Observer(Protocol):
    """Somebody who watches a run: a progress bar, a tracker."""

    def started(self, epochs: int, images: int, finished: int) -> None:
        """`epochs` in all, `images` a training epoch, `finished` epochs done by earlier attempts."""

    def stepped(self, images: int) -> None:
        """That many more training images were seen."""

    def recorded(self, entry: Entry) -> None:
        """An epoch is in the journal."""


class Trainer:
    """Trains a network and keeps its folder up to date after every epoch.

    Args:
        config: a resolved configuration.
        network: on `device`.
        train, test: as loaded; label noise already applied.
        changed_labels: (M,) the training images that it hit, kept for the record.
        folder: receives the journal and the checkpoints.
        observers: told of every step and epoch.
        interruption: asked between two steps.
        teacher: frozen, images -> logits (N, K); for the methods that distil.
        world: the processes that train together; only rank 0 writes.
    """

    def __init__(
        self,
        config: Config,
        network: SupervisedNetwork,
        train: Images,
        test: Images,
        changed_labels: Tensor,
        device: torch.device,
        folder: RunFolder,
        observers: list[Observer],
        interruption: Interruption,
        teacher: nn.Module | None = None,
        world: World = ALONE,
    ) -> None:
        recipe = config.recipe
        normalise = Normalise(*channel_statistics(config, train), device)
        self.recipe, self.network, self.device, self.folder = recipe, network, device, folder
        self.observers, self.interruption, self.world = observers, interruption, world
        self.train_batches = training_batches(config, train, normalise, device, world)
        self.test_batches = evaluation_batches(config, test, normalise, device, world)
        self.train_images, self.changed_labels = len(train), changed_labels
        self.objective = Objective(config, teacher)
        self.optimizer: Optimizer = SGD(
            network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
        self.guard = FiniteGuard(world)
        self.progress = checkpoint.restore(folder.checkpoints, network, self.optimizer)
        self.entries = folder.journal.keep_until(self.progress.epoch) if world.is_main else []
        self.replica = world.replicate(network)

    def fit(self) -> list[Entry]:
        """Train the epochs that are left; returns the whole journal.

        Raises:
            NonFiniteLoss: at the step where a loss is no finite number.
            Interrupted: a signal came; the checkpoint holds the last whole epoch.
        """
        for observer in self.observers:
            observer.started(self.recipe.epochs, self.train_images, self.progress.epoch)
        while self.progress.epoch < self.recipe.epochs:
            metrics = self._train_epoch() | evaluate(self.network, self.test_batches, self.device, self.world)
            if self.world.is_main:
                entry = self.folder.journal.append(self.progress.epoch, self.progress.step, metrics)
                checkpoint.save(self.folder.checkpoints, self.network, self.optimizer, self.progress)
                self.entries.append(entry)
                for observer in self.observers:
                    observer.recorded(entry)
        return self.entries

    def _train_epoch(self) -> dict[str, float]:
        epoch, step = self.progress.epoch + 1, self.progress.step
        started, tally = time.perf_counter(), Tally()
        lr = learning_rate(self.recipe, finished=self.progress.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.recipe.reset_momentum and is_milestone(self.recipe, finished=self.progress.epoch):
            self.optimizer.state.clear()
        self.network.train()
        for batch in self.train_batches.epoch(epoch):
            self._stop_if_asked()
            step += 1
            logits = self.replica(batch.images)
            loss = self.objective(batch.images, logits, batch.labels)
            self.guard.check(epoch, step, loss, batch.weight)
            self.optimizer.zero_grad()
            (loss.total * batch.weight).backward()
            self.optimizer.step()
            if batch.weight:
                tally.add_losses(training_losses(loss), len(batch.labels))
                tally.add_errors(logits, batch.labels, top=(1,))
            for observer in self.observers:
                observer.stepped(len(batch.labels) * self.world.size)
        self.guard.flush()
        metrics = tally.read("train", self.world)  # waits for the device
        self.progress = checkpoint.Progress(epoch, step)
        speed = tally.images(self.world) / (time.perf_counter() - started)
        return {**metrics, "train/lr": lr, "train/images_per_second": speed}

    def _stop_if_asked(self) -> None:
        """All processes stop before the same step, whichever was asked."""
        if self.world.any(self.interruption.signal is not None):
            raise Interrupted(self.interruption.signal or "another process was")
