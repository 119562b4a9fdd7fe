"""How long the cells of a sweep will take here, and how much memory a run needs.

Cells with the same network, batch and image size cost the same a step, so each such network is
looked at once: the speed of earlier runs on this machine if there are some, else some measured
steps, else its counted operations over the rate at which the others compute.
"""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dks.config.errors import RequestError
from dks.config.identity import canonical_json
from dks.config.schema import Config
from dks.data.sizes import image_size, images
from dks.machine.environment import available_threads, device_name, host, pick_device
from dks.runs.attempts import device_model
from dks.runs.record import Record, RunFolder, Status
from dks.sweeps.estimate.cache import Cache
from dks.sweeps.estimate.measure import FEWEST, SHARE, is_busy, measure
from dks.sweeps.estimate.text import network_label, text
from dks.training.flops import Flops, flops, network_key

READING = 0.5  # seconds that reading the records of earlier runs may take
ENOUGH = 5  # earlier runs of a network
LEAST = 0.4  # seconds, below which a measurement says nothing
# What lies between an estimate and the truth, as a factor either way. Our own choice; the spread
# of earlier runs may be larger. The last two come on top: for smaller batches, and for a machine
# that does other things as well.
EARLIER, PROBED, COUNTED, SCALED, BUSY = 1.15, 1.25, 2.5, 1.4, 2.0

# earlier: finished runs of the network on this machine; probe: steps, measured on this machine now
# or some days ago; flops: operations, over the rate at which the sweep's other networks compute
Source = Literal["earlier", "probe", "flops"]


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
class Machine:
    """What a run computes on."""

    device: str  # "cpu", or a GPU's model
    threads: int
    processes: int

    def __str__(self) -> str:
        together = f"{self.processes} processes of " if self.processes > 1 else ""
        threads = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}"
        return f"{self.device}, {together}{threads}"


@dataclass(frozen=True)
class Speed:
    """How fast a network is on a machine."""

    seconds_per_step: float
    seconds_per_test_image: float  # of one process
    factor: float  # between this and the truth, either way
    source: Source
    # a run's peak: on CUDA of tensors, on the CPU beside the program itself; None: not known
    memory_mib: float | None = None


@dataclass
class Network:
    """Cells whose steps take the same: one network, batch, image size, precision and machine."""

    config: Config  # of one of them
    machine: Machine
    size: tuple[int, int] | None  # of an image, pixels
    flops: Flops | None = None
    speed: Speed | None = None
    problem: str | None = None  # why there is no forecast
    # place in the order -> steps and evaluated images that it has left
    cells: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of all cells."""
        return sum(steps for steps, _ in self.cells.values())

    @property
    def flops_per_step(self) -> int:
        """Of a whole batch; 0 where it is not known."""
        return self.flops.step * self.config.recipe.batch_size if self.flops else 0

    def seconds_of(self, place: int) -> Range | None:
        """Seconds that the cell at that place of the order takes."""
        if self.speed is None:
            return None
        steps, tested = self.cells[place]
        testing = tested / self.machine.processes * self.speed.seconds_per_test_image
        return Range.around(steps * self.speed.seconds_per_step + testing, self.speed.factor)

    @property
    def seconds(self) -> Range | None:
        """Of all cells, one after another."""
        each = [seconds for place in self.cells if (seconds := self.seconds_of(place))]
        return total(each) if each else None

    @property
    def seconds_per_step(self) -> Range | None:
        speed = self.speed
        return Range.around(speed.seconds_per_step, speed.factor) if speed else None

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        counted, step, seconds = self.flops, self.seconds_per_step, self.seconds
        return {
            "network": network_label(self.config),
            "cells": len(self.cells),
            "steps": self.steps,
            "batch_size": self.config.recipe.batch_size,
            "image_size": self.size,
            "seconds_per_step": step and asdict(step),
            "seconds": seconds and asdict(seconds),
            "peak_memory_mib": self.speed and self.speed.memory_mib,
            "parameters": counted and counted.parameters,
            "training_parameters": counted and counted.training_parameters,
            "flops_inference_per_image": counted and counted.inference,
            "flops_forward_per_image": counted and counted.forward,
            "flops_per_step": self.flops_per_step or None,
            "source": self.speed and self.speed.source,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Forecast:
    """What the cells of a sweep will take."""

    networks: tuple[Network, ...]
    wall: Range  # seconds until the last cell is over, so many at a time
    slots: int  # cells at a time
    processes: int  # that train one cell together
    # other programs used much of the machine while it was measured: runs may be much faster
    busy: bool

    @property
    def machine(self) -> str:
        """Device and threads of the runs."""
        return "; ".join(dict.fromkeys(str(each.machine) for each in self.networks))

    @property
    def cells(self) -> int:
        """Cells that are in the total."""
        return sum(len(each.cells) for each in self.networks if each.speed)

    @property
    def seconds(self) -> Range:
        """All cells one after another."""
        return total(seconds for each in self.networks if (seconds := each.seconds))

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
            "networks": [each.to_dict() for each in self.networks],
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
        budget_seconds: for all measurements together; 0: none.
        slots: cells at a time, which share the machine's threads.
        processes: that train one cell together, each with a device or a part of the threads.
        done_epochs: for each cell, whole epochs that earlier attempts have trained; empty: none.
    """
    slots = max(1, min(slots, len(cells)))
    networks = networks_of(cells, done_epochs or [0] * len(cells), slots, processes)
    busy = is_busy()
    _find_speeds([each for each in networks if not each.problem], Path(runs_dir), budget_seconds)
    single = [Range(0, 0, 0)] * len(cells)
    for network in networks:
        for place in network.cells:
            single[place] = network.seconds_of(place) or single[place]
    on_gpu = any(network.machine.device != "cpu" for network in networks)
    # Cells that share a GPU slow each other down, at worst as if they came one after another.
    apart = max(1, min(slots, torch.cuda.device_count())) if on_gpu else slots
    wall = Range(
        makespan([each.low for each in single], slots),
        makespan([each.estimate for each in single], slots),
        makespan([each.high for each in single], apart),
    )
    measured = any(each.speed and each.speed.source != "earlier" for each in networks)
    return Forecast(tuple(networks), wall, slots, processes, measured and busy)


def networks_of(
    cells: Sequence[Config], done_epochs: Sequence[int], slots: int = 1, processes: int = 1
) -> list[Network]:
    """The distinct networks of these cells, and what each has left; as `forecast`, no speeds."""
    found: dict[str, Network] = {}
    known: dict[str, tuple[Network, tuple[int, int]]] = {}
    for place, (config, done) in enumerate(zip(cells, done_epochs, strict=True)):
        kd, recipe = config.kd_teacher, config.recipe
        # Thousands of cells differ in a seed or in a weight: this text is made for each of them,
        # all else once.
        parts = (config.backbone, config.aux_design, config.aux_positions, config.data)
        machine = (config.compute, config.device, config.threads)
        teacher = (kd.kind, kd.backbone, kd.fingerprint, kd.cell)
        alike = repr((parts, machine, teacher, recipe.batch_size, recipe.epochs, done))
        if alike not in known:
            network = _network(config, slots, processes)
            key = _key(config, network.machine)
            if network.problem:
                key = f"{network_label(config)}: {network.problem}"
            known[alike] = found.setdefault(key, network), _left(config, done)
        network, network.cells[place] = known[alike]
    return list(found.values())


def _network(config: Config, slots: int, processes: int) -> Network:
    threads = config.threads or max(1, available_threads() // slots // processes)
    machine = Machine(device_model(device_name(pick_device(config.device))), threads, processes)
    network = Network(config, machine, image_size(config.data))
    if images(config.data) is None or network.size is None:
        where = f"data.source={config.data.source} data.root={config.data.root}"
        network.problem = f"the images of {where} cannot be counted here"
        return network
    try:
        network.flops = flops(config)
    except (RequestError, RuntimeError) as error:  # an image too small for the network, for one
        network.problem = str(error).partition("\n")[0]
    return network


def _left(config: Config, done: int) -> tuple[int, int]:
    trained, tested = images(config.data) or (0, 0)
    epochs = max(0, config.recipe.epochs - done)
    return epochs * math.ceil(trained / config.recipe.batch_size), epochs * tested


def _key(config: Config, machine: Machine) -> str:
    """What the seconds of a step depend on."""
    return canonical_json(
        [network_key(config), config.recipe.batch_size, config.compute, asdict(machine)]
    )


def place_key(network: Network) -> str:
    """The same, on this machine and with this torch: for caches."""
    here = host() if network.machine.device == "cpu" else ""
    return canonical_json([_key(network.config, network.machine), here, torch.__version__])


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Seconds until all cells are over, each begun in its order as soon as a slot is free."""
    free = [0.0] * slots  # when each slot is free
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


# Speeds


def _find_speeds(networks: Sequence[Network], runs_dir: Path, budget: float) -> None:
    """Give them their speeds. Measurements of all together take about `budget` seconds."""
    seen = _earlier(runs_dir, networks)
    for network in networks:
        if found := seen.get(_key(network.config, network.machine)):
            network.speed = _of_runs(found)
    cache, end = Cache("probes.json"), time.perf_counter() + budget
    # The cheapest one tells which of the others are far too large to be measured, and of these the
    # most expensive ones decide the total.
    left = sorted(
        (each for each in networks if not each.speed), key=lambda each: each.flops_per_step
    )
    left[1:] = sorted(left[1:], key=lambda each: -each.flops_per_step * each.steps)
    for number, network in enumerate(left):
        share = max(LEAST, (end - time.perf_counter()) / (len(left) - number))
        network.speed = cache.get(place_key(network), _kept)
        if not network.speed and time.perf_counter() + LEAST <= end:
            network.speed = _probed(network, share, _rate(networks), cache)
    rate = _rate(networks)
    for network in networks:
        counted = network.flops
        assert counted is not None
        if not network.speed and rate:
            batch = math.ceil(network.config.recipe.batch_size / network.machine.processes)
            seconds = counted.step * batch / rate
            network.speed = Speed(seconds, counted.forward / rate, COUNTED, "flops")
        elif not network.speed:
            network.problem = "not measured; --probe SECONDS gives time for it"


def _rate(networks: Sequence[Network]) -> float:
    """Operations a second that those with a known speed reach in training; 0: none has one."""
    rates = [
        each.flops_per_step / each.machine.processes / each.speed.seconds_per_step
        for each in networks
        if each.speed
    ]
    return statistics.median(rates) if rates else 0.0


def _probed(network: Network, seconds: float, rate: float, cache: Cache) -> Speed | None:
    """From steps that are measured now; None where that takes too long, or fails."""
    config, machine = network.config, network.machine
    assert network.flops is not None
    if rate and FEWEST * network.flops.step / rate > SHARE * seconds:
        return None
    busy = is_busy()
    try:
        found = measure(config, seconds, machine.threads, machine.processes)
    except (RuntimeError, ValueError):  # what a run dies of, the run says
        return None
    if found is None:
        return None
    factor = PROBED * (SCALED if found.scaled else 1) * (BUSY if busy else 1)
    step, image = found.seconds_per_step, found.seconds_per_test_image
    speed = Speed(step, image, factor, "probe", found.memory_mib)
    if not busy:
        cache.put(place_key(network), asdict(speed))
    return speed


def _kept(value: dict[str, Any]) -> Speed:
    """A speed as the cache has it; raises TypeError or ValueError for what is none."""
    speed = Speed(**value)
    numbers = (speed.seconds_per_step, speed.seconds_per_test_image, speed.factor)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(value)
    return speed


def _of_runs(seen: Sequence[Speed]) -> Speed:
    """The middle of earlier runs, and their spread."""
    steps = sorted(each.seconds_per_step for each in seen)
    median = statistics.median(steps)
    return Speed(
        median,
        statistics.median(each.seconds_per_test_image for each in seen),
        max(EARLIER, steps[-1] / median, median / steps[0]),
        "earlier",
        max((each.memory_mib for each in seen if each.memory_mib is not None), default=None),
    )


def _earlier(runs_dir: Path, networks: Sequence[Network]) -> dict[str, list[Speed]]:
    """Key -> the speeds of finished runs on this machine, of the newest ones."""
    wanted = {_key(each.config, each.machine) for each in networks}
    parameters = {each.flops.training_parameters for each in networks if each.flops}
    found: dict[str, list[Speed]] = {}
    configs: dict[str, Config] = {}  # by config_id: its runs differ in the seed alone
    end = time.perf_counter() + READING
    for folder in _newest(runs_dir):
        if time.perf_counter() > end or all(len(found.get(key, ())) >= ENOUGH for key in wanted):
            break
        with suppress(RequestError):  # a damaged record is no matter here
            record = folder.read_record()
            # A configuration takes longer to read than a record.
            if record is None or record.cost.get("parameters") not in parameters:
                continue
            if record.config_id not in configs:
                configs[record.config_id] = folder.read_config()
            for key, speed in _told(record, configs[record.config_id]):
                if key in wanted:
                    found.setdefault(key, []).append(speed)
    return found


def _newest(runs_dir: Path) -> list[RunFolder]:
    records = [(path.stat().st_mtime, path.parent) for path in runs_dir.glob("*/record.json")]
    return [RunFolder(folder) for _, folder in sorted(records, reverse=True)]


def _told(record: Record, config: Config) -> Iterator[tuple[str, Speed]]:
    """What a finished run on this machine tells, by the key of its network."""
    counts, cost = images(config.data), record.cost
    if record.status is not Status.done or not record.attempts or counts is None:
        return
    last, (trained, tested) = record.attempts[-1], counts
    machine = Machine(device_model(last.device), last.threads, last.processes)
    # a GPU's model says how fast it is, "cpu" does not
    elsewhere = machine.device == "cpu" and last.host != host()
    if elsewhere or not cost.get("images_per_second"):
        return
    training = trained / cost["images_per_second"]  # seconds an epoch
    whole = cost.get("seconds_per_epoch") or cost.get("seconds", 0.0) / config.recipe.epochs
    step = training / math.ceil(trained / config.recipe.batch_size)
    # whatever else an epoch takes is counted with its evaluation: checkpoints, the journal
    image = max(whole - training, 0.0) / tested * machine.processes
    speed = Speed(step, image, EARLIER, "earlier", cost.get("peak_memory_mib"))
    yield _key(config, machine), speed
