"""How fast networks train on this machine.

Seen in earlier runs, probed, or told from their operations.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

import torch

from dks.config.errors import RequestError
from dks.config.identity import canonical_json
from dks.config.schema import Config
from dks.data.sizes import images
from dks.machine.environment import host, pick_device
from dks.runs.attempts import device_model
from dks.runs.record import Record, RunFolder, Status
from dks.sweeps.estimate.cache import ProbeCache
from dks.sweeps.estimate.probe import RATE_REACHED, Probe, convolution_rate, probe
from dks.training.flops import Flops, network_key

NEWEST = 2000  # records of earlier runs that are read at most, the newest first
READING_SECONDS = 0.5  # that this may take
ENOUGH = 5  # earlier runs of a network
LEAST_PROBE = 0.4  # seconds, below which a probe says nothing
# What lies between an estimate and the truth, as a factor either way. Our own choice; the spread
# that was seen may be larger.
EARLIER, PROBED, ESTIMATED, GUESSED = 1.15, 1.25, 2.5, 3.0
# Further factors: a step or two are few, a smaller batch is no whole one, a busy machine says
#     little of a quiet one.
FEW_STEPS, SMALLER_BATCH, BUSY = 1.2, 1.4, 2.0


class Source(str, Enum):
    """Where the seconds of a step come from."""

    earlier = "earlier"  # finished runs of the same network on this machine
    probe = "probe"  # a few steps, measured on this machine now or some days ago
    # operations, over the rate that other networks or plain convolutions reach here
    flops = "flops"


@dataclass(frozen=True)
class Machine:
    """What a run computes on."""

    device: str  # "cpu", or a GPU's model
    threads: int
    processes: int

    def __str__(self) -> str:
        together = f"{self.processes} processes of " if self.processes > 1 else ""
        return (
            f"{self.device}, {together}{self.threads} "
            f"{'thread' if self.threads == 1 else 'threads'}"
        )


def is_cuda(machine: Machine) -> bool:
    """Does it compute on a GPU?"""
    return machine.device != "cpu"


@dataclass(frozen=True)
class Key:
    """What the seconds of a step depend on."""

    network: str
    batch_size: int
    compute: str  # precision and the like
    machine: Machine

    @classmethod
    def of(cls, config: Config, machine: Machine) -> Key:
        return cls(
            network_key(config), config.recipe.batch_size, canonical_json(config.compute), machine
        )


@dataclass
class Work:
    """Cells that are alike in all that matters here."""

    config: Config
    machine: Machine
    done_epochs: int
    size: tuple[int, int] | None = None
    trained: int = 0  # images an epoch
    tested: int = 0  # images after every epoch
    key: Key | None = None  # None: there is no forecast
    flops: Flops | None = None
    problem: str | None = None
    cells: list[int] = field(default_factory=list)  # their places in the order

    @property
    def epochs(self) -> int:
        """That each of these cells has left."""
        return max(0, self.config.recipe.epochs - self.done_epochs)

    @property
    def steps(self) -> int:
        """That each of these cells has left."""
        return self.epochs * math.ceil(self.trained / self.config.recipe.batch_size)

    @property
    def operations(self) -> float:
        """In the training that each of these cells has left."""
        assert self.flops is not None
        return float(self.flops.step) * self.trained * self.epochs


@dataclass(frozen=True)
class Speed:
    """How fast a network is."""

    seconds_per_step: float
    seconds_per_test_image: float  # of one process
    factor: float  # between this and the truth, either way
    source: Source
    memory_mib: float | None = None


def speeds_of(works: list[Work], runs_dir: Path, budget: float) -> dict[Key, Speed]:
    """How fast each of these networks is.

    Probes of all of them together take about `budget` seconds.
    """
    speeds = {key: _from_runs(seen) for key, seen in _earlier(runs_dir, works).items()}
    cache = ProbeCache()
    rates: dict[Machine, list[float]] = {}  # operations a second that networks reach
    for machine in {work.machine for work in works}:
        rates[machine] = [cached.flops_per_second for cached in cache.of_machine(place(machine))]
    for work in works:
        if work.key in speeds:
            rates[work.machine].append(_rate(work, speeds[work.key]))
    # The most expensive networks first: they decide the total.
    left = sorted(
        (work for work in works if work.key not in speeds),
        key=lambda work: -work.operations * len(work.cells),
    )
    end = time.perf_counter() + budget
    for number, work in enumerate(left):
        assert work.key is not None
        name = _digest(work.key)
        measured = cache.get(name)
        remaining = end - time.perf_counter()
        if measured is None and remaining >= LEAST_PROBE:
            # Those that are far too large for a probe say so at once, and leave their share to the
            # others.
            measured = _probe(work, max(LEAST_PROBE, remaining / (len(left) - number)))
            if measured is not None and not measured.busy:
                cache.put(name, place(work.machine), measured)
        if measured is not None:
            speeds[work.key] = _from_probe(measured)
            rates[work.machine].append(measured.flops_per_second)
    cache.write()
    for work in left:
        assert work.key is not None
        if work.key not in speeds:
            speeds[work.key] = _from_flops(work, rates[work.machine])
    return speeds


def place(machine: Machine) -> str:
    """This machine and what runs on it, for the cache."""
    return canonical_json(
        [host() if machine.device == "cpu" else "", torch.__version__, asdict(machine)]
    )


def _digest(key: Key) -> str:
    return hashlib.sha256(
        canonical_json([key.network, key.batch_size, key.compute, place(key.machine)]).encode()
    ).hexdigest()[:16]


def _probe(work: Work, seconds: float) -> Probe | None:
    try:
        return probe(work.config, seconds, work.machine.threads, work.machine.processes, work.flops)
    except (RuntimeError, ValueError):  # what a run dies of, the run says
        return None


def _from_probe(measured: Probe) -> Speed:
    factor = max(PROBED, 1 + 2 * measured.spread)
    factor *= FEW_STEPS if measured.steps < 3 else 1
    factor *= SMALLER_BATCH if measured.scaled else 1
    factor *= BUSY if measured.busy else 1
    return Speed(
        measured.seconds_per_step,
        measured.seconds_per_test_image,
        factor,
        Source.probe,
        measured.peak_memory_mib,
    )


def _from_flops(work: Work, rates: Sequence[float]) -> Speed:
    assert work.flops is not None
    machine = work.machine
    if rates:
        rate, factor = statistics.median(rates), ESTIMATED
    else:
        rate = RATE_REACHED * convolution_rate(pick_device(work.config.device), machine.threads)
        factor = GUESSED
    batch = math.ceil(work.config.recipe.batch_size / machine.processes)
    return Speed(work.flops.step * batch / rate, work.flops.forward / rate, factor, Source.flops)


def _rate(work: Work, speed: Speed) -> float:
    """Operations a second of one process in training."""
    assert work.flops is not None
    return (
        work.flops.step
        * work.config.recipe.batch_size
        / work.machine.processes
        / speed.seconds_per_step
    )


@dataclass(frozen=True)
class _Seen:
    """How fast an earlier run was."""

    seconds_per_step: float
    seconds_per_test_image: float
    memory_mib: float | None


def _from_runs(seen: Sequence[_Seen]) -> Speed:
    steps = sorted(each.seconds_per_step for each in seen)
    median = statistics.median(steps)
    memories = [each.memory_mib for each in seen if each.memory_mib is not None]
    return Speed(
        median,
        statistics.median(each.seconds_per_test_image for each in seen),
        max(EARLIER, steps[-1] / median, median / steps[0]),
        Source.earlier,
        max(memories, default=None),
    )


def _earlier(runs_dir: Path, works: Sequence[Work]) -> dict[Key, list[_Seen]]:
    """Finished runs of these networks on this machine, the newest first; only so many are read."""
    wanted = {work.key for work in works if work.key is not None}
    parameters = {work.flops.training_parameters for work in works if work.flops is not None}
    machines = {work.machine for work in works}
    found: dict[Key, list[_Seen]] = {}
    # config_id -> any configuration of it: they differ in the seed alone
    configs: dict[str, Config | None] = {}
    end = time.perf_counter() + READING_SECONDS
    for folder in _newest(runs_dir):
        if time.perf_counter() > end or all(len(found.get(key, ())) >= ENOUGH for key in wanted):
            break
        with suppress(RequestError):  # a damaged record is no matter here
            record = folder.read_record()
            if record is None or not _may_match(record, machines, parameters):
                continue
            if record.config_id not in configs:
                configs[record.config_id] = folder.read_config()
            config = configs[record.config_id]
            assert config is not None
            key = Key.of(config, _machine_of(record))
            seen = _seen(record, config) if key in wanted else None
            if seen is not None:
                found.setdefault(key, []).append(seen)
    return found


def _newest(runs_dir: Path) -> list[RunFolder]:
    aged: list[tuple[float, str]] = []
    with suppress(OSError), os.scandir(runs_dir) as entries:
        for entry in entries:
            with suppress(OSError):
                aged.append((Path(entry.path, "record.json").stat().st_mtime, entry.path))
    return [RunFolder(path) for _, path in heapq.nlargest(NEWEST, aged)]


def _machine_of(record: Record) -> Machine:
    last = record.attempts[-1]
    return Machine(device_model(last.device), last.threads, last.processes)


def _may_match(record: Record, machines: set[Machine], parameters: set[int]) -> bool:
    """What the record alone can say, for a configuration takes longer to read."""
    if (
        record.status is not Status.done
        or not record.attempts
        or not record.cost.get("images_per_second")
    ):
        return False
    machine = _machine_of(record)
    # a GPU's model says how fast it is, "cpu" does not
    here = is_cuda(machine) or record.attempts[-1].host == host()
    return here and machine in machines and record.cost.get("parameters", 0) in parameters


def _seen(record: Record, config: Config) -> _Seen | None:
    counts = images(config.data)
    if counts is None:
        return None
    trained, tested = counts
    cost, machine = record.cost, _machine_of(record)
    training = trained / cost["images_per_second"]  # seconds an epoch
    whole = cost.get("seconds_per_epoch") or cost.get("seconds", 0.0) / config.recipe.epochs
    # Whatever else an epoch takes is counted with its evaluation: checkpoints, the journal.
    testing = max(whole - training, 0.0) / tested * machine.processes
    return _Seen(
        training / math.ceil(trained / config.recipe.batch_size),
        testing,
        cost.get("peak_memory_mib"),
    )
