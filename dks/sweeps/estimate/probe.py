"""What a step of training takes on this machine, in seconds and memory.

A few real steps on random images.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dks.config.schema import Config
from dks.data.batches import Batch, Normalise, evaluation_batches, training_batches
from dks.data.images import ImageSet
from dks.data.sizes import image_size
from dks.machine.environment import available_threads, pick_device
from dks.machine.memory import MIB, PeakMemory, free_memory
from dks.models import build_network
from dks.training.finite import FiniteGuard
from dks.training.flops import Flops, flops, untrained_teacher
from dks.training.metrics import Tally, evaluate, training_losses
from dks.training.step import Step

FLOAT = 4  # bytes of a float32
FEWEST = 4  # images in a step from which a larger step can be judged
STEP_SHARE = 0.15  # of a probe's time: the longest step, for it is taken several times
# of the rate of plain convolutions: what a network reaches in training, about, on a CPU
RATE_REACHED = 0.3


@dataclass(frozen=True)
class Probe:
    """What a few real steps on random images took."""

    seconds_per_step: float  # median, a whole batch
    seconds_per_test_image: float  # median, evaluation
    # half the range between the 10th and the 90th percentile of the steps' seconds, over the median
    spread: float
    steps: int  # that were measured
    batch_size: int  # images a step that was measured
    # whole batches would have taken too long: the seconds are those of smaller ones, brought to the
    #     batch's size
    scaled: bool
    peak_memory_mib: float | None  # of training, as PeakMemory, for whole batches; None: not known
    flops_per_second: float  # reached in training
    busy: bool  # other programs used much of the machine meanwhile, so that a run may be faster


def probe(
    config: Config,
    seconds: float,
    threads: int | None = None,
    processes: int = 1,
    counted: Flops | None = None,
) -> Probe | None:
    """Train and evaluate the network of a resolved configuration on random images for about so many
    seconds.

    What is built is what a run builds, but for the weights. torch's random state and number of
    threads are what they were before, nothing is written, nothing stays in memory.

    Args:
        threads: CPU threads of torch; None: as a run here would choose.
        processes: that share a batch; one of them is probed, without their exchange of gradients.
        counted: what `flops` says of it, where that is known already.

    Returns:
        None if even small batches take too long to say anything about whole ones, or if the network
        may not fit into what is free of the memory.
    """
    size, device = image_size(config.data), pick_device(config.device)
    if size is None:
        return None
    counted = counted or flops(config)
    threads = threads or config.threads or max(1, available_threads() // processes)
    rate = convolution_rate(device, threads)
    # Weights, gradients and momentum; activations come on top.
    needed, free = 3 * FLOAT * counted.training_parameters, free_memory(device)
    if free is not None and needed > free / 2:
        return None
    if FEWEST * counted.step > RATE_REACHED * rate * STEP_SHARE * seconds:
        return None
    before, batch_size = torch.get_num_threads(), math.ceil(config.recipe.batch_size / processes)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.set_num_threads(threads)
            return Prober(config, size, device, batch_size, counted).measure(seconds, rate)
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            torch.set_num_threads(before)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


class Prober:
    """The parts of a run, and how long they take."""

    def __init__(
        self,
        config: Config,
        size: tuple[int, int],
        device: torch.device,
        batch_size: int,
        counted: Flops,
    ) -> None:
        self.config, self.size, self.device = config, size, device
        self.batch_size, self.flops = batch_size, counted
        self.busy = is_busy()
        self.memory = PeakMemory(device)
        self.network = (
            build_network(config, initialise=False).to(device).to(memory_format=torch.channels_last)
        )
        teacher = untrained_teacher(config)
        if teacher is not None:
            teacher = teacher.to(device).to(memory_format=torch.channels_last)
        self._normalise = Normalise([0.5] * 3, [0.25] * 3, device)
        self.step = Step(config, self.network, device, teacher)

    def measure(self, budget: float, rate: float) -> Probe | None:
        """Args:
        budget: seconds.
        rate: of convolutions here, operations a second; networks reach less.
        """
        end = time.perf_counter() + budget
        count = _at_most(self.batch_size, 0.1 * budget * rate / self.flops.step)
        took = self.train(count)  # the first step wakes everything up
        if count < self.batch_size and took < 0.5 * budget:
            count = _at_most(
                self.batch_size, count * STEP_SHARE * (end - time.perf_counter()) / took
            )
            took = self.train(count)
        if count < min(self.batch_size, FEWEST):
            return None
        smaller = self.train(count // 2) if count < self.batch_size else 0.0
        steps = self._train_until(end - 0.25 * budget, count, took)
        memory = self.memory.mib()
        median = statistics.median(steps)
        whole = whole_batch(self.batch_size, median, count, smaller)
        return Probe(
            seconds_per_step=whole,
            seconds_per_test_image=self._evaluate(median / count, end),
            spread=_spread(steps),
            steps=len(steps),
            batch_size=count,
            scaled=count < self.batch_size,
            peak_memory_mib=self.whole_memory(memory, count),
            flops_per_second=self.flops.step * self.batch_size / whole,
            busy=self.busy,
        )

    def whole_memory(self, mib: float | None, count: int) -> float | None:
        """MiB that training with whole batches takes if steps of `count` images take `mib`.

        None if these tell too little.
        """
        if mib is None or count == self.batch_size:
            return mib
        if count < self.batch_size / 2:
            return None  # what does not grow with the batch would be blown up
        weights = min(mib, 3 * FLOAT * self.flops.training_parameters / MIB)
        return weights + (mib - weights) * self.batch_size / count

    def _train_until(self, end: float, count: int, took: float) -> list[float]:
        """Seconds of a step, measured once or more; short steps are measured several at a time."""
        together = max(1, math.ceil(0.02 / took))
        steps = [self.train(count, together)]
        while len(steps) < 50 and time.perf_counter() + together * steps[-1] < end:
            steps.append(self.train(count, together))
        return steps

    def train(self, count: int, steps: int = 1) -> float:
        """Mean seconds of steps of `count` images as the trainer takes them, the making of their
        batches included.
        """
        data = self._images(min(steps, 4) * count)
        batches = training_batches(
            _with_batch(self.config, count), data, self._normalise, self.device
        )
        guard, tally = FiniteGuard(), Tally()
        self.network.train()
        self._wait()
        begun = time.perf_counter()
        for step, batch in zip(range(steps), _endless(batches.epoch), strict=False):
            outputs = self.step.forward(batch)
            logits, loss = outputs
            guard.check(1, step, loss, batch.weight)
            self.step.update(outputs, batch)
            tally.add_losses(training_losses(loss), len(batch.labels))
            tally.add_errors(logits, batch.labels, top=(1,))
        self._wait()
        return (time.perf_counter() - begun) / steps

    def _evaluate(self, seconds_per_image: float, end: float) -> float:
        """Seconds an image of an evaluation.

        Args:
            seconds_per_image: of a training step, about three times as long.
        """
        left = max(0.0, end - time.perf_counter())
        count = _at_most(self.config.eval_batch_size, left / seconds_per_image)
        batches = evaluation_batches(self.config, self._images(count), self._normalise, self.device)
        took: list[float] = []
        while len(took) < 2 or (len(took) < 5 and time.perf_counter() + took[-1] < end):
            self._wait()
            begun = time.perf_counter()
            evaluate(self.network, batches, self.device, precision=self.config.compute.precision)
            took.append((time.perf_counter() - begun) / count)
        return statistics.median(took[1:])  # the first one wakes everything up

    def _images(self, count: int) -> ImageSet:
        classes = self.config.data.num_classes
        assert classes is not None
        return ImageSet(
            torch.randint(256, (count, 3, *self.size), dtype=torch.uint8),
            torch.randint(classes, (count,)),
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def whole_batch(batch_size: int, seconds: float, count: int, smaller: float) -> float:
    """Seconds of a step of `batch_size` images by a straight line from those of `count` images and
    of half as many.
    """
    if count == batch_size:
        return seconds
    slope = (seconds - smaller) / (count - count // 2)
    # A part of every step does not depend on the batch, but hardly ever most of it.
    slope = min(max(slope, 0.3 * seconds / count), seconds / count)
    return seconds + slope * (batch_size - count)


def is_busy() -> bool:
    """Did programs use more than half of this machine's cores over the last minute? False where the
    system does not say.
    """
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)


def _with_batch(config: Config, count: int) -> Config:
    return replace(config, recipe=replace(config.recipe, batch_size=count))


def _endless(epoch: Callable[[int], Iterable[Batch]]) -> Iterator[Batch]:
    for number in itertools.count():
        yield from epoch(number)


def _at_most(limit: int, wanted: float) -> int:
    """A whole number of images.

    Two at least where there are so many, for batch normalisation may fail on one.
    """
    return min(limit, max(2, int(wanted)))


def _spread(seconds: Sequence[float]) -> float:
    if len(seconds) < 2:
        return 0.0
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return (tenths[-1] - tenths[0]) / 2 / statistics.median(seconds)


_rates: dict[tuple[str, int], float] = {}


def convolution_rate(device: torch.device, threads: int, seconds: float = 0.2) -> float:
    """Floating-point operations a second that 3x3 convolutions of 64 channels reach here, measured
    once in a process.
    """
    key = str(device), threads
    if key not in _rates:
        before = torch.get_num_threads()
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.inference_mode(),
        ):
            torch.set_num_threads(threads)
            try:
                _rates[key] = _rate(device, seconds)
            finally:
                torch.set_num_threads(before)
    return _rates[key]


def _rate(device: torch.device, seconds: float) -> float:
    layer = (
        nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device).to(memory_format=torch.channels_last)
    )
    given = torch.randn(16, 64, 32, 32, device=device).to(memory_format=torch.channels_last)
    operations = 2 * layer.weight.numel() * 16 * 32 * 32
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(4):
            layer(given)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 4 * operations / (time.perf_counter() - begun))
    return best
