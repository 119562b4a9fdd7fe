"""How long the cells of a sweep will take, and how much memory a run needs, before any is launched.

Cells with the same network, batch and image size cost the same a step, so each such network is
looked at once: the speed of earlier runs on this machine if there are some, else a short probe,
else its operations over the rate of the others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dks.config.errors import RequestError
from dks.config.schema import Config
from dks.data.sizes import image_size, images
from dks.machine.environment import available_threads, device_name, pick_device
from dks.runs.attempts import device_model
from dks.sweeps.estimate.cache import FlopsCache
from dks.sweeps.estimate.probe import is_busy
from dks.sweeps.estimate.speeds import Key, Machine, Source, Speed, Work, is_cuda, speeds_of
from dks.sweeps.estimate.text import network_label, text
from dks.training.flops import Flops


@dataclass(frozen=True)
class Range:
    """An estimate and its uncertainty, all in one unit."""

    low: float
    estimate: float
    high: float

    @classmethod
    def around(cls, estimate: float, factor: float) -> Range:
        return cls(estimate / factor, estimate, estimate * factor)

    def times(self, number: float) -> Range:
        return Range(self.low * number, self.estimate * number, self.high * number)


def total(ranges: Iterable[Range]) -> Range:
    """The sum. Errors are taken to be the same for all.

    What makes one network slow here makes all of them slow.
    """
    listed = list(ranges)
    return Range(
        *(math.fsum(getattr(each, name) for each in listed) for name in ("low", "estimate", "high"))
    )


@dataclass(frozen=True)
class Line:
    """The forecast for the cells that share a network, a batch size and an image size."""

    network: str  # for people, for example "resnet32 ours c2 c3"
    cells: int
    steps: int  # that these cells have left, together
    batch_size: int
    image_size: tuple[int, int] | None  # pixels
    flops: Flops | None = None
    seconds_per_step: Range | None = None
    seconds: Range | None = None  # of all these cells, one after another
    # a run's peak: on CUDA of tensors, on the CPU beside the program itself; None: not known
    memory_mib: float | None = None
    source: Source | None = None
    problem: str | None = None  # why there is no forecast

    def to_dict(self) -> dict[str, Any]:
        counted = self.flops
        return {
            "network": self.network,
            "cells": self.cells,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "image_size": self.image_size,
            "seconds_per_step": self.seconds_per_step and asdict(self.seconds_per_step),
            "seconds": self.seconds and asdict(self.seconds),
            "peak_memory_mib": self.memory_mib,
            "parameters": counted and counted.parameters,
            "training_parameters": counted and counted.training_parameters,
            "flops_inference_per_image": counted and counted.inference,
            "flops_forward_per_image": counted and counted.forward,
            "flops_per_step": counted and counted.step * self.batch_size,
            "source": self.source and self.source.value,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Forecast:
    """What the cells of a sweep will take."""

    lines: tuple[Line, ...]
    wall: Range  # seconds until the last cell is over, so many at a time
    slots: int  # cells at a time
    processes: int  # that train one cell together
    machine: str  # device and threads of the runs
    # other programs used much of the machine while it was measured: runs may be much faster
    busy: bool

    @property
    def cells(self) -> int:
        """Cells that are in the total."""
        return sum(line.cells for line in self.lines if line.seconds is not None)

    @property
    def seconds(self) -> Range:
        """All cells one after another."""
        return total(line.seconds for line in self.lines if line.seconds is not None)

    @property
    def device_hours(self) -> Range:
        """Hours of one device each: what all cells take, times the processes of a cell."""
        return self.seconds.times(self.processes / 3600)

    def __str__(self) -> str:
        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "cells": self.cells,
            "seconds": asdict(self.seconds),
            "wall_seconds": asdict(self.wall),
            "device_hours": asdict(self.device_hours),
            "slots": self.slots,
            "processes": self.processes,
            "machine": self.machine,
            "busy": self.busy,
            "networks": [line.to_dict() for line in self.lines],
        }


def forecast(
    cells: Sequence[Config],
    runs_dir: str | Path,
    budget_seconds: float = 5.0,
    slots: int = 1,
    processes: int = 1,
    done_epochs: Sequence[int] = (),
) -> Forecast:
    """How long these runs will take on this machine.

    Args:
        cells: resolved configurations, in the order in which they will run.
        runs_dir: where earlier runs are.
        budget_seconds: for all probes together; 0: none.
        slots: cells at a time, which share the machine's threads.
        processes: that train one cell together, each with a device or a part of the threads.
        done_epochs: for each cell, whole epochs that earlier attempts have trained; empty: none.
    """
    slots = max(1, min(slots, len(cells)))
    alike = works(cells, done_epochs or [0] * len(cells), slots, processes)
    keyed = {work.key: work for work in alike if work.key is not None}
    busy = is_busy()
    speeds = speeds_of(list(keyed.values()), Path(runs_dir), budget_seconds)
    single: list[Range] = [Range(0, 0, 0)] * len(cells)
    for work in alike:
        if work.key is not None:
            for index in work.cells:
                single[index] = _seconds(work, speeds[work.key])
    devices = torch.cuda.device_count() if any(is_cuda(work.machine) for work in alike) else slots
    measured = any(speed.source is not Source.earlier for speed in speeds.values())
    wall = _wall(single, slots, devices)
    return Forecast(
        _lines(alike, speeds), wall, slots, processes, _machines(alike), measured and busy
    )


def works(
    cells: Sequence[Config], done_epochs: Sequence[int], slots: int, processes: int
) -> list[Work]:
    """These cells, those together that take the same.

    Slots, processes and done_epochs as in `forecast`, none left out.
    """
    found: dict[str, Work] = {}
    cache = FlopsCache()
    for index, (config, done) in enumerate(zip(cells, done_epochs, strict=True)):
        kd, recipe = config.kd_teacher, config.recipe
        # Thousands of cells differ in a seed or in a weight: this text is made for each of them,
        #     all else once.
        alike = repr(
            (
                *(config.backbone, config.aux_design, config.aux_positions, config.data),
                *(
                    config.compute,
                    config.device,
                    config.threads,
                    recipe.batch_size,
                    recipe.epochs,
                    done,
                ),
                *(kd.kind, kd.backbone, kd.fingerprint, kd.cell),
            )
        )
        if alike not in found:
            found[alike] = _work(config, done, slots, processes, cache)
        found[alike].cells.append(index)
    cache.write()
    return list(found.values())


def _work(config: Config, done: int, slots: int, processes: int, cache: FlopsCache) -> Work:
    threads = config.threads or max(1, available_threads() // slots // processes)
    machine = Machine(device_model(device_name(pick_device(config.device))), threads, processes)
    work = Work(config, machine, done, image_size(config.data))
    counts = images(config.data)
    if counts is None or work.size is None:
        work.problem = (
            f"the images of data.source={config.data.source} "
            f"data.root={config.data.root} cannot be counted here"
        )
        return work
    work.trained, work.tested = counts
    try:
        work.flops = cache.of(config)
    except (RequestError, RuntimeError) as error:  # an image too small for the network, for one
        work.problem = str(error).partition("\n")[0]
        return work
    work.key = Key.of(config, machine)
    return work


def _seconds(work: Work, speed: Speed) -> Range:
    """Of one of these cells."""
    testing = work.epochs * work.tested / work.machine.processes * speed.seconds_per_test_image
    return Range.around(work.steps * speed.seconds_per_step + testing, speed.factor)


def _wall(cells: Sequence[Range], slots: int, devices: int) -> Range:
    """Seconds until all cells are over, each begun in its order as soon as a slot is free.

    Cells that share a GPU slow each other down, at worst as if they came one after another.
    """
    return Range(
        makespan([cell.low for cell in cells], slots),
        makespan([cell.estimate for cell in cells], slots),
        makespan([cell.high for cell in cells], max(1, min(slots, devices))),
    )


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Seconds until all cells are over that take so many each, so many at a time."""
    free = [0.0] * slots  # when each slot is free
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _machines(works: Sequence[Work]) -> str:
    return "; ".join(dict.fromkeys(str(work.machine) for work in works))


def _lines(works: Sequence[Work], speeds: dict[Key, Speed]) -> tuple[Line, ...]:
    """One for every network that is alike in what a step costs, and for every problem."""
    together: dict[tuple[Any, ...], list[Work]] = {}
    for work in works:
        label = network_label(work.config)
        together.setdefault((work.key, None if work.key else (label, work.problem)), []).append(
            work
        )
    return tuple(
        _line(group, speeds[group[0].key] if group[0].key else None) for group in together.values()
    )


def _line(group: Sequence[Work], speed: Speed | None) -> Line:
    first = group[0]
    cells = sum(len(work.cells) for work in group)
    batch, label = first.config.recipe.batch_size, network_label(first.config)
    if speed is None:
        return Line(label, cells, 0, batch, first.size, first.flops, problem=first.problem)
    return Line(
        network=label,
        cells=cells,
        steps=sum(work.steps * len(work.cells) for work in group),
        batch_size=batch,
        image_size=first.size,
        flops=first.flops,
        seconds_per_step=Range.around(speed.seconds_per_step, speed.factor),
        seconds=total(_seconds(work, speed).times(len(work.cells)) for work in group),
        memory_mib=speed.memory_mib,
        source=speed.source,
    )
