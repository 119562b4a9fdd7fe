"""One of several processes that take training steps side by side.

`dks/sweeps/estimate/packing.py` starts them and says when.

On standard input come a pickled `Task` and then orders, one JSON object a line; each is answered by
a line on standard output:

{"do": "look"}                         {"free_mib": 78000}                     of the device
{"do": "prepare", "threads": 2}        {"memory_mib": 900, "free_mib": 77000}  the cell's own memory
on the CPU; what is left {"do": "train", "seconds": 1.5}        {"images_per_second": 240}
"""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any

import torch

from dks.config.schema import Config
from dks.machine.environment import pick_device
from dks.machine.memory import MIB, free_memory
from dks.sweeps.estimate.probe import Prober
from dks.training.arithmetic import choose_operations
from dks.training.flops import Flops

LONG = 3.0  # seconds of a step that is not taken once more to be measured


@dataclass(frozen=True)
class Task:
    """What every process trains."""

    config: Config
    size: tuple[int, int]  # of an image, pixels
    count: int  # images a step
    flops: Flops


class _Cell:
    """A network in training."""

    def __init__(self, task: Task) -> None:
        self.task, self.device = task, pick_device(task.config.device)
        self.prober: Prober | None = None
        self.seconds = 0.0  # of a step

    def obey(self, order: dict[str, Any]) -> dict[str, float]:
        """The answer to an order."""
        if order["do"] == "prepare":
            return self._prepare(order["threads"])
        return self._train(order["seconds"]) if order["do"] == "train" else self._look()

    def _look(self) -> dict[str, float]:
        return {"free_mib": (free_memory(self.device) or 0) / MIB}

    def _prepare(self, threads: int) -> dict[str, float]:
        torch.set_num_threads(threads)
        before, count = _own_memory(), self.task.count
        if self.prober is None:
            choose_operations(self.task.config.compute)
            batch = self.task.config.recipe.batch_size
            self.prober = Prober(
                self.task.config, self.task.size, self.device, batch, self.task.flops
            )
        self.seconds = self.prober.train(count)  # wakes everything up
        if self.seconds < LONG:
            self.seconds = self.prober.train(count)
        taken = self.prober.memory.mib() if self.device.type == "cpu" else None
        whole = (
            self.prober.whole_memory(taken, count)
            or (taken or 0.0) * self.task.config.recipe.batch_size / count
        )
        return {"memory_mib": before + whole, **self._look()}

    def _train(self, seconds: float) -> dict[str, float]:
        assert self.prober is not None
        steps = max(1, math.ceil(seconds / self.seconds))
        return {"images_per_second": self.task.count / self.prober.train(self.task.count, steps)}


def _own_memory() -> float:
    """MiB that this process shares with no other one."""
    import psutil

    return float(psutil.Process().memory_full_info().uss) / MIB


def main() -> None:
    """Until the orders end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed is no answer
    cell = _Cell(pickle.load(sys.stdin.buffer))
    for line in sys.stdin.buffer:
        print(json.dumps(cell.obey(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
