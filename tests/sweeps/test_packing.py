"""slots=auto.

How many cells side by side, from a trial with real processes and the memory that is free.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dks.config.errors import RequestError
from dks.config.schema import Config
from dks.sweeps.estimate import packing
from dks.sweeps.estimate.packing import (
    Choice,
    Division,
    Packing,
    Processes,
    Trial,
    TrialError,
    choose,
    side_by_side,
)
from dks.sweeps.launchers import local
from dks.sweeps.launchers.local import Layout, environment
from hydra_plugins.dks_launchers.local import LocalLauncher
from tests.conftest import config, train

SMALL = (
    "data=synthetic",
    "data.image_size=8",
    "data.train_images=100",
    "data.test_images=50",
    "data.pad=1",
    "recipe.epochs=2",
)
TWO = Division(2, 0, {})
MIB = 2**20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was tried before: nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "_busy", {})
    return tmp_path / "cache" / "dks" / "packings.json"


def tried(*rates: float, memory_mib: float = 100.0, busy: bool = False) -> Packing:
    """1, 2, 4, ... cells with so many images a second."""
    return Packing(
        tuple(Trial(2**power, 1, rate) for power, rate in enumerate(rates)), memory_mib, busy
    )


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Config]]:
    """No process is started: every trial comes out as given. The list holds what was tried."""

    def given(found: Packing, free_mib: float = 1e6) -> list[Config]:
        seen: list[Config] = []
        monkeypatch.setattr(
            packing, "_tried", lambda network, division: seen.append(network.config) or found
        )
        monkeypatch.setattr(packing, "free_memory", lambda device: int(free_mib * MIB))
        return seen

    return given


def cells(count: int, *overrides: str) -> list[Config]:
    first = config(*SMALL, *overrides)
    return [replace(first, seed=seed) for seed in range(count)]


def chosen(given: Sequence[Config], division: Division = TWO, **options: Any) -> int | None:
    return choose(given, [0] * len(given), division, **options).cells


# --- what is tried


@pytest.mark.parametrize(
    ("cores", "gpus", "overrides", "numbers", "threads"),
    [
        (1, 0, (), [1], [1]),
        (2, 0, (), [1, 2], [2, 1]),
        (12, 0, (), [1, 2, 4, 8, 12], [12, 6, 3, 1, 1]),
        (16, 0, ("threads=4",), [1, 2, 4], [4, 4, 4]),
        (2, 0, ("threads=4",), [1], [4]),
        (16, 2, (), [1, 2, 4, 8], [8, 4, 2, 1]),
        (128, 1, (), [1, 2, 4, 8, 16], [128, 64, 32, 16, 8]),
    ],
)
def test_as_many_cells_are_tried_as_there_are_threads_for(
    cores: int, gpus: int, overrides: tuple[str, ...], numbers: list[int], threads: list[int]
) -> None:
    given, division = config(*SMALL, *overrides), Division(cores, gpus, {})
    assert division.numbers(given) == numbers
    assert [division.threads(number, given) for number in numbers] == threads


def test_one_thread_leaves_no_choice(pretend: Callable[..., list[Config]]) -> None:
    seen = pretend(tried(1.0))
    found = choose(cells(3), [0, 0, 0], Division(1, 0, {}))
    assert (found.cells, seen) == (1, [])
    assert str(found) == "slots=auto: 1 cell: it has 1 thread, and there are no more"


# --- what is chosen


def test_what_is_fastest_for_all_cells_together_is_chosen(
    pretend: Callable[..., list[Config]],
) -> None:
    """Three cells on two slots leave one slot empty half of the time."""
    pretend(tried(100.0, 120.0))
    assert chosen(cells(4)) == chosen(cells(2)) == 2
    assert chosen(cells(3)) == 1
    pretend(tried(100.0, 160.0))
    assert chosen(cells(3)) == 1, "it is what was tried before"


def test_cells_that_are_nearly_done_count_little(pretend: Callable[..., list[Config]]) -> None:
    pretend(tried(100.0, 120.0))
    given = cells(3)
    assert choose(given, [0, 0, 0], TWO).cells == 1
    assert choose(given, [0, 0, 2], TWO).cells == 2, "two cells are left"


def test_the_network_that_takes_most_of_the_time_is_tried(
    pretend: Callable[..., list[Config]],
) -> None:
    seen = pretend(tried(100.0, 120.0))
    choose([*cells(3), *cells(2, "backbone=resnet20")], [0] * 5, TWO)
    assert [each.backbone.depth for each in seen] == [20]


def test_no_more_cells_run_than_fit_into_the_memory(pretend: Callable[..., list[Config]]) -> None:
    pretend(tried(100.0, 200.0, 300.0, memory_mib=100.0), free_mib=300.0)
    found = choose(cells(8), [0] * 8, Division(4, 0, {}))
    assert found.cells == 2, "of 300 MiB some are left"
    assert "a cell takes 100 MiB of 300 MiB" in found.why
    pretend(tried(100.0, 200.0, 300.0), free_mib=10.0)
    assert chosen(cells(8), Division(4, 0, {})) == 1, "one has to run"


def test_the_largest_network_says_how_many_fit(pretend: Callable[..., list[Config]]) -> None:
    many, large = (
        cells(1500),
        cells(1, "backbone=wrn28_10", "recipe.epochs=1", "data.train_images=1"),
    )
    pretend(tried(100.0, 200.0), free_mib=500.0)
    assert chosen(many) == 2
    assert chosen([*many, *large]) == 1


def test_images_count_where_each_cell_has_its_own(
    pretend: Callable[..., list[Config]], tmp_path: Path
) -> None:
    """Synthetic ones are made by every process; those that are decoded are in memory once."""
    large = ("data.image_size=64", "data.train_images=20000")  # 235 MiB
    pretend(tried(100.0, 200.0, memory_mib=1.0), free_mib=400.0)
    assert chosen(cells(4)) == 2
    assert chosen(cells(4, *large)) == 1
    from tests.data.test_data import write_cifar

    write_cifar(tmp_path, 10)
    real = [config("data=cifar10", f"data.root={tmp_path}", "recipe.epochs=1")] * 4
    assert chosen(real) == 2
    real[0].data.cache_gib = 0.0  # of all of them
    assert chosen(real) == 2, "176 MiB each"
    pretend(tried(100.0, 200.0, memory_mib=1.0), free_mib=350.0)
    assert chosen(real) == 1


def test_of_a_gpu_the_memory_of_the_gpu_counts(
    pretend: Callable[..., list[Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tried(100.0, 180.0, 250.0, memory_mib=1000.0), free_mib=1.0)
    monkeypatch.setattr(packing, "_free", lambda division: 3000.0)
    found = choose(cells(8), [0] * 8, Division(16, 2, {}))
    assert found.cells == 2
    assert "2 cells, each with 1 thread on a GPU, 180 images/s" in found.why


# --- what is kept


def test_a_trial_is_kept_for_the_next_time_and_holds_for_what_was_tried(
    pretend: Callable[..., list[Config]], cache: Path
) -> None:
    seen = pretend(tried(100.0, 120.0))
    first = choose(cells(2), [0, 0], TWO)
    assert choose(cells(2, "loss.beta=2"), [0, 0], TWO) == first
    assert len(seen) == 1
    others = [
        ("recipe.batch_size=32",),
        ("compute.precision=bf16",),
        ("backbone=resnet20",),
        ("data.image_size=9",),
    ]
    for number, overrides in enumerate(others, start=2):
        chosen(cells(2, *overrides))
        assert len(seen) == number, overrides
    chosen(cells(2), Division(4, 0, {}))
    assert len(seen) == 6, "another number of cores"


def test_a_trial_on_a_busy_machine_is_kept_for_this_command_only(
    pretend: Callable[..., list[Config]], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    seen = pretend(tried(100.0, 120.0, busy=True))
    for _ in range(2):
        assert "on a busy machine" in choose(cells(2), [0, 0], TWO).why
    assert len(seen) == 1
    monkeypatch.setattr(packing, "_busy", {})
    chosen(cells(2))
    assert len(seen) == 2


@pytest.mark.parametrize("damage", ["memory_mib", "images_per_second", "trials"])
def test_what_cannot_be_in_the_cache_is_not_believed(
    pretend: Callable[..., list[Config]], cache: Path, damage: str
) -> None:
    seen = pretend(tried(100.0, 120.0))
    chosen(cells(2))
    content = json.loads(cache.read_text())
    (entry,) = content.values()
    wrong = {"memory_mib": math.inf, "trials": [], "images_per_second": -1.0}[damage]
    kept = entry["value"]
    (kept["trials"][0] if damage == "images_per_second" else kept)[damage] = wrong
    cache.write_text(json.dumps(content))
    chosen(cells(2))
    assert len(seen) == 2


def test_a_plan_without_probes_decides_nothing_that_was_not_tried(
    pretend: Callable[..., list[Config]],
) -> None:
    seen = pretend(tried(100.0, 120.0))
    found = choose(cells(2), [0, 0], TWO, measure=False)
    assert (found.cells, found.why, seen) == (
        None,
        "decided by a measurement when the sweep runs",
        [],
    )
    chosen(cells(2))
    assert chosen(cells(2), measure=False) == 2


def test_what_cannot_be_tried_runs_one_cell_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = choose(cells(2), [0, 0], replace(TWO, environment=dict(os.environ)))
    assert found.cells == 1
    assert (
        found.why
        == "1 cell: resnet8 ours c2 c3, 10 classes could not be tried (its process left with "
        "exit status 1)"
    )


def test_networks_far_too_slow_for_a_trial_run_one_at_a_time() -> None:
    found = choose(cells(2, "backbone=wrn28_10", "data.image_size=512"), [0, 0], TWO)
    assert found.cells == 1
    assert "could not be tried (its steps take too long)" in found.why


def test_data_that_is_not_there_leaves_it_undecided(tmp_path: Path) -> None:
    given = [
        replace(each, data=replace(each.data, source="parquet", root=str(tmp_path)))
        for each in cells(2)
    ]
    found = choose(given, [0, 0], TWO)
    assert found.cells is None
    assert "cannot be counted here" in found.why


# --- processes


def processes(device: str = "cpu", cores: int = 1) -> Processes:
    given = config(*SMALL, "recipe.batch_size=16", "device=cpu")
    given.device = device
    return Processes(given, 16, Division(cores, 0, environment(os.environ, Layout(1, 1, 1), 0)))


@pytest.mark.slow
def test_processes_take_steps_side_by_side_and_say_what_memory_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "SECONDS", 0.05)
    with processes() as running:
        found, need = side_by_side(running, [1, 2], free=1e6)
        pids = {process.pid for process, _ in running._running}
        assert len(pids) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert [(trial.cells, trial.threads) for trial in found] == [(1, 1), (2, 1)]
    assert all(trial.images_per_second > 0 for trial in found)
    assert 20 < need < 2000, "MiB"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "they have ended"


@pytest.mark.slow
def test_a_process_that_fails_says_why() -> None:
    """A device that is not there is noticed where the network is built."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrialError, match=r"device|CUDA|NVIDIA"), processes("cuda") as running:
        side_by_side(running, [1, 2], free=1e6)


@pytest.mark.parametrize(
    ("free", "numbers", "tried_numbers"),
    [
        (80_000.0, [1, 2, 4, 8, 16], [1, 2, 4, 8, 16]),
        (10_000.0, [1, 2, 4, 8], [1, 2, 4]),
        (3500.0, [1, 2, 4], [1]),
    ],
)
def test_on_a_gpu_a_second_process_says_what_one_takes(
    monkeypatch: pytest.MonkeyPatch, free: float, numbers: list[int], tried_numbers: list[int]
) -> None:
    """Of its memory each process takes 2000 MiB, until there is no more."""
    alive: list[int] = []

    def train(self: Processes, number: int, seconds: float) -> list[dict[str, float]]:
        while len(alive) < number:
            if free - 2000 * len(alive) < 2000:
                raise TrialError("out of memory")
            alive.append(1)
        left = free - 2000 * len(alive)
        return [{"free_mib": left, "memory_mib": 7.0, "images_per_second": 10.0}] * number

    monkeypatch.setattr(Processes, "train", train)
    with Processes(config(*SMALL), 16, Division(16, 1, {})) as running:
        found, need = side_by_side(running, numbers, free)
    assert ([trial.cells for trial in found], need) == (tried_numbers, 2000.0)
    rates = [trial.images_per_second for trial in found]
    assert rates == [10.0 * number for number in tried_numbers]


# --- the launcher


def decided(monkeypatch: pytest.MonkeyPatch, number: int | None) -> list[Division]:
    seen: list[Division] = []

    def pretended(cells: object, done: object, division: Division, measure: bool = True) -> Choice:
        seen.append(division)
        return Choice(number, "so it is")

    monkeypatch.setattr(packing, "choose", pretended)
    return seen


def test_the_launcher_runs_as_many_as_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    seen = decided(monkeypatch, 2)
    launcher = LocalLauncher("auto", 1)
    launcher.check()
    assert launcher.choose(cells(5), [0] * 5) == "slots=auto: so it is"
    assert launcher.slots_for(5) == 2
    assert launcher._layout(5, {"auto"}).threads == 4
    assert [(each.cores, each.gpus) for each in seen] == [(8, 0)]
    assert LocalLauncher(3, 1).choose(cells(5), [0] * 5) is None
    assert LocalLauncher("auto", 1).choose(cells(1), [0]) is None, "one cell has all threads"


def test_on_gpus_the_cells_of_each_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.setattr(local, "visible_gpus", lambda: ("3", "5"))
    seen = decided(monkeypatch, 4)
    launcher = LocalLauncher("auto", 1)
    launcher.choose(cells(20), [0] * 20)
    assert launcher.slots_for(20) == 8
    assert launcher._layout(20, {"auto"}) == Layout(8, 2, 16, ("3", "5"))
    assert (seen[0].gpus, seen[0].environment["CUDA_VISIBLE_DEVICES"]) == (2, "3")


def test_undecided_is_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    decided(monkeypatch, None)
    launcher = LocalLauncher("auto", 1)
    launcher.choose(cells(20), [0] * 20)
    assert launcher.slots_for(20) == LocalLauncher(None, 1).slots_for(20) == 8


@pytest.mark.parametrize("value", [2.5, True, "many", "0"])
def test_what_is_no_number_of_slots_is_refused(value: object) -> None:
    with pytest.raises(
        RequestError,
        match=rf"slots={value}: it must be a whole number of at least 1, auto, or null",
    ):
        LocalLauncher(value, 1).check()


@pytest.mark.slow
def test_a_sweep_says_how_many_cells_run_at_a_time_and_why(in_folder: Path) -> None:
    sweep = ("-m", *SMALL, "device=cpu", "tracking=off", "seed=1,2,3", "hydra.launcher.slots=auto")
    status, _, err = train(
        in_folder, *sweep, OMP_NUM_THREADS="2", XDG_CACHE_HOME=str(in_folder / "cache")
    )
    assert status == 0, err
    assert "slots=auto: trying 1 and 2 cells of resnet8 ours c2 c3, 10 classes side by side" in err
    (line,) = [
        line for line in err.splitlines() if line.startswith("slots=auto: ") and "images/s" in line
    ]
    threads = {
        json.loads(path.read_text())["attempts"][0]["threads"]
        for path in in_folder.glob("runs/*/record.json")
    }
    assert threads == ({1} if line.startswith("slots=auto: 2 cells") else {2})
