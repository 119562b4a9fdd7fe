"""What is told of a sweep before it runs, by earlier runs, measured steps or operations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dks.config.identity import cell_id, config_id
from dks.config.schema import Config, Data
from dks.machine.environment import host
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.sweeps.estimate import cache as caching
from dks.sweeps.estimate import forecast as forecasting
from dks.sweeps.estimate import measure as measuring
from dks.sweeps.estimate.cache import Cache
from dks.sweeps.estimate.forecast import Network, Range, forecast
from dks.sweeps.estimate.measure import Measured, measure
from dks.sweeps.estimate.text import duration, memory, network_label, text
from tests.conftest import config

# 2 steps an epoch: 64 and 36 images
SYNTHETIC = (
    "data=synthetic",
    "data.image_size=8",
    "data.train_images=100",
    "data.test_images=50",
    "data.pad=1",
    "threads=1",
)
EPOCH = 2 * 0.5 + 50 * 0.001  # seconds, as `probed` pretends


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, on a machine that does nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(forecasting, "is_busy", lambda: False)
    return tmp_path / "cache" / "dks" / "probes.json"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """No time is measured: every step takes half a second, every test image 1 ms.

    The list holds what was measured.
    """
    seen: list[Config] = []

    def pretend(given: Config, *_: object) -> Measured:
        seen.append(given)
        return Measured(0.5, 0.001, 300.0, scaled=False)

    monkeypatch.setattr(forecasting, "measure", pretend)
    return seen


@pytest.fixture
def given() -> Config:
    return config("backbone=resnet8", *SYNTHETIC, "recipe.epochs=4")


def only(cells: list[Config], runs: Path, **options: Any) -> Network:
    (network,) = forecast(cells, runs, **options).networks
    return network


def finished(runs: Path, given: Config, **cost: float) -> Record:
    """The folder of a run that ended on this machine, with that cost in its record."""
    folder = RunFolder(runs / cell_id(given))
    folder.path.mkdir(parents=True)
    folder.write_config(given)
    attempt = Attempt(started="", host=host(), pid=1, device="cpu", threads=1, status="done")
    ids = cell_id(given), config_id(given)
    record = Record(*ids, given.seed, "dks", {}, "", [], status=Status.done, attempts=[attempt])
    record.cost = {"parameters": 719_534, **cost}  # of ResNet-8 with its two branches
    folder.write_record(record)
    return record


# What is added up


def test_the_total_is_steps_times_their_seconds_and_the_evaluations(
    tmp_path: Path, probed: list[Config], given: Config
) -> None:
    told = forecast([given, replace(given, seed=1)], tmp_path, processes=4)
    assert told.seconds.estimate == pytest.approx(2 * 4 * (2 * 0.5 + 50 / 4 * 0.001))
    assert told.wall == told.seconds
    assert told.device_hours.estimate == pytest.approx(told.seconds.estimate * 4 / 3600)
    (network,) = told.networks
    assert network.speed is not None
    assert (len(network.cells), network.steps) == (2, 16)
    assert (network.speed.source, network.speed.memory_mib) == ("probe", 300.0)
    for each in (told.seconds, told.wall, told.device_hours, network.seconds):
        assert each is not None
        assert 0 < each.low < each.estimate < each.high


def test_slots_share_the_cells_in_their_order_and_epochs_that_are_done_do_not_count(
    tmp_path: Path, probed: list[Config], given: Config
) -> None:
    def wall(*epochs: int, **options: Any) -> float:
        cells = [replace(given, recipe=replace(given.recipe, epochs=each)) for each in epochs]
        return forecast(cells, tmp_path, slots=2, **options).wall.estimate / EPOCH

    assert wall(1, 1, 10) == pytest.approx(11)
    assert wall(10, 1, 1) == pytest.approx(10)
    assert wall(10, 1, 1, done_epochs=[7, 0, 0]) == pytest.approx(3)
    assert len(probed) == 1, "it is one network"


def test_ten_thousand_cells_of_two_networks_are_looked_at_twice(
    tmp_path: Path, probed: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Config] = []
    count = forecasting.flops
    monkeypatch.setattr(forecasting, "flops", lambda each: looked.append(each) or count(each))
    two = [config(f"backbone={name}", *SYNTHETIC) for name in ("resnet8", "resnet20")]
    cells = [replace(given, seed=seed) for seed in range(5_000) for given in two]
    told = forecast(cells, tmp_path, slots=8)
    assert told.cells == 10_000
    assert len(looked) == len(probed) == len(told.networks) == 2


def test_data_that_is_not_there_is_left_out_of_the_total_and_named(
    tmp_path: Path, probed: list[Config], given: Config
) -> None:
    absent = replace(given, data=Data(source="parquet", root="nowhere", num_classes=10))
    told = forecast([given, absent, absent], tmp_path)
    assert told.cells == 1
    assert told.seconds.estimate == pytest.approx(4 * EPOCH)
    assert "2 cells of resnet8 ours c2 c3, 10 classes" in str(told)
    assert "data.root=nowhere" in str(told)


def test_no_cells_take_no_time(tmp_path: Path) -> None:
    told = forecast([], tmp_path)
    assert told.seconds == told.wall == Range(0, 0, 0)
    assert text(told) == "forecast: none"


# Earlier runs


def test_earlier_runs_on_this_machine_count_before_measurements(
    tmp_path: Path, probed: list[Config], given: Config
) -> None:
    finished(
        tmp_path,
        replace(given, seed=7),
        images_per_second=50.0,
        seconds_per_epoch=2.5,
        peak_memory_mib=77.0,
    )
    (tmp_path / "0123456789ab").mkdir()
    (tmp_path / "0123456789ab" / "record.json").write_text("{")  # a damaged one is passed over
    network = only([given], tmp_path)
    assert (probed, network.speed and network.speed.source) == ([], "earlier")
    assert network.speed is not None and network.seconds is not None
    assert network.speed.memory_mib == 77.0
    assert network.speed.seconds_per_step == pytest.approx(1.0)  # 100 images in 2 steps
    assert network.seconds.estimate == pytest.approx(4 * 2.5)


def test_of_several_earlier_runs_the_middle_is_taken_and_the_spread_told(
    tmp_path: Path, given: Config
) -> None:
    for seed, speed in ((1, 100.0), (2, 50.0), (3, 20.0)):
        # as a record of an early version, without the seconds of an epoch
        cost = {"images_per_second": speed, "seconds": 400 / speed}
        finished(tmp_path, replace(given, seed=seed), **cost)
    step = only([given], tmp_path).seconds_per_step
    assert step is not None
    assert (step.estimate, step.high) == pytest.approx((1.0, 2.5))


def unfinished(record: Record) -> None:
    record.status = Status.killed


def elsewhere(record: Record) -> None:
    record.attempts[-1].host = "another-machine"


def with_more_threads(record: Record) -> None:
    record.attempts[-1].threads = 2


@pytest.mark.parametrize("change", [unfinished, elsewhere, with_more_threads])
def test_earlier_runs_under_other_conditions_do_not_count(
    change: Callable[[Record], None], tmp_path: Path, probed: list[Config], given: Config
) -> None:
    record = finished(tmp_path, given, images_per_second=50.0, seconds_per_epoch=2.5)
    change(record)
    RunFolder(tmp_path / record.cell_id).write_record(record)
    assert only([given], tmp_path) and len(probed) == 1


def test_another_precision_or_batch_is_another_speed(
    tmp_path: Path, probed: list[Config], given: Config
) -> None:
    bf16 = config("backbone=resnet8", "compute.precision=bf16", *SYNTHETIC)
    larger = replace(given, recipe=replace(given.recipe, batch_size=100))
    finished(tmp_path, given, images_per_second=1000.0)
    told = forecast([given, bf16, larger], tmp_path).networks
    assert [each.speed and each.speed.source for each in told] == ["earlier", "probe", "probe"]
    assert network_label(bf16) == "resnet8 ours c2 c3, 10 classes, precision=bf16"


# Measured steps


@pytest.mark.slow
def test_steps_are_measured_and_everything_is_as_it_was(in_folder: Path, given: Config) -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    measured = measure(given, 0.5, threads=threads + 1)
    assert measured is not None
    assert 0 < measured.seconds_per_test_image < measured.seconds_per_step
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not list(in_folder.iterdir())


@pytest.mark.slow
def test_a_teacher_is_measured_as_well_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    built: list[torch.nn.Module | None] = []
    step = measuring.Step
    monkeypatch.setattr(measuring, "Step", lambda *given: built.append(given[3]) or step(*given))
    data = (*SYNTHETIC, "data.num_classes=1000", "recipe.batch_size=8")
    given = config("backbone=resnet8", "method=kd_c1", "teacher=resnet50", *data)
    assert measure(given, 1.0, threads=1) is not None
    (teacher,) = built
    assert teacher is not None and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("batch", "seconds", "step", "scaled"),
    [
        # 0.2 s and 0.1 s an image; a step may take 0.15 of the time
        (64, 100.0, 0.2 + 64 * 0.1, False),
        (64, 10.0, 0.2 + 64 * 0.1, True),  # of 7 images, on the line through those of 2
        (64, 0.1, 64 * 0.2, True),  # 2 images, as if all of it were theirs
    ],
)
def test_a_whole_batch_is_on_the_line_through_smaller_ones(
    batch: int,
    seconds: float,
    step: float,
    scaled: bool,
    monkeypatch: pytest.MonkeyPatch,
    given: Config,
) -> None:
    now = [0.0]

    def train(self: object, count: int, steps: int = 1) -> float:
        now[0] += steps * (0.2 + 0.1 * count)
        return 0.2 + 0.1 * count

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measuring.Trainee, "train", train)
    monkeypatch.setattr(measuring.Trainee, "test", lambda self, count: 0.01)
    given = replace(given, recipe=replace(given.recipe, batch_size=batch))
    measured = measure(given, seconds, threads=1)
    assert measured is not None
    assert (measured.seconds_per_step, measured.scaled) == (pytest.approx(step), scaled)
    assert (measured.memory_mib is None) is scaled


def test_what_is_not_measured_is_told_from_its_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller network reaches 2 operations a second for each of its own a step."""
    small, large = config("backbone=resnet8", *SYNTHETIC), config("backbone=resnet20", *SYNTHETIC)

    def cannot(given: Config, *_: object) -> Measured | None:
        return Measured(0.5, 0.001, None, True) if given.backbone.depth == 8 else None

    monkeypatch.setattr(forecasting, "measure", cannot)
    first, second = forecast([small, large], tmp_path).networks
    assert first.speed is not None and second.speed is not None
    assert (first.speed.source, second.speed.source) == ("probe", "flops")
    assert second.speed.seconds_per_step == pytest.approx(
        0.5 * second.flops_per_step / first.flops_per_step
    )
    assert second.speed.factor == 2.5


def test_a_network_far_beyond_the_time_is_not_built(tmp_path: Path, probed: list[Config]) -> None:
    cells = [config(f"backbone={name}", *SYNTHETIC) for name in ("resnet8", "wrn28_10")]
    told = forecast(cells, tmp_path).networks
    assert [each.speed and each.speed.source for each in told] == ["probe", "flops"]
    assert [each.backbone.depth for each in probed] == [8]


def test_without_time_nothing_is_told_but_operations(tmp_path: Path, given: Config) -> None:
    told = forecast([given], tmp_path, budget_seconds=0)
    (network,) = told.to_dict()["networks"]
    assert (told.cells, network["steps"], network["seconds"]) == (0, 8, None)
    assert network["flops_per_step"] > 0
    assert "--probe" in network["problem"]


def test_less_certain_measurements_have_a_wider_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Config, own_cache: Path
) -> None:
    def width(scaled: bool, busy: bool) -> float:
        monkeypatch.setattr(forecasting, "is_busy", lambda: busy)
        monkeypatch.setattr(forecasting, "measure", lambda *_: Measured(0.5, 0.001, None, scaled))
        told = forecast([given], tmp_path)
        assert own_cache.exists() is not busy, "it is kept"
        own_cache.unlink(missing_ok=True)
        assert told.busy is busy and ("other programs" in str(told)) is busy
        return told.seconds.high / told.seconds.estimate

    assert width(False, False) == pytest.approx(1.25)
    assert width(True, False) == pytest.approx(1.75)
    assert width(False, True) == pytest.approx(2.5)


@pytest.mark.slow
def test_a_forecast_by_measured_steps_agrees_with_a_run(tmp_path: Path) -> None:
    from tests.conftest import finished_run

    images = ("data.image_size=16", "data.train_images=2000", "data.test_images=500")
    run = finished_run(tmp_path, *images, "recipe.epochs=3", "recipe.batch_size=64")
    record = run.read_record()
    assert record is not None
    told = forecast([run.read_config()], tmp_path / "none")
    assert told.seconds.estimate / 5 < record.cost["seconds"] < told.seconds.estimate * 5


# What is kept


def test_measurements_are_kept_for_a_week(
    tmp_path: Path, probed: list[Config], own_cache: Path, given: Config, monkeypatch: Any
) -> None:
    first = forecast([given], tmp_path)
    assert [path.name for path in own_cache.parent.iterdir()] == ["probes.json"]
    assert forecast([given], tmp_path).seconds == first.seconds
    assert len(probed) == 1
    forecast([replace(given, threads=2)], tmp_path)
    assert len(probed) == 2, "another machine, as far as speed goes"
    now = caching.time.time()
    monkeypatch.setattr(caching.time, "time", lambda: now + 8 * 24 * 3600)
    forecast([given], tmp_path)
    assert len(probed) == 3


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"name": 3}', '{"name": {"time": 0}}', "\udc80"]
    + [{"seconds_per_step": wrong} for wrong in (-1.0, 0.0, math.nan, math.inf, "fast")],
)
def test_a_damaged_cache_is_an_empty_one(
    content: Any, own_cache: Path, tmp_path: Path, probed: list[Config], given: Config
) -> None:
    forecast([given], tmp_path)
    if isinstance(content, dict):
        kept = json.loads(own_cache.read_text())
        next(iter(kept.values()))["value"].update(content)
        content = json.dumps(kept)
    own_cache.write_bytes(content.encode("utf-8", "surrogateescape"))
    for _ in range(2):
        forecast([given], tmp_path)
    assert len(probed) == 2


def test_a_cache_that_cannot_be_written_is_no_obstacle(own_cache: Path) -> None:
    own_cache.parent.parent.write_text("a file where a folder should be")
    cache = Cache("probes.json")
    cache.put("key", 1)
    assert cache.get("key", int) is None


# For people and for programs


def test_the_text_has_the_total_in_its_first_line_and_a_unit_with_every_number(
    tmp_path: Path, probed: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "_rate", lambda networks: 0.0)  # both are measured
    cells = [
        config(f"backbone={name}", *SYNTHETIC, "recipe.epochs=20")
        for name in ("resnet8", "resnet20")
    ]
    first, head, *rest = str(forecast(cells, tmp_path, slots=2)).splitlines()
    assert first == (
        "forecast: 42 s (34 s to 52 s) for 2 cells one after another; 21 s (17 s to 26 s) with 2 "
        "at a time; 0.012 device-hours; on cpu, 1 thread"
    )
    assert " ".join(head.split()) == (
        "network cells time steps batch time of a step memory parameters forward step from"
    )
    (row,) = [line for line in rest if line.lstrip().startswith("resnet8 ours c2 c3")]
    for shown in (
        "500 ms (400 ms to 625 ms)",
        "64 of 8x8",
        "300 MiB",
        "0.075/0.72 M",
        "0.0015 GFLOPs",
        "1.4 GFLOPs",
        "probe",
    ):
        assert shown in row


def test_the_json_form_names_its_units(tmp_path: Path, probed: list[Config], given: Config) -> None:
    values = json.loads(json.dumps(forecast([given], tmp_path).to_dict()))
    keys = "cells seconds wall_seconds device_hours slots processes machine busy networks"
    assert list(values) == keys.split()
    assert values["seconds"].keys() == {"low", "estimate", "high"}
    (network,) = values["networks"]
    assert list(network) == [
        "network",
        "cells",
        "steps",
        "batch_size",
        "image_size",
        "seconds_per_step",
        "seconds",
        "peak_memory_mib",
        "parameters",
        "training_parameters",
        "flops_inference_per_image",
        "flops_forward_per_image",
        "flops_per_step",
        "source",
        "problem",
    ]
    assert (network["batch_size"], network["image_size"]) == (64, [8, 8])
    assert network["seconds_per_step"]["estimate"] == 0.5
    assert (network["peak_memory_mib"], network["source"]) == (300, "probe")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "12 ms"),
        (0.5, "500 ms"),
        (4.21, "4.2 s"),
        (45, "45 s"),
        (59.7, "1 min"),
        (720, "12 min"),
        (3599, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (4_500_000, "1,250 h"),
    ],
)
def test_numbers_are_said_with_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said
    assert (memory(120.4), memory(4000)) == ("120 MiB", "3.9 GiB")


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (("backbone=resnet32", "method=baseline"), "resnet32, 10 classes"),
        (("backbone=wrn28_10_dropout", "aux=narrow"), "wrn28_10_dropout narrow c2 c3, 10 classes"),
        (("backbone=densenet40_12",), "densenet40_12 ours c2 c3, 10 classes"),
        (("backbone=mobilenet", "positions=c2"), "mobilenet ours c2, 10 classes"),
    ],
)
def test_networks_are_called_as_on_the_command_line(overrides: tuple[str, ...], label: str) -> None:
    assert network_label(config(*SYNTHETIC, *overrides)) == label
