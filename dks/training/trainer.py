"""The trainer: one network, one loss, one recipe, from the first step to the last evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.schema import Config
from dks.data.batches import (
    Batch,
    Normalise,
    TestBatches,
    channel_statistics,
    evaluation_batches,
    training_batches,
)
from dks.data.images import Images, ImageSet
from dks.machine.interruption import Interrupted, Interruption
from dks.machine.world import ALONE, World
from dks.models.network import SupervisedNetwork
from dks.runs.attempts import cannot_go_on
from dks.runs.journal import Entry
from dks.runs.record import RunFolder
from dks.training import checkpoint
from dks.training.checkpoint import Progress
from dks.training.confusion import Confusion
from dks.training.finite import FiniteGuard
from dks.training.metrics import Tally, evaluate, training_losses
from dks.training.phases import Phases
from dks.training.schedule import is_milestone, learning_rate
from dks.training.step import Step

if TYPE_CHECKING:
    from dks.data.streaming import StreamedTest


class Observer(Protocol):
    """Somebody who watches a run: a progress bar, a tracker."""

    def started(self, epochs: int, images: int, finished: int) -> None:
        """`epochs` in all, `images` an epoch, `finished` epochs done by earlier attempts."""

    def stepped(self, images: int) -> None:
        """That many more training images were seen."""

    def recorded(self, entry: Entry) -> None:
        """An epoch is in the journal."""


class Trainer:
    """Trains a network and keeps its folder up to date, so that whatever stops it at whatever
    moment, another one goes on from there and ends bitwise the same.

    Every epoch is trained, saved, evaluated and written into the journal, in this order. A
    checkpoint whose epoch the journal has not got yet has its evaluation before it; a line of the
    journal that is ahead of the checkpoint is cut off.

    Args:
        config: a resolved configuration.
        network: on `device`.
        train, test: as loaded; label noise already applied.
        changed_labels: (M,) the training images that it hit, kept for the record.
        folder: receives the journal and the checkpoints.
        observers: told of every step and epoch.
        interruption: asked between two steps, and between two batches of an evaluation.
        teacher: frozen, images -> logits (N, K); for the methods that distil.
        world: the processes that train together; only rank 0 writes.
        val: training images that are held out, evaluated beside the test set; None without.
        system: what else is known of an epoch when it is over, for its line in the journal: name ->
            value.
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
        val: Images | None = None,
        system: Callable[[], dict[str, float]] = dict,
    ) -> None:
        recipe = config.recipe
        normalise = Normalise(*channel_statistics(config, train), device)
        self.recipe, self.network, self.device, self.folder = recipe, network, device, folder
        self.precision = config.compute.precision
        self.observers = observers
        self.interruption = interruption
        self.world = world
        self.system = system
        self.train_batches = training_batches(config, train, normalise, device, world)
        self.evaluations = {
            prefix: evaluation_batches(config, images, normalise, device, world)
            for prefix, images in (("val", val), ("test", test))
            if images is not None
        }
        self.train_images, self.changed_labels = len(train), changed_labels
        self.step = Step(config, network, device, teacher, world)
        self.guard = FiniteGuard(world)
        # where this run is, and where its newest checkpoint is
        self.progress = self.saved = Progress()
        # of the epoch under way
        self.tally, self.seconds, self.phases = Tally(), 0.0, Phases(device)
        # of the training of a whole epoch, until it is evaluated
        self.metrics: dict[str, float] = {}
        # classifier -> (K, K) test images after the last epoch, a row a true class
        self.confusion: dict[str, Tensor] = {}
        assert config.data.num_classes is not None, (
            "a resolved configuration has its number of classes"
        )
        self.classes = config.data.num_classes
        self.side = (
            train.images.shape[-2:]
            if isinstance(train, ImageSet)
            else (config.data.image_size or 1,) * 2
        )
        self.entries = folder.journal.read() if world.is_main else []
        self._restore(self.side)

    def fit(self) -> list[Entry]:
        """Train the epochs that are left; returns the whole journal.

        Raises:
            NonFiniteLoss: at the step where a loss is no finite number.
            Interrupted: a signal came; all steps taken until then are in the checkpoint.
        """
        self.interruption.patient = True  # steps are finished
        for observer in self.observers:
            observer.started(self.recipe.epochs, self.train_images, len(self.entries))
        self.system()  # until here nothing was trained
        while self.metrics or self.progress.epoch < self.recipe.epochs:
            if not self.metrics:
                self._train_epoch()
                self._save()
            self._evaluate_epoch()
        # the last evaluation was that of an attempt that was stopped right after it
        if not self.confusion:
            self._evaluated("test")
        return self.entries

    def _train_epoch(self) -> None:
        """The epoch under way, from where it stands."""
        finished, started = self.progress.epoch, time.perf_counter() - self.seconds
        lr = learning_rate(self.recipe, finished)
        for group in self.step.optimizer.param_groups:
            group["lr"] = lr
        if (
            self.recipe.reset_momentum
            and self.progress.batch == 0
            and is_milestone(self.recipe, finished)
        ):
            self.step.optimizer.state.clear()
        self.network.train()
        self.phases.begin()
        for batch in self.train_batches.epoch(finished + 1, first=self.progress.batch):
            self.phases.end("data")
            if asked := self._asked():
                self.guard.flush()
                self.seconds = time.perf_counter() - started
                self._save()
                raise asked
            self._step(batch)
        self.guard.flush()
        metrics = self.tally.read("train", self.world)  # waits for the device
        speed = self.tally.images(self.world) / (time.perf_counter() - started)
        phases = {
            f"time/{phase}": round(seconds, 6) for phase, seconds in self.phases.seconds().items()
        }
        self.metrics = {**metrics, "train/lr": lr, "train/images_per_second": speed, **phases}
        self.progress = Progress(finished + 1, self.progress.step)
        self.tally, self.seconds, self.phases = Tally(), 0.0, Phases(self.device)

    def _step(self, batch: Batch) -> None:
        self.progress = replace(
            self.progress, step=self.progress.step + 1, batch=self.progress.batch + 1
        )
        outputs = self.step.forward(batch)
        logits, loss = outputs
        self.guard.check(self.progress.epoch + 1, self.progress.step, loss, batch.weight)
        if batch.weight:
            self.tally.add_losses(training_losses(loss), len(batch.labels))
            self.tally.add_errors(logits, batch.labels, top=(1,))
        self.phases.end("forward")
        self.step.update(outputs, batch)
        self.phases.end("backward")
        for observer in self.observers:
            observer.stepped(len(batch.labels) * self.world.size)

    def _evaluate_epoch(self) -> None:
        """The epoch just trained; whoever is stopped here does it again."""
        metrics, started = self.metrics, time.perf_counter()
        for prefix in self.evaluations:
            metrics = metrics | self._evaluated(prefix)  # waits for the device
        metrics["time/evaluation"] = round(time.perf_counter() - started, 6)
        self.metrics = {}
        if self.world.is_main:
            metrics |= self.system()
            entry = self.folder.journal.append(self.progress.epoch, self.progress.step, metrics)
            self.entries.append(entry)
            for observer in self.observers:
                observer.recorded(entry)

    def _evaluated(self, prefix: str) -> dict[str, float]:
        """The metrics of "test" or "val".

        After the last epoch the test also tells what is taken for what.
        """
        last = prefix == "test" and self.progress.epoch == self.recipe.epochs
        confusion = Confusion(self.classes) if last else None
        batches = self._until_asked(self.evaluations[prefix])
        metrics = evaluate(
            self.network, batches, self.device, self.world, prefix, confusion, self.precision
        )
        if confusion is not None:
            self.confusion = confusion.read(self.world)
        return metrics

    def _until_asked(self, batches: TestBatches | StreamedTest) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an evaluation, until a signal comes.

        Some processes may have one more, before which nobody asks.
        """
        common = min(self.world.gather(len(batches)))
        for number, batch in enumerate(batches):
            if number < common and (asked := self._asked()):
                raise asked
            yield batch

    def _asked(self) -> Interrupted | None:
        """What to stop with, in all processes at the same place, whichever was asked."""
        if not self.world.any(self.interruption.signal is not None):
            return None
        signals = [
            number.name
            for number in self.world.gather(self.interruption.signal)
            if number is not None
        ]
        return Interrupted(signals[0])

    def _save(self) -> None:
        """Write a checkpoint, unless the newest one says the same."""
        if self.progress == self.saved:
            return
        random = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        mine = {"random": torch.get_rng_state(), "random_cuda": random, "tally": self.tally.state()}
        processes = self.world.gather(mine)
        self.saved = self.progress
        if self.world.is_main:
            state = checkpoint.State(
                progress=self.progress,
                network=self.network.state_dict(),
                step=self.step.state_dict(),
                processes=processes,
                seconds=self.seconds,
                metrics=self.metrics,
                entries=len(self.entries),
                phases=self.phases.seconds(),
            )
            checkpoint.save(self.folder.checkpoints, state)

    def _restore(self, side: Sequence[int]) -> None:
        """Go on from the newest good checkpoint, or begin.

        What the journal has beyond it is cut off.

        Args:
            side: height and width of an image, pixels.

        Raises:
            RequestError: it was begun with another number of processes, or on another kind of
                device.
        """
        found = (
            checkpoint.find(self.folder.checkpoints, len(self.entries))
            if self.world.is_main
            else None
        )
        path = self.world.share(found and found[0])
        if path is not None:
            state = found[1] if found else checkpoint.read(path)
            mine = self._own_part(state.processes)
            if self.world.size > 1:
                self._take_idle_step(side)
            self.progress = self.saved = state.progress
            self.seconds, self.metrics = state.seconds, state.metrics
            self.phases = Phases(self.device, state.phases)
            self.network.load_state_dict(state.network)
            self.step.load_state_dict(state.step)
            self.tally = Tally.restored(mine["tally"], self.device)
            torch.set_rng_state(mine["random"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(mine["random_cuda"], self.device)
        if self.world.is_main:
            self.entries = self.folder.journal.keep_until(self.progress.epoch)
        if self.world.share(len(self.entries)) == self.progress.epoch:
            self.metrics = {}  # that epoch is evaluated already

    def _own_part(self, processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What a checkpoint has of this process."""
        begun = len(processes), "cpu" if processes[0]["random_cuda"] is None else "cuda"
        now = self.world.size, self.device.type
        if begun != now:
            raise RequestError(f"run {self.folder.cell_id} was {cannot_go_on(begun, now)}")
        return processes[self.world.rank]

    def _take_idle_step(self, side: Sequence[int]) -> None:
        """The gradients of blank images, for nothing.

        After its first step DistributedDataParallel puts gradients in another order, in which more
        than two processes sum to other last bits; a run that goes on is beyond its first step.
        """
        images = torch.zeros(2, 3, *side, device=self.device).to(memory_format=torch.channels_last)
        labels = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.step.rehearse(images, labels)
