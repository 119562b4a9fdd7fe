"""`slots=auto`: how many cells side by side train the most images a second here.

Processes that take real steps side by side try it out. What is tried is the network that most of
the time goes into; how many fit into the memory is judged by the largest one.
"""

from __future__ import annotations

import json
import math
import pickle
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.markup import escape

from dks.config.identity import canonical_json
from dks.config.schema import Augmentation, Config, Precision
from dks.data.registry import source
from dks.data.sizes import images
from dks.machine.memory import MIB, free_memory
from dks.runs.terminal import Display
from dks.sweeps.estimate.cache import Cache
from dks.sweeps.estimate.forecast import Network, makespan, networks_of, place_key
from dks.sweeps.estimate.measure import is_busy
from dks.sweeps.estimate.text import memory, network_label

MOST_A_GPU = 16  # cells
SECONDS, ROUNDS = 1.5, 2  # how long each number of cells is tried, and how often, in turn
ENOUGH = 20.0  # seconds of all trials together, after which none is repeated
PATIENCE = 180.0  # seconds until a process must have answered
PART = 0.9  # of the free memory, that cells may take
# operations, about, of a step on CPUs, where larger batches are cut; and fewest images in it
STEP, FEWEST = 4e10, 4


class TrialError(Exception):
    """It could not be tried; says why."""


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


@dataclass(frozen=True)
class Trial:
    """So many cells side by side."""

    cells: int
    threads: int  # CPU threads of each
    images_per_second: float  # of all together

    def __str__(self) -> str:
        together = "1 cell with" if self.cells == 1 else f"{self.cells} cells, each with"
        return f"{together} {_threads(self.threads)}"


@dataclass(frozen=True)
class Packing:
    """What was tried of a network."""

    trials: tuple[Trial, ...]  # from 1 cell on, as far as the memory allowed
    memory_mib: float  # of a cell, without its images
    busy: bool  # other programs used much of the machine meanwhile


def choose(
    cells: Sequence[Config], done_epochs: Sequence[int], division: Division, measure: bool = True
) -> Choice:
    """How many of these cells are to run at a time.

    Args:
        cells: resolved configurations, in the order in which they will run.
        done_epochs: for each cell, whole epochs that earlier attempts have trained.
        measure: try it out, unless that was done in the last days.
    """
    alike = networks_of(cells, done_epochs)
    known = [each for each in alike if not each.problem]
    if not known:
        return Choice(None, f"not decided: {alike[0].problem}")
    heaviest = max(known, key=lambda each: each.flops_per_step * each.steps)
    if division.numbers(heaviest.config) == [1]:
        threads = _threads(division.threads(1, heaviest.config))
        return Choice(1, f"1 cell: it has {threads}, and there are no more")
    label = network_label(heaviest.config)
    try:
        packing = _packing(heaviest, division, measure)
        if packing is None:
            return Choice(None, "decided by a measurement when the sweep runs")
        free = _free(division)
    except TrialError as error:
        return Choice(1, f"1 cell: {label} could not be tried ({error})")
    need = max(_need(each, heaviest, packing, division) for each in known)
    fitting = [trial for trial in packing.trials if trial.cells * need <= PART * free]
    costs = {
        place: each.flops_per_step * steps
        for each in known
        for place, (steps, _) in each.cells.items()
    }
    in_order = [costs[place] for place in sorted(costs)]

    def takes(trial: Trial) -> float:
        slots = trial.cells * max(1, division.gpus)
        return makespan(in_order, slots) * trial.cells / trial.images_per_second

    best = min(fitting or packing.trials[:1], key=takes)
    told = f"{best}{' on a GPU' if division.gpus else ''}, {best.images_per_second:,.0f} images/s"
    if others := [each for each in packing.trials if each is not best]:
        told += f" ({', '.join(f'{each} {each.images_per_second:,.0f}' for each in others)})"
    busy = " on a busy machine" if packing.busy else ""
    of = f" of {memory(free)}" if math.isfinite(free) else ""
    return Choice(best.cells, f"{told}; tried with {label}{busy}; a cell takes {memory(need)}{of}")


def _threads(number: int) -> str:
    return f"{number} {'thread' if number == 1 else 'threads'}"


# What was tried

_busy: dict[str, Packing] = {}  # by its key, what is not kept for the next command


def _packing(network: Network, division: Division, measure: bool) -> Packing | None:
    """What was tried before, or is tried now; None where there is neither."""
    where = [division.cores, division.gpus, network.config.threads]
    key, cache = canonical_json([place_key(network), where]), Cache("packings.json")
    found = cache.get(key, _kept) or _busy.get(key)
    if found is None and measure:
        found = _tried(network, division)
        if found.busy:
            _busy[key] = found
        else:
            cache.put(key, asdict(found))
    return found


def _kept(value: dict[str, Any]) -> Packing:
    """As the cache has it; raises TypeError, KeyError or ValueError for what is none."""
    trials = tuple(Trial(**each) for each in value["trials"])
    numbers = [value["memory_mib"], *(each.images_per_second for each in trials)]
    if not trials or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(value)
    return Packing(trials, value["memory_mib"], bool(value["busy"]))


def _tried(network: Network, division: Division) -> Packing:
    """Raises a TrialError if not even one cell could be tried."""
    config, busy = network.config, is_busy()
    numbers = division.numbers(config)
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]} cells"
    Display.current().say(
        f"slots=auto: trying {listed} of {escape(network_label(config))} side by side"
    )
    batch = count = config.recipe.batch_size
    if not division.gpus:
        assert network.flops is not None
        count = min(batch, int(STEP / network.flops.step))
    if count < min(batch, FEWEST):
        raise TrialError("its steps take too long")
    # Compiling takes minutes, and hardly changes how many cells go well together.
    plain = replace(config, compute=replace(config.compute, compile=False))
    free = _free(division)
    with Processes(plain, count, division) as processes:
        found, need = side_by_side(processes, numbers, free)
    return Packing(found, need, busy)


def side_by_side(
    processes: Processes, numbers: Sequence[int], free: float
) -> tuple[tuple[Trial, ...], float]:
    """Try these numbers of processes side by side, as far as they fit into the memory.

    Args:
        numbers: rising from 1.
        free: MiB of memory, before any of them has started.

    Returns:
        The trials, and the MiB of memory that one takes.

    Raises:
        TrialError: not even one could be tried.
    """
    (first,) = processes.train(1, 0)
    need, room = first["memory_mib"], free
    if processes.division.gpus:
        # What the second one takes is all its own: of the first one, libraries may have loaded
        # before.
        need = free - first["free_mib"]
        with suppress(TrialError):
            need = max(1.0, first["free_mib"] - processes.train(2, 0)[1]["free_mib"])
        room = need + first["free_mib"]
    most = max(1, int(PART * room / need))
    rates: dict[int, list[float]] = {}
    order, end = [*numbers] * ROUNDS, time.perf_counter() + ENOUGH
    for number in Display.current().track(order, len(order), "trying cells side by side"):
        if number > most or (number in rates and time.perf_counter() > end):
            continue
        try:
            processes.train(number, 0)  # all of them are ready
            answers = processes.train(number, SECONDS)
        except TrialError:
            if number == 1:
                raise
            most = number - 1
            continue
        rates.setdefault(number, []).append(sum(each["images_per_second"] for each in answers))
    return tuple(
        Trial(number, processes.threads(number), fmean(seen))
        for number, seen in rates.items()
        if number <= most
    ), need


class Processes:
    """Processes that train one network side by side (`measure.py`); they end with this context."""

    def __init__(self, config: Config, count: int, division: Division) -> None:
        """`count` images a step."""
        self.division = division
        self._given = pickle.dumps((config, count))
        self._config = config
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._logs = tempfile.TemporaryDirectory(prefix="dks-")

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _log in self._running:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()
        self._logs.cleanup()

    def threads(self, number: int) -> int:
        """Of each of so many."""
        return self.division.threads(number, self._config)

    def train(self, number: int, seconds: float) -> list[dict[str, float]]:
        """So many of them, at the same time, for about so many seconds; 0: one step or two.

        Raises:
            TrialError: one has died, or takes too long.
        """
        while len(self._running) < number:
            self._start()
        order = json.dumps({"threads": self.threads(number), "seconds": seconds})
        for process, _ in self._running[:number]:
            self._tell(process, f"{order}\n".encode())
        return [self._answer(*each) for each in self._running[:number]]

    def _start(self) -> None:
        log = Path(self._logs.name, str(len(self._running)))
        with log.open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dks.sweeps.estimate.measure"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env=dict(self.division.environment),
                start_new_session=True,  # Ctrl-C in the terminal reaches only this process
            )
        self._running.append((process, log))
        self._tell(process, self._given)

    def _tell(self, process: subprocess.Popen[bytes], content: bytes) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; its answer says so
            process.stdin.write(content)
            process.stdin.flush()

    def _answer(self, process: subprocess.Popen[bytes], log: Path) -> dict[str, float]:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            raise TrialError(f"no step was taken in {PATIENCE:.0f} s")
        if line := process.stdout.readline():
            answer: dict[str, float] = json.loads(line)
            return answer
        process.wait()
        printed = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise TrialError(
            printed[-1] if printed else f"its process left with exit status {process.returncode}"
        )


# Memory


def _free(division: Division) -> float:
    """MiB, of a GPU or of the machine."""
    if not division.gpus:
        return (free_memory(torch.device("cpu")) or math.inf) / MIB
    # In a process of its own: from one that uses CUDA none can be forked.
    code = "import torch; print(torch.cuda.mem_get_info()[0])"
    asked = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=dict(division.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise TrialError((asked.stderr.strip().splitlines() or ["the GPU does not answer"])[-1])
    return int(asked.stdout) / MIB


def _need(network: Network, tried: Network, packing: Packing, division: Division) -> float:
    """MiB that a cell takes.

    What was seen of the one that was tried, in proportion to what is counted, and its images.
    """
    share = max(1.0, _counted(network) / _counted(tried))
    return packing.memory_mib * share + _own_images(network, division) / MIB


def _counted(network: Network) -> float:
    """Bytes of activations, weights, gradients and momentum."""
    config, counted = network.config, network.flops
    assert counted is not None
    width = 4 if config.compute.precision is Precision.fp32 else 2
    activations = counted.activations * config.recipe.batch_size * width / 4
    return activations + 3 * 4 * counted.training_parameters


def _own_images(network: Network, division: Division) -> float:
    """Bytes of the images that a cell shares with no other one."""
    data, counts = network.config.data, images(network.config.data)
    assert network.size is not None and counts is not None
    (height, width), (trained, tested), around = network.size, counts, 2 * data.pad
    if data.augmentation is not Augmentation.pad_crop:
        return 0
    if division.gpus:
        return 3 * (trained * (height + around) * (width + around) + tested * height * width)
    shared = data.cache_gib and hasattr(source(data.source), "files")
    return 0 if shared else 3 * (trained + tested) * height * width
