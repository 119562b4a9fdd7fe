"""The trainer: one network, one loss, one recipe, from the first step to the last evaluation."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch.optim import SGD, Optimizer

from dks.config.schema import Config
from dks.data.batches import Normalise, TestBatches, TrainingBatches
from dks.data.images import ImageSet
from dks.losses import SynergyLoss
from dks.models.network import SupervisedNetwork
from dks.tracking.journal import Entry
from dks.tracking.record import RunFolder
from dks.training import checkpoint
from dks.training.finite import FiniteGuard
from dks.training.interruption import Interruption
from dks.training.metrics import Tally, test_losses, training_losses
from dks.training.schedule import learning_rate


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
        folder: receives the journal and the checkpoints.
        observers: told of every step and epoch.
        interruption: asked between two steps.
    """

    def __init__(
        self,
        config: Config,
        network: SupervisedNetwork,
        train: ImageSet,
        test: ImageSet,
        device: torch.device,
        folder: RunFolder,
        observers: list[Observer],
        interruption: Interruption,
    ) -> None:
        data, recipe = config.data, config.recipe
        mean, std = train.statistics()
        normalise = Normalise(data.mean or mean, data.std or [value or 1.0 for value in std], device)
        self.recipe, self.network, self.device, self.folder = recipe, network, device, folder
        self.observers, self.interruption = observers, interruption
        self.train_batches = TrainingBatches(train, recipe.batch_size, config.seed, data.pad, data.flip, normalise, device)
        self.test_batches = TestBatches(test, config.eval_batch_size, normalise, device)
        self.loss = SynergyLoss(config.matching_strategy.name, config.loss.alpha, config.loss.beta)
        self.optimizer: Optimizer = SGD(
            network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
        self.guard = FiniteGuard()
        self.progress = checkpoint.restore(folder.checkpoints, network, self.optimizer)
        self.entries = folder.journal.keep_until(self.progress.epoch)

    def fit(self) -> list[Entry]:
        """Train the epochs that are left; returns the whole journal.

        Raises:
            NonFiniteLoss: at the step where a loss is no finite number.
            Interrupted: a signal came; the checkpoint holds the last whole epoch.
        """
        for observer in self.observers:
            observer.started(self.recipe.epochs, len(self.train_batches.labels), self.progress.epoch)
        while self.progress.epoch < self.recipe.epochs:
            metrics = self._train_epoch() | self._evaluate()
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
        self.network.train()
        for images, labels in self.train_batches.epoch(epoch):
            self.interruption.check()
            step += 1
            logits = self.network(images)
            loss = self.loss(logits, labels)
            self.guard.check(epoch, step, loss)
            self.optimizer.zero_grad()
            loss.total.backward()
            self.optimizer.step()
            tally.add_losses(training_losses(loss), len(labels))
            tally.add_errors(logits, labels, top=(1,))
            for observer in self.observers:
                observer.stepped(len(labels))
        self.guard.flush()
        metrics = tally.read("train")  # waits for the device
        self.progress = checkpoint.Progress(epoch, step)
        return {**metrics, "train/lr": lr, "train/images_per_second": len(tally) / (time.perf_counter() - started)}

    @torch.inference_mode()
    def _evaluate(self) -> dict[str, float]:
        tally = Tally()
        self.network.eval()
        for images, labels in self.test_batches:
            self.interruption.check()
            logits = self.network(images)
            tally.add_losses(test_losses(logits, labels), len(labels))
            tally.add_errors(logits, labels, top=(1, 5))
        return tally.read("test")
