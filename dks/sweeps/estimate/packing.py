"""How many cells side by side train the most images a second here, tried with processes that take
real steps side by side.

What is tried is the network that most of the time goes into; how many fit into the memory is judged
by the largest one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.markup import escape

from dks.config.identity import canonical_json
from dks.config.schema import Augmentation, Config, Precision
from dks.data.registry import source
from dks.machine.memory import MIB, free_memory
from dks.runs.terminal import Display
from dks.sweeps.estimate.cache import Cache
from dks.sweeps.estimate.forecast import makespan, works
from dks.sweeps.estimate.probe import FEWEST, FLOAT, RATE_REACHED, convolution_rate, is_busy
from dks.sweeps.estimate.speeds import Work, place
from dks.sweeps.estimate.text import memory, network_label
from dks.sweeps.estimate.trial import Task
from dks.sweeps.estimate.trials import PART, Trial, TrialError, Trials

LONGEST_STEP = 1.0  # seconds of a step, about; larger batches are cut
MOST_A_GPU = 16  # cells


@dataclass(frozen=True)
class Division:
    """What cells are divided among."""

    cores: int
    gpus: int  # 0: cells compute on the CPU
    environment: Mapping[str, str]  # of a process on the first of the GPUs

    def threads(self, cells: int, config: Config) -> int:
        """Of each of so many cells on a GPU, or on all cores."""
        return config.threads or max(1, self.cores // max(1, self.gpus) // cells)

    def numbers(self, config: Config) -> list[int]:
        """Numbers of cells worth a trial: 1, 2, 4, ... and as many as there are threads for."""
        share = max(1, self.cores // max(1, self.gpus))
        most = max(1, share // (config.threads or 1))
        most = min(most, MOST_A_GPU) if self.gpus else most
        return sorted({most, *(2**power for power in range(most.bit_length()))})


@dataclass(frozen=True)
class Choice:
    """How many cells run at a time, and why."""

    cells: int | None  # on each GPU, or on all cores; None: it is not decided
    why: str  # for people

    def __str__(self) -> str:
        return f"slots=auto: {self.why}"


def choose(
    cells: Sequence[Config], done_epochs: Sequence[int], division: Division, measure: bool = True
) -> Choice:
    """How many of these cells are to run at a time.

    Args:
        cells: resolved configurations, in the order in which they will run.
        done_epochs: for each cell, whole epochs that earlier attempts have trained.
        measure: try it out, unless that was done in the last days.
    """
    alike = works(cells, done_epochs, 1, 1)
    known = [work for work in alike if work.flops is not None]
    if not known:
        return Choice(None, f"not decided: {alike[0].problem}")
    heaviest = max(known, key=lambda work: work.operations * len(work.cells))
    if division.numbers(heaviest.config) == [1]:
        return Choice(
            1,
            f"1 cell: it has {_threads(division.threads(1, heaviest.config))}, and there are "
            f"no more",
        )
    try:
        packing = _packing(heaviest, division, measure)
        if packing is None:
            return Choice(None, "decided by a measurement when the sweep runs")
        free = _free(heaviest, division)
    except TrialError as error:
        return Choice(1, f"1 cell: {network_label(heaviest.config)} could not be tried ({error})")
    need = max(_need(work, heaviest, packing, division) for work in known)
    fitting = [trial for trial in packing.trials if trial.cells * need <= PART * free] or [
        packing.trials[0]
    ]
    costs = [math.nan] * len(cells)
    for work in known:
        for index in work.cells:
            costs[index] = work.operations
    mean = sum(cost for cost in costs if cost == cost) / sum(len(work.cells) for work in known)
    costs = [cost if cost == cost else mean for cost in costs]

    def takes(trial: Trial) -> float:
        return (
            makespan(costs, trial.cells * max(1, division.gpus))
            * trial.cells
            / trial.images_per_second
        )

    best = min(fitting, key=takes)
    others = [
        f"{_cells(trial)} {trial.images_per_second:,.0f}"
        for trial in packing.trials
        if trial is not best
    ]
    told = (
        f"{_cells(best)}{' on a GPU' if division.gpus else ''}, {best.images_per_second:,.0f} "
        f"images/s"
    )
    seen = (
        f"tried with {network_label(heaviest.config)}{' on a busy machine' if packing.busy else ''}"
    )
    room = f"a cell takes {memory(need)}{f' of {memory(free)}' if math.isfinite(free) else ''}"
    return Choice(
        best.cells, "; ".join([f"{told} ({', '.join(others)})" if others else told, seen, room])
    )


def _cells(trial: Trial) -> str:
    together = "1 cell with" if trial.cells == 1 else f"{trial.cells} cells, each with"
    return f"{together} {_threads(trial.threads)}"


def _threads(number: int) -> str:
    return f"{number} {'thread' if number == 1 else 'threads'}"


# What was tried


@dataclass(frozen=True)
class Packing:
    """What was tried of a network."""

    trials: tuple[Trial, ...]  # from 1 cell on, as far as the memory allowed
    memory_mib: float  # of a cell, without its images
    busy: bool  # other programs used much of the machine meanwhile


_busy: dict[str, Packing] = {}  # by the name in the cache, where it is not kept


def _packing(work: Work, division: Division, measure: bool) -> Packing | None:
    """What was tried before, or is tried now; None where there is neither."""
    assert work.key is not None
    where = [place(work.key.machine), division.cores, division.gpus, work.config.threads]
    key = canonical_json([work.key.network, work.key.batch_size, work.key.compute, where])
    name, cache = hashlib.sha256(key.encode()).hexdigest()[:16], Cache("packings.json", _packing_in)
    found = cache.get(name) or _busy.get(name)
    if found is None and measure:
        found = _tried(work, division)
        if found.busy:
            _busy[name] = found
        else:
            cache.put(name, packing=asdict(found))
            cache.write()
    return found


def _packing_in(entry: dict[str, Any]) -> Packing:
    found = Packing(**entry["packing"])
    trials = tuple(Trial(**each) for each in entry["packing"]["trials"])
    numbers = [found.memory_mib, *(number for trial in trials for number in asdict(trial).values())]
    if not trials or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(found)
    return replace(found, trials=trials)


def _tried(work: Work, division: Division) -> Packing:
    busy, numbers = is_busy(), division.numbers(work.config)
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]} cells"
    Display.current().say(
        f"slots=auto: trying {listed} of {escape(network_label(work.config))} side by side"
    )
    free = _free(work, division)
    with Trials(
        _task(work, _images_a_step(work, division)), division.environment, division.gpus > 0
    ) as trials:
        found, need = trials.run(
            numbers, lambda number: division.threads(number, work.config), free
        )
    return Packing(tuple(found), need, busy)


def _task(work: Work, count: int) -> Task:
    assert work.size is not None and work.flops is not None
    # Compiling takes minutes, and hardly changes how many cells go well together.
    compute = replace(work.config.compute, compile=False)
    return Task(replace(work.config, compute=compute), work.size, count, work.flops)


def _images_a_step(work: Work, division: Division) -> int:
    """A whole batch, or as much of it as takes no longer than LONGEST_STEP.

    A TrialError if that is next to nothing.
    """
    assert work.flops is not None
    batch = work.config.recipe.batch_size
    if division.gpus:
        return batch
    threads = division.threads(division.numbers(work.config)[-1], work.config)
    rate = RATE_REACHED * convolution_rate(torch.device("cpu"), threads)
    count = min(batch, int(LONGEST_STEP * rate / work.flops.step))
    if count < min(batch, FEWEST):
        raise TrialError("its steps take too long")
    return count


# Memory


def _free(work: Work, division: Division) -> float:
    """MiB, of a GPU or of the machine."""
    if not division.gpus:
        return (free_memory(torch.device("cpu")) or math.inf) / MIB
    with Trials(_task(work, 1), division.environment, True) as trials:
        return trials.free()


def _need(work: Work, tried: Work, packing: Packing, division: Division) -> float:
    """MiB that a cell takes.

    What was seen of the one that was tried, in proportion to what is counted, and its images.
    """
    return (
        packing.memory_mib * max(1.0, _counted(work) / _counted(tried))
        + _own_images(work, division) / MIB
    )


def _counted(work: Work) -> float:
    assert work.flops is not None
    activations = work.flops.activations * work.config.recipe.batch_size
    if work.config.compute.precision is not Precision.fp32:
        activations //= 2
    return activations + 3 * FLOAT * work.flops.training_parameters


def _own_images(work: Work, division: Division) -> float:
    """Bytes of the images that a cell shares with no other one."""
    data = work.config.data
    assert work.size is not None
    (height, width), around = work.size, 2 * data.pad
    if data.augmentation is not Augmentation.pad_crop:
        return 0
    if division.gpus:
        return 3 * (
            work.trained * (height + around) * (width + around) + work.tested * height * width
        )
    shared = data.cache_gib and hasattr(source(data.source), "files")
    return 0 if shared else 3 * (work.trained + work.tested) * height * width
