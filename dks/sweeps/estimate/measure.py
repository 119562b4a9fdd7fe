"""What a step of training takes here, in seconds and memory: real steps on random images.

Run as a program it is one of several processes that train side by side (`packing.py`). On standard
input come a pickled configuration and a number of images a step, and then orders, a JSON object a
line: {"threads": 2, "seconds": 1.5}. Each is answered by a line on standard output, when the steps
of so many seconds are taken: {"images_per_second": 240, "memory_mib": 900, "free_mib": 77000}, the
memory of the process on the CPU and what is left of a GPU's.
"""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import statistics
import sys
import time
from dataclasses import dataclass, replace
from itertools import count as numbers

import torch

from dks.config.schema import Config
from dks.data.batches import Normalise, evaluation_batches, training_batches
from dks.data.images import ImageSet
from dks.data.sizes import image_size
from dks.machine.environment import pick_device
from dks.machine.memory import MIB, PeakMemory, free_memory
from dks.models import build_network
from dks.training.arithmetic import choose_operations
from dks.training.finite import FiniteGuard
from dks.training.flops import untrained_teacher
from dks.training.metrics import Tally, evaluate, training_losses
from dks.training.step import Step

FEWEST = 2  # images in a step, for batch normalisation may fail on one
SHARE = 0.15  # of the time for a measurement: the longest step, for it is taken several times
MOST = 50  # steps that are timed


@dataclass(frozen=True)
class Measured:
    """What a step took."""

    seconds_per_step: float  # median, a whole batch
    seconds_per_test_image: float  # median, evaluation
    memory_mib: float | None  # as `PeakMemory`; None: not known
    # a whole batch would have taken too long: its seconds are judged by smaller ones
    scaled: bool


def measure(config: Config, seconds: float, threads: int, processes: int = 1) -> Measured | None:
    """Train and evaluate the network of a resolved configuration on random images for about so many
    seconds.

    At least one step is taken, of a few images where a whole batch would take too long. What is
    built is what a run builds, but for the weights. torch's random state and number of
    threads are what they were before, nothing is written, nothing stays in memory.

    Args:
        threads: CPU threads of torch.
        processes: that share a batch; one of them is measured, without their exchange of gradients.

    Returns:
        None if the memory is not enough.
    """
    end, before = time.perf_counter() + seconds, torch.get_num_threads()
    device, batch = pick_device(config.device), math.ceil(config.recipe.batch_size / processes)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.set_num_threads(threads)
            return _measured(Trainee(config, device), batch, seconds, end)
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            torch.set_num_threads(before)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _measured(cell: Trainee, batch: int, seconds: float, end: float) -> Measured | None:
    fewest = min(FEWEST, batch)
    small = cell.train(fewest)  # the first step wakes everything up
    if small < seconds:
        small = cell.train(fewest)
    count = min(batch, max(fewest, int(fewest * SHARE * seconds / small)))
    if count > fewest:
        cell.train(count)
    together = max(1, math.ceil(0.02 / small))  # short steps are timed several at a time
    steps = [cell.train(count, together)] if count > fewest else [small]
    while len(steps) < MOST and time.perf_counter() + together * steps[-1] < end:
        steps.append(cell.train(count, together))
    step = statistics.median(steps)
    memory = cell.memory.mib()
    if count < batch:
        # A straight line through both sizes. A part of every step does not depend on the batch,
        # but hardly ever most of it.
        slope = (step - small) / (count - fewest) if count > fewest else step / count
        step += min(max(slope, 0.3 * step / count), step / count) * (batch - count)
    return Measured(
        seconds_per_step=step,
        seconds_per_test_image=cell.test(count),
        memory_mib=memory if count == batch else None,
        scaled=count < batch,
    )


class Trainee:
    """A network in training, as a run builds it."""

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises what a network of this configuration raises when it is built."""
        self.config, self.device = config, device
        self.memory = PeakMemory(device)
        self.network = build_network(config, initialise=False)
        self.network.to(device).to(memory_format=torch.channels_last)
        teacher = untrained_teacher(config)
        if teacher is not None:
            teacher = teacher.to(device).to(memory_format=torch.channels_last)
        self._normalise = Normalise([0.5] * 3, [0.25] * 3, device)
        self._step = Step(config, self.network, device, teacher)

    def train(self, count: int, steps: int = 1) -> float:
        """Mean seconds of steps of `count` images as the trainer takes them, the making of their
        batches included.
        """
        config = replace(self.config, recipe=replace(self.config.recipe, batch_size=count))
        data = self._images(min(steps, 4) * count)
        batches = training_batches(config, data, self._normalise, self.device)
        guard, tally = FiniteGuard(), Tally()
        self.network.train()
        self._wait()
        begun = time.perf_counter()
        endless = (batch for epoch in numbers() for batch in batches.epoch(epoch))
        for step, batch in zip(range(steps), endless, strict=False):
            outputs = self._step.forward(batch)
            logits, loss = outputs
            guard.check(1, step, loss, batch.weight)
            self._step.update(outputs, batch)
            tally.add_losses(training_losses(loss), len(batch.labels))
            tally.add_errors(logits, batch.labels, top=(1,))
        self._wait()
        return (time.perf_counter() - begun) / steps

    def test(self, count: int) -> float:
        """Median seconds an image of evaluations of `count` images."""
        batches = evaluation_batches(self.config, self._images(count), self._normalise, self.device)
        took = []
        for _ in range(3):
            self._wait()
            begun = time.perf_counter()
            evaluate(self.network, batches, self.device, precision=self.config.compute.precision)
            took.append((time.perf_counter() - begun) / count)
        return statistics.median(took[1:])  # the first one wakes everything up

    def _images(self, count: int) -> ImageSet:
        size, classes = image_size(self.config.data), self.config.data.num_classes
        assert size is not None and classes is not None
        images = torch.randint(256, (count, 3, *size), dtype=torch.uint8)
        return ImageSet(images, torch.randint(classes, (count,)))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def is_busy() -> bool:
    """Did programs use more than half of this machine's cores over the last minute?

    False where the system does not say.
    """
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)


def main() -> None:
    """One of several processes, until the orders end."""
    import psutil

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed is no answer
    config, count = pickle.load(sys.stdin.buffer)
    device = pick_device(config.device)
    choose_operations(config.compute)
    cell, took = None, 0.0
    for line in sys.stdin.buffer:
        order = json.loads(line)
        torch.set_num_threads(order["threads"])
        if cell is None:
            program = psutil.Process().memory_full_info().uss / MIB  # shared with no other process
            cell = Trainee(config, device)
            cell.train(count)
        took = cell.train(count, max(1, math.ceil(order["seconds"] / took)) if took else 1)
        batch = config.recipe.batch_size / count  # the memory of a whole one is told
        answer = {
            "images_per_second": count / took,
            "memory_mib": program + (cell.memory.mib() or 0.0) * batch,
            "free_mib": (free_memory(device) or 0) / MIB,
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
