"""What networks cost, and what is told of a sweep before it runs."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dks.sweeps.estimate.probe import Probe, convolution_rate, probe, whole_batch
from dks.sweeps.estimate.speeds import Source

from dks.config.identity import cell_id, config_id
from dks.config.schema import Config, Data
from dks.data.sizes import image_size, images
from dks.machine.environment import host
from dks.machine.memory import PeakMemory
from dks.models import build_network
from dks.objectives.objective import Objective
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.sweeps.estimate import cache as caching
from dks.sweeps.estimate import forecast as forecasting
from dks.sweeps.estimate import probe as probing
from dks.sweeps.estimate import speeds
from dks.sweeps.estimate.cache import ProbeCache
from dks.sweeps.estimate.forecast import Range, forecast
from dks.sweeps.estimate.text import duration, memory, network_label, text
from dks.training import flops as counting
from dks.training.flops import flops
from tests.conftest import config

SYNTHETIC = (
    "data=synthetic",
    "data.image_size=8",
    "data.train_images=100",
    "data.test_images=50",
    "data.pad=1",
    "threads=1",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of probes of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dks" / "probes.json"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """No time is measured: every probe says half a second a step and 1 ms a test image.

    The list holds what was probed.
    """
    seen: list[Config] = []

    def pretend(given: Config, *_: object) -> Probe:
        seen.append(given)
        return fake_probe()

    monkeypatch.setattr(speeds, "probe", pretend)
    return seen


def fake_probe(**changes: Any) -> Probe:
    whole = Probe(
        seconds_per_step=0.5,
        seconds_per_test_image=0.001,
        spread=0.02,
        steps=20,
        batch_size=64,
        scaled=False,
        peak_memory_mib=300.0,
        flops_per_second=1e10,
        busy=False,
    )
    return dataclasses.replace(whole, **changes)


def finished(runs: Path, given: Config, **cost: float) -> Record:
    """The folder of a run that ended on this machine, with that cost in its record."""
    folder = RunFolder(runs / cell_id(given))
    folder.path.mkdir(parents=True)
    folder.write_config(given)
    attempt = Attempt(started="", host=host(), pid=1, device="cpu", threads=1, status="done")
    record = Record(
        cell_id(given),
        config_id(given),
        given.seed,
        "dks",
        {},
        "",
        [],
        status=Status.done,
        attempts=[attempt],
    )
    record.cost = {"parameters": flops(given).training_parameters, **cost}
    folder.write_record(record)
    return record


# Operations and parameters


def test_flops_of_a_convolutional_network_are_those_computed_by_hand() -> None:
    plain = flops(config("backbone=resnet8", "method=baseline", *SYNTHETIC))
    stem = 2 * 3 * 16 * 9 * 64  # of 8x8 pixels, two operations each
    stage1 = 2 * (2 * 16 * 16 * 9 * 64)
    stage2 = 2 * (16 + 32) * 32 * 9 * 16
    stage3 = 2 * (32 + 64) * 64 * 9 * 4
    classifier = 2 * 64 * 10
    forward = stem + stage1 + stage2 + stage3 + classifier
    assert plain.inference == plain.forward == forward
    # Backward: the gradient of the weights and that of the input each cost what forward does, and
    #     the images need none.
    assert plain.step == 3 * forward - stem


def test_activations_are_what_the_convolutions_and_activation_functions_keep() -> None:
    def kept(*overrides: str) -> int:
        return flops(
            config("backbone=resnet8", "method=baseline", *SYNTHETIC, *overrides)
        ).activations

    image, stages, features = 3 * 64, 16 * 64 + 2 * (16 * 64 + 32 * 16 + 64 * 4), 64
    assert kept() == pytest.approx(4 * (image + stages + features), rel=0.15)
    assert kept("data.image_size=16") == pytest.approx(4 * kept(), rel=0.12)
    assert kept("backbone.activation_checkpointing=true") < 0.7 * kept()


@pytest.mark.slow
def test_activations_of_folded_blocks_are_those_of_all() -> None:
    """Beyond the blocks that differ, each of ResNet-1202's takes what each of ResNet-110's does."""
    shallow, deep = (
        flops(
            config(
                f"backbone={name}",
                "method=baseline",
                "backbone.activation_checkpointing=false",
                *SYNTHETIC,
            )
        ).activations
        for name in ("resnet110", "resnet1202")
    )
    assert deep - shallow == pytest.approx((1202 - 110) / (110 - 2) * shallow, rel=0.1)


def test_flops_of_resnet18_are_twice_its_published_multiplications_and_additions() -> None:
    given = config(
        "backbone=resnet18", "data=synthetic", "data.image_size=224", "data.num_classes=1000"
    )
    counted = flops(given)
    # torchvision's table of weights
    assert counted.inference == pytest.approx(2 * 1.814e9, rel=1e-3)
    assert (counted.parameters, counted.training_parameters) == (11_689_512, 53_483_512)


def test_a_step_of_resnet32_with_branches_is_about_three_forward_passes() -> None:
    counted = flops(config("backbone=resnet32", "data=synthetic", "data.num_classes=100"))
    assert (counted.parameters, counted.training_parameters) == (470_004, 2_147_644)
    assert counted.inference < counted.forward
    assert counted.step == pytest.approx(3 * counted.forward, rel=0.01)


def test_a_step_of_mobilenet_is_about_three_forward_passes() -> None:
    counted = flops(
        config("backbone=mobilenet", "method=baseline", "data=synthetic", "data.num_classes=100")
    )
    assert counted.step == pytest.approx(3 * counted.forward, rel=0.01)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("layer", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_the_gradients_of_a_convolution_cost_what_it_costs_itself_however_its_channels_are_grouped(
    layer: type[torch.nn.Conv2d], groups: int
) -> None:
    convolution = layer(8, 16, 3, stride=2, padding=1, groups=groups, bias=False).to("meta")
    with counting.counter() as counter:
        output = convolution(torch.empty(4, 8, 6, 6, device="meta", requires_grad=True))
        forward = counter.get_total_flops()
        output.sum().backward()
    positions = 6 * 6 if layer is torch.nn.ConvTranspose2d else 3 * 3
    assert forward == 2 * 4 * positions * 9 * 8 * 16 // groups
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize(
    "backbone",
    [
        ("backbone=resnet32",),
        ("backbone=densenet40_12", "backbone.depth=13"),
        ("backbone=wrn28_4", "backbone.width=1"),
        ("backbone=mobilenet",),
        ("backbone=resnet50", "data.image_size=64"),
        ("backbone=resnet32", "method=single", "positions=c2"),
        ("backbone=resnet20", "aux=ap_conv_2fc", "positions=c3"),
    ],
)
def test_flops_agree_with_the_counter_run_over_the_whole_network(
    backbone: tuple[str, ...], checkpointing: str
) -> None:
    given = config(*SYNTHETIC, *backbone, f"backbone.activation_checkpointing={checkpointing}")
    with torch.device("meta"):
        network = build_network(given, initialise=False)
        image = torch.empty(1, 3, *(image_size(given.data) or ()))
        label = torch.zeros(1, dtype=torch.int64)
    with counting.counter() as counter:
        logits = network.train()(image)
        forward = counter.get_total_flops()
        Objective(given, None)(logits, label, []).total.backward()
    counted = flops(given)
    assert (counted.forward, counted.step) == (forward, counter.get_total_flops())
    with torch.no_grad(), counting.counter() as counter:
        network.strip().eval()(image)
    assert counted.inference == counter.get_total_flops()


def test_flops_of_resnet1202_are_those_of_all_its_layers_and_of_what_is_computed_again() -> None:
    counted = flops(config("backbone=resnet1202", "data=synthetic", "data.num_classes=100"))
    # As the counter says after a minute of the whole network.
    assert (counted.inference, counted.forward, counted.step) == (
        5_658_489_344,
        6_625_877_504,
        26_501_650_944,
    )
    assert counted.parameters == 19_427_124


def test_a_step_includes_the_teachers_forward_pass() -> None:
    data = ("data=synthetic", "data.num_classes=1000", "threads=1")
    alone = flops(config("backbone=resnet8", "method=baseline", *data))
    taught = flops(config("backbone=resnet8", "method=kd_c1", "teacher=resnet50", *data))
    # as it was trained
    teacher = flops(config("backbone=resnet50", "method=baseline", *data, "data.image_size=224"))
    assert taught.step - alone.step == teacher.inference
    assert taught.training_parameters == alone.training_parameters


def test_counting_leaves_the_random_state_alone() -> None:
    counting._counted.clear()
    before = torch.get_rng_state()
    flops(config("backbone=resnet8", *SYNTHETIC))
    assert torch.equal(before, torch.get_rng_state())


# Images


def test_images_of_sources_of_a_fixed_size_are_known_without_their_files() -> None:
    assert images(Data(source="cifar10")) == images(Data(source="cifar100")) == (50_000, 10_000)
    assert images(Data(source="imagenet")) == (1_281_167, 50_000)
    assert images(Data(source="synthetic", train_images=7, test_images=3)) == (7, 3)
    assert image_size(Data(source="cifar10")) == (32, 32)


def test_images_of_the_digits_are_as_many_as_are_loaded() -> None:
    from dks import data

    train, test = data.load(given := config().data)
    assert images(given) == (len(train), len(test))
    assert image_size(given) == tuple(train.images.shape[-2:])  # type: ignore[union-attr]


def test_held_out_images_are_evaluated_and_not_trained_on() -> None:
    assert images(Data(source="cifar10", holdout=5_000)) == (45_000, 15_000)


def test_images_in_parquet_files_are_counted(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    encoded = io.BytesIO()
    Image.new("RGB", (12, 10)).save(encoded, "png")
    for name, count in (("train-0", 4), ("train-1", 3), ("test-0", 2)):
        rows = {"image": [{"bytes": encoded.getvalue(), "path": ""}] * count, "label": [0] * count}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    given = Data(source="parquet", root=str(tmp_path))
    assert images(given) == (7, 2)
    assert image_size(given) == (10, 12)


def test_images_in_folders_are_counted(tmp_path: Path) -> None:
    from PIL import Image

    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / split / "cat").mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (6, 5)).save(tmp_path / split / "cat" / f"{number}.png")
        (tmp_path / split / "cat" / "notes.txt").write_text("no image")
    given = Data(source="imagefolder", root=str(tmp_path))
    assert images(given) == (3, 2)
    assert image_size(given) == (5, 6)


@pytest.mark.parametrize("source", ["parquet", "imagefolder"])
def test_images_that_are_not_there_are_not_guessed(source: str, tmp_path: Path) -> None:
    given = Data(source=source, root=str(tmp_path / "nothing"))
    assert images(given) is None
    assert image_size(given) is None


# Probes


@pytest.mark.slow
def test_a_probe_measures_steps_and_leaves_everything_as_it_was(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whatever else this machine does now
    monkeypatch.setattr(probing, "convolution_rate", lambda *_: 1e12)
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    given = config("backbone=resnet8", *SYNTHETIC)
    measured = probe(given, 0.3, threads=threads + 1)
    assert measured is not None
    assert measured.seconds_per_step > 0
    assert 0 < measured.seconds_per_test_image < measured.seconds_per_step
    assert measured.steps >= 1
    assert measured.flops_per_second > 0
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not list(in_folder.iterdir())


@pytest.mark.slow
def test_a_probe_takes_a_teacher_along_and_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    built: list[torch.nn.Module | None] = []
    step = probing.Step
    monkeypatch.setattr(probing, "Step", lambda *given: built.append(given[3]) or step(*given))
    # whatever else this machine does now
    monkeypatch.setattr(probing, "convolution_rate", lambda *_: 1e12)
    data = (*SYNTHETIC, "data.num_classes=1000", "recipe.batch_size=8")
    assert (
        probe(config("backbone=resnet8", "method=kd_c1", "teacher=resnet50", *data), 1.0, threads=1)
        is not None
    )
    assert built[-1] is not None
    assert not built[-1].training
    assert not any(parameter.requires_grad for parameter in built[-1].parameters())


def test_networks_far_beyond_the_budget_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    given = config("backbone=wrn28_10", "data=synthetic", "threads=1")
    flops(given)
    monkeypatch.setattr(probing, "build_network", lambda *_, **__: pytest.fail("it was built"))
    monkeypatch.setattr(probing, "convolution_rate", lambda *_: 1e11)
    assert probe(given, 0.5, threads=1) is None


def test_a_network_that_may_not_fit_into_memory_is_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    needed = 3 * 4 * flops(given).training_parameters
    monkeypatch.setattr(probing, "build_network", lambda *_, **__: pytest.fail("it was built"))
    monkeypatch.setattr(probing, "free_memory", lambda _: 2 * needed - 1)
    assert probe(given, 1.0, threads=1) is None


def test_a_whole_batch_is_on_the_line_through_smaller_ones() -> None:
    assert whole_batch(64, seconds=3.0, count=8, smaller=2.0) == pytest.approx(3.0 + 0.25 * 56)
    assert whole_batch(64, seconds=3.0, count=64, smaller=0.0) == 3.0
    # Measurements that make no sense as a line stay between proportional growth and a third of it.
    assert whole_batch(64, seconds=3.0, count=8, smaller=9.0) == pytest.approx(
        3.0 + 0.3 * 3 / 8 * 56
    )
    assert whole_batch(64, seconds=3.0, count=8, smaller=0.1) == pytest.approx(3.0 / 8 * 64)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say")
def test_peak_memory_counts_what_was_used_in_between_and_freed() -> None:
    peak = PeakMemory(torch.device("cpu"))
    held = torch.ones(50 * 2**20, dtype=torch.uint8)
    del held
    assert 45 < (peak.mib() or 0) < 150
    assert (PeakMemory(torch.device("cpu")).mib() or 0) < 20


def test_convolutions_are_measured_once() -> None:
    device = torch.device("cpu")
    probing._rates.clear()
    first = convolution_rate(device, 1, seconds=0.01)
    assert first > 0
    assert convolution_rate(device, 1) == first


# Forecasts


def test_the_total_is_steps_times_their_seconds_and_the_evaluations(
    tmp_path: Path, probed: list[Config]
) -> None:
    # 2 steps an epoch: 64 and 36 images
    given = config("backbone=resnet8", *SYNTHETIC, "recipe.epochs=3")
    told = forecast([given, dataclasses.replace(given, seed=1)], tmp_path)
    one = 3 * (2 * 0.5 + 50 * 0.001)
    assert told.seconds.estimate == pytest.approx(2 * one)
    assert told.wall.estimate == pytest.approx(2 * one)
    assert told.device_hours.estimate == pytest.approx(2 * one / 3600)
    (line,) = told.lines
    assert (line.cells, line.steps, line.source) == (2, 12, Source.probe)
    assert line.memory_mib == 300
    assert line.flops == flops(given)


def test_low_estimate_and_high_are_in_order(tmp_path: Path, probed: list[Config]) -> None:
    cells = [config(f"backbone={name}", *SYNTHETIC) for name in ("resnet8", "resnet20")]
    told = forecast(cells, tmp_path, slots=2)
    for each in (
        told.seconds,
        told.wall,
        told.device_hours,
        *(line.seconds for line in told.lines),
    ):
        assert each is not None
        assert 0 < each.low < each.estimate < each.high


def test_slots_share_the_cells_in_their_order(tmp_path: Path, probed: list[Config]) -> None:
    short = config("backbone=resnet8", *SYNTHETIC, "recipe.epochs=1")
    long = dataclasses.replace(short, recipe=dataclasses.replace(short.recipe, epochs=10))
    epoch = 2 * 0.5 + 50 * 0.001
    assert forecast([short, short, long], tmp_path, slots=2).wall.estimate == pytest.approx(
        11 * epoch
    )
    assert forecast([long, short, short], tmp_path, slots=2).wall.estimate == pytest.approx(
        10 * epoch
    )


def test_epochs_that_are_done_are_not_forecast(tmp_path: Path, probed: list[Config]) -> None:
    given = config("backbone=resnet8", *SYNTHETIC, "recipe.epochs=4")
    whole = forecast([given], tmp_path).seconds.estimate
    assert forecast([given], tmp_path, done_epochs=[3]).seconds.estimate == pytest.approx(whole / 4)
    assert forecast([given, given], tmp_path, done_epochs=[4, 0]).seconds.estimate == pytest.approx(
        whole
    )


def test_processes_cost_device_hours_each(tmp_path: Path, probed: list[Config]) -> None:
    told = forecast([config("backbone=resnet8", *SYNTHETIC)], tmp_path, processes=4)
    assert told.device_hours.estimate == pytest.approx(told.seconds.estimate * 4 / 3600)


def test_earlier_runs_on_this_machine_count_before_probes(
    tmp_path: Path, probed: list[Config]
) -> None:
    given = config("backbone=resnet8", *SYNTHETIC, "recipe.epochs=3")
    finished(
        tmp_path,
        dataclasses.replace(given, seed=7),
        images_per_second=50.0,
        seconds_per_epoch=2.5,
        peak_memory_mib=77.0,
    )
    told = forecast([given], tmp_path)
    assert probed == []
    (line,) = told.lines
    assert (line.source, line.memory_mib) == (Source.earlier, 77.0)
    assert line.seconds_per_step is not None
    assert line.seconds_per_step.estimate == pytest.approx(1.0)  # 100 images in 2 steps
    assert told.seconds.estimate == pytest.approx(3 * 2.5)


def test_of_several_earlier_runs_the_middle_is_taken_and_the_spread_told(
    tmp_path: Path, probed: list[Config]
) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    for seed, speed in ((1, 100.0), (2, 50.0), (3, 20.0)):
        finished(
            tmp_path,
            dataclasses.replace(given, seed=seed),
            images_per_second=speed,
            seconds_per_epoch=100 / speed,
        )
    (line,) = forecast([given], tmp_path).lines
    assert line.seconds_per_step is not None
    assert line.seconds_per_step.estimate == pytest.approx(1.0)
    assert line.seconds_per_step.high >= 2.5


def test_records_without_the_newer_keys_serve_as_well(tmp_path: Path, probed: list[Config]) -> None:
    given = config("backbone=resnet8", *SYNTHETIC, "recipe.epochs=3")
    finished(tmp_path, dataclasses.replace(given, seed=7), images_per_second=50.0, seconds=9.0)
    told = forecast([given], tmp_path)
    assert told.lines[0].source is Source.earlier
    assert told.seconds.estimate == pytest.approx(9.0)


def unfinished(record: Record) -> None:
    record.status = Status.killed


def elsewhere(record: Record) -> None:
    record.attempts[-1].host = "another-machine"


def with_more_threads(record: Record) -> None:
    record.attempts[-1].threads = 2


def with_larger_batches(record: Record) -> None:
    pass  # see below: its configuration differs


@pytest.mark.parametrize("change", [unfinished, elsewhere, with_more_threads, with_larger_batches])
def test_earlier_runs_under_other_conditions_do_not_count(
    change: Callable[[Record], None], tmp_path: Path, probed: list[Config]
) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    other = given
    if change is with_larger_batches:
        other = dataclasses.replace(given, recipe=dataclasses.replace(given.recipe, batch_size=100))
    record = finished(tmp_path, other, images_per_second=50.0, seconds_per_epoch=2.5)
    change(record)
    RunFolder(tmp_path / record.cell_id).write_record(record)
    assert forecast([given], tmp_path).lines[0].source is Source.probe


def test_a_network_in_another_precision_is_another_speed(
    tmp_path: Path, probed: list[Config]
) -> None:
    cells = [
        config("backbone=resnet8", f"compute.precision={way}", *SYNTHETIC)
        for way in ("fp32", "bf16")
    ]
    finished(tmp_path, cells[0], images_per_second=1000.0)
    told = forecast(cells, tmp_path, budget_seconds=5)
    assert [(line.network, line.source) for line in told.lines] == [
        ("resnet8 ours c2 c3, 10 classes", Source.earlier),
        ("resnet8 ours c2 c3, 10 classes, precision=bf16", Source.probe),
    ]
    assert [each.compute.precision.value for each in probed] == ["bf16"]


def test_damaged_records_are_passed_over(tmp_path: Path, probed: list[Config]) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    (tmp_path / "0123456789ab").mkdir()
    (tmp_path / "0123456789ab" / "record.json").write_text("{")
    assert forecast([given], tmp_path).lines[0].source is Source.probe


def test_only_the_newest_records_are_read(
    tmp_path: Path, probed: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, read = config("backbone=resnet8", *SYNTHETIC), []
    for seed in range(4):
        finished(
            tmp_path,
            dataclasses.replace(given, seed=seed + 1),
            images_per_second=50.0,
            seconds_per_epoch=2.5,
        )
    record = RunFolder.read_record
    monkeypatch.setattr(
        RunFolder, "read_record", lambda folder: read.append(folder) or record(folder)
    )
    monkeypatch.setattr(speeds, "NEWEST", 2)
    forecast([given], tmp_path)
    assert len(read) == 2


def test_what_cannot_be_probed_is_taken_from_its_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "convolution_rate", lambda *_: 1e9)
    given = config("backbone=resnet8", *SYNTHETIC)
    told = forecast([given], tmp_path, budget_seconds=0)
    (line,) = told.lines
    assert line.source is Source.flops
    assert line.seconds_per_step is not None
    assert line.seconds_per_step.estimate == pytest.approx(
        64 * flops(given).step / (speeds.RATE_REACHED * 1e9)
    )
    assert line.seconds_per_step.high == pytest.approx(3 * line.seconds_per_step.estimate)


def test_the_rate_of_probed_networks_serves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = config("backbone=resnet8", *SYNTHETIC), config("backbone=resnet20", *SYNTHETIC)
    monkeypatch.setattr(
        speeds,
        "probe",
        lambda given, *_: fake_probe(flops_per_second=2e9) if given.backbone.depth == 8 else None,
    )
    lines = {line.network: line for line in forecast([small, large], tmp_path).lines}
    estimated = lines[network_label(large)]
    assert estimated.source is Source.flops
    assert estimated.seconds_per_step is not None
    assert estimated.seconds_per_step.estimate == pytest.approx(64 * flops(large).step / 2e9)


def test_less_certain_probes_have_a_wider_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def width(measured: Probe) -> float:
        # such are not kept
        monkeypatch.setattr(speeds, "probe", lambda *_: dataclasses.replace(measured, busy=True))
        seconds = forecast([config("backbone=resnet8", *SYNTHETIC)], tmp_path).seconds
        return seconds.high / seconds.low

    sure = width(fake_probe())
    assert width(fake_probe(scaled=True)) > sure
    assert width(fake_probe(steps=1)) > sure
    assert width(fake_probe(spread=0.5)) > sure


def test_data_that_is_not_there_is_left_out_of_the_total_and_named(
    tmp_path: Path, probed: list[Config]
) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    absent = dataclasses.replace(given, data=Data(source="parquet", root="nowhere", num_classes=10))
    told = forecast([given, absent, absent], tmp_path)
    assert told.cells == 1
    assert told.seconds.estimate == forecast([given], tmp_path).seconds.estimate
    assert "not in the total: 2 cells of resnet8 ours c2 c3" in text(told)
    assert "data.root=nowhere" in text(told)


def test_ten_thousand_cells_of_two_networks_are_looked_at_twice(
    tmp_path: Path, probed: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Config] = []
    count = caching.flops
    monkeypatch.setattr(caching, "flops", lambda given: looked.append(given) or count(given))
    two = [config(f"backbone={name}", *SYNTHETIC) for name in ("resnet8", "resnet20")]
    cells = [dataclasses.replace(given, seed=seed) for seed in range(5_000) for given in two]
    told = forecast(cells, tmp_path, slots=8)
    assert told.cells == 10_000
    assert len(looked) == len(probed) == len(told.lines) == 2


def test_no_cells_take_no_time(tmp_path: Path) -> None:
    told = forecast([], tmp_path)
    assert told.seconds == told.wall == Range(0, 0, 0)
    assert text(told) == "forecast: none"


def test_the_text_has_the_total_in_its_first_line_and_a_unit_with_every_number(
    tmp_path: Path, probed: list[Config]
) -> None:
    cells = [
        config(f"backbone={name}", *SYNTHETIC, "recipe.epochs=20")
        for name in ("resnet8", "resnet20")
    ]
    told = forecast(cells, tmp_path, slots=2)
    first, head, *rest = str(told).splitlines()
    assert first == (
        "forecast: 42 s (34 s to 52 s) for 2 cells one after another; 21 s (17 s to 26 s) with 2 "
        "at a time; "
        "0.012 device-hours; on cpu, 1 thread"
    )
    row = next(line for line in rest if line.lstrip().startswith("resnet8 ours c2 c3"))
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
    columns = (
        "network",
        "cells",
        "time",
        "steps",
        "batch",
        "time of a step",
        "memory",
        "parameters",
        "forward",
        "step",
        "from",
    )
    assert head.split() == " ".join(columns).split()


def test_the_json_form_names_its_units_and_is_json(tmp_path: Path, probed: list[Config]) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    values = json.loads(json.dumps(forecast([given], tmp_path).to_dict()))
    assert values["seconds"].keys() == {"low", "estimate", "high"}
    (network,) = values["networks"]
    assert network["flops_per_step"] == 64 * flops(given).step
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
def test_durations_are_said_with_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_memory_is_said_with_units() -> None:
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


# The cache of probes


def test_probes_are_kept_for_the_next_time(
    tmp_path: Path, probed: list[Config], own_cache: Path
) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    first = forecast([given], tmp_path)
    assert own_cache.exists()
    again = forecast([given], tmp_path)
    assert len(probed) == 1
    assert again.seconds == first.seconds
    assert sorted(path.name for path in own_cache.parent.iterdir()) == ["flops.json", "probes.json"]
    # another machine, as far as speed goes
    forecast([dataclasses.replace(given, threads=2)], tmp_path)
    assert len(probed) == 2


def test_probes_taken_while_the_machine_was_busy_are_not_kept(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "probe", lambda *_: fake_probe(busy=True))
    forecast([config("backbone=resnet8", *SYNTHETIC)], tmp_path)
    assert not own_cache.exists()


def test_a_busy_machine_is_said(
    tmp_path: Path, probed: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config("backbone=resnet8", *SYNTHETIC)
    for busy in (True, False):
        monkeypatch.setattr(forecasting, "is_busy", lambda busy=busy: busy)
        assert ("other programs" in str(forecast([given], tmp_path))) is busy


def kept() -> ProbeCache:
    cache = ProbeCache()
    cache.put("name", "machine", fake_probe())
    cache.write()
    return ProbeCache()


def test_a_probe_comes_back_from_the_cache_as_it_was() -> None:
    assert kept().get("name") == fake_probe()
    assert kept().of_machine("machine") == [fake_probe()]
    assert kept().of_machine("another") == []


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"name": 3}', '{"name": {"time": 0}}', '{"name": {"probe": {}}}', "\udc80"],
)
def test_a_damaged_cache_is_an_empty_one(content: str, own_cache: Path) -> None:
    kept()
    own_cache.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert ProbeCache().get("name") is None
    assert ProbeCache().of_machine("machine") == []
    assert kept().get("name") == fake_probe()


def test_impossible_numbers_in_the_cache_are_not_believed(own_cache: Path) -> None:
    kept()
    values = json.loads(own_cache.read_text())
    for number in (-1.0, 0.0, math.nan, math.inf, "fast"):
        values["name"]["probe"]["seconds_per_step"] = number
        own_cache.write_text(json.dumps(values))
        assert ProbeCache().get("name") is None


def test_old_probes_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = kept()
    now = time.time()
    monkeypatch.setattr(caching.time, "time", lambda: now + 8 * 24 * 3600)
    assert cache.get("name") is None


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    own_cache: Path, tmp_path: Path, probed: list[Config]
) -> None:
    own_cache.parent.parent.write_text("a file where a folder should be")
    assert (
        forecast([config("backbone=resnet8", *SYNTHETIC)], tmp_path / "runs").lines[0].source
        is Source.probe
    )


def test_operations_are_counted_once_and_again_when_the_code_changes(
    tmp_path: Path, probed: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Config] = []
    count = caching.flops
    monkeypatch.setattr(caching, "flops", lambda given: looked.append(given) or count(given))
    given = config("backbone=resnet8", *SYNTHETIC)
    first, again = forecast([given], tmp_path), forecast([given], tmp_path)
    assert len(looked) == 1
    assert again.lines[0].flops == first.lines[0].flops == count(given)
    monkeypatch.setattr(caching, "_code", lambda: "other code")
    forecast([given], tmp_path)
    assert len(looked) == 2


@pytest.mark.slow
def test_a_forecast_by_probe_agrees_with_a_run(tmp_path: Path) -> None:
    from tests.conftest import finished_run

    sizes = (
        "data.image_size=16",
        "data.train_images=2000",
        "data.test_images=500",
        "recipe.epochs=3",
    )
    run = finished_run(tmp_path, *sizes, "recipe.batch_size=64")
    record = run.read_record()
    assert record is not None
    told = forecast([run.read_config()], tmp_path / "none")
    assert told.lines[0].source is Source.probe
    assert told.seconds.estimate / 5 < record.cost["seconds"] < told.seconds.estimate * 5
