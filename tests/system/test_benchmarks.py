"""The frame of the benchmarks, a trial of each at a tiny size, their page, and `dks bench`."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dks.cli import bench
from dks.cli import main as cli
from tests.conftest import ROOT, sampled

BENCHMARKS = ROOT / "benchmarks"
# What makes each of them tiny. Those that start whole programs take longer.
TINY = {
    "evaluation": ["--networks", "resnet8", "--images", "4", "--precision", "fp32,bf16"],
    "matrix_product": ["--side", "64"],
    "pipeline": ["--images", "32", "--batch", "4", "--precision", "fp32"],
    "planning": ["--cells", "20", "--sample", "2"],
    "step": ["--networks", "resnet8", "--methods", "dks", "--batch", "2", "--seconds", "0.01"],
}
TINY_PROGRAMS = {
    "epoch": ["--networks", "resnet8", "--images", "8", "--precision", "fp32"],
    "memory": ["--networks", "resnet8", "--batch", "2", "--precision", "fp32"],
    "packing": ["--network", "resnet8", "--images", "32", "--epochs", "40"],
    "reading": ["--runs", "20", "--epochs", "2"],
    "stripped": [],  # it sets how its process keeps memory
    "tracking": ["--epochs", "2"],
}


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The frame, and what else lies beside it, as its scripts import it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("measure")


def test_ways_are_measured_in_turn_and_every_other_round_goes_backwards(
    measure: ModuleType,
) -> None:
    called: list[str] = []

    def way(name: str, value: float) -> Any:
        return lambda: called.append(name) or value

    found = measure.in_turn(
        {"ours": way("ours", 1.0), "plain": way("plain", 2.0)}, 3, value=lambda work: work()
    )
    assert called == ["ours", "plain", "plain", "ours", "ours", "plain"]
    assert found == {"ours": [1.0] * 3, "plain": [2.0] * 3}
    seconds = measure.in_turn({"nothing": lambda: None}, 2)["nothing"]
    assert len(seconds) == 2 and all(0 <= each < 1 for each in seconds)


def test_a_ratio_is_the_median_over_rounds_and_says_how_many_times_better(
    measure: ModuleType,
) -> None:
    """In the third of five rounds the machine was ten times slower.

    That round's ratio is like the others'.
    """
    seconds = {"plain": [2.0, 2.2, 20.0, 2.0, 2.1], "ours": [1.0, 1.0, 10.0, 1.0, 1.0]}
    result = measure.Result("a step", "s", seconds, "plain")
    assert result.ratio("ours").median == 2.0
    assert result.ratio("ours").low == pytest.approx(2.0) and result.ratio(
        "ours"
    ).high == pytest.approx(2.16)
    assert result.ratio("plain") is None, "it is what the others are compared with"
    rates = {way: [1 / each for each in values] for way, values in seconds.items()}
    assert measure.Result("a step", "images/s", rates, "plain", more_is_better=True).ratio(
        "ours"
    ).median == pytest.approx(2.0)
    assert measure.Result("alone", "s", seconds).ratio("ours") is None


def test_the_spread_is_from_the_10th_to_the_90th_percentile(measure: ModuleType) -> None:
    spread = measure.Spread.of([float(value) for value in range(11)])
    assert (spread.median, spread.low, spread.high) == (5.0, 1.0, 9.0)
    assert str(spread) == "5 (1 to 9)"
    assert str(measure.Spread.of([0.5])) == "0.5", "a single value has none"


def test_a_result_is_the_same_after_it_was_written_and_read(measure: ModuleType) -> None:
    bounds = {
        "ours": [
            measure.Bound("ratio", at_least=1.4),
            measure.Bound("share", at_most=3),
            measure.Bound("median", 0, 2),
        ]
    }
    figures = {"ours": {"share": 4.0}}
    result = measure.Result(
        "a step", "s", {"plain": [3.0], "ours": [2.0]}, "plain", False, figures, bounds, "batch 64"
    )
    written = json.loads(json.dumps(result.to_json()))
    assert [bound["met"] for bound in written["ways"]["ours"]["wanted"]] == [True, False, True]
    assert written["ways"]["ours"]["ratio"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert measure.Result.from_json(written) == result


def test_what_is_measured_again_takes_the_place_of_what_was_kept(
    measure: ModuleType, tmp_path: Path
) -> None:
    def kept(commit: str, *names: str) -> dict[str, Any]:
        return {
            "machine": {"commit": commit},
            "results": [{"name": name, "values": [1, 2]} for name in names],
        }

    path = tmp_path / "machine" / "step.json"
    measure.keep(path, kept("first", "resnet32", "resnet110"))
    measure.keep(path, kept("second", "mobilenet"))
    measure.keep(path, kept("third", "resnet32", "mobilenet"))
    runs = json.loads(path.read_text())["runs"]
    found = {
        run["machine"]["commit"]: [result["name"] for result in run["results"]] for run in runs
    }
    assert found == {"first": ["resnet110"], "third": ["resnet32", "mobilenet"]}


def test_a_machine_is_known_by_its_parts_and_never_by_its_name(measure: ModuleType) -> None:
    import socket

    about = measure.machine()
    assert {
        "cpu",
        "usable_cores",
        "memory_mib",
        "gpus",
        "torch",
        "commit",
        "threads",
        "load_before",
        "device",
    } <= about.keys()
    text = json.dumps(about)
    assert socket.gethostname() not in text and str(ROOT) not in text
    assert (
        measure.machine_name({**about, "cpu": "AMD EPYC 9B14", "usable_cores": 2})
        == "amd-epyc-9b14-2-cores"
    )
    assert (
        measure.machine_name({**about, "gpus": ["NVIDIA H100 80GB HBM3"]})
        == "nvidia-h100-80gb-hbm3"
    )


def test_every_benchmark_has_a_trial_and_a_place_on_the_page() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    for name in bench.benchmarks():
        assert f"<!-- results {name} -->" in page and f"| `{name}` |" in page
    elsewhere = {"startup", "cells"}  # tried out in test_startup.py
    assert bench.benchmarks().keys() - elsewhere == TINY.keys() | TINY_PROGRAMS.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_tells_what_it_measured(
    measure: ModuleType,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = str(BENCHMARKS / f"{name}.py")
    monkeypatch.setattr(
        sys, "argv", [script, "--short", "--repeats", "2", "--device", "cpu", "--json", *TINY[name]]
    )
    runpy.run_path(script, run_name="__main__")
    assert_complete(json.loads(capsys.readouterr().out), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(list(TINY_PROGRAMS), ["stripped"]))
def test_a_benchmark_of_whole_programs_tells_what_it_measured(
    measure: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--short", "--repeats", "1", "--device", "cpu", "--json", *TINY_PROGRAMS[name]]
    printed = __import__("runs").program(
        [str(BENCHMARKS / f"{name}.py"), *options], tmp_path, OMP_NUM_THREADS="1"
    )
    assert_complete(json.loads(printed), name)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def assert_complete(found: dict[str, Any], name: str) -> None:
    """Everything that docs/performance.md and `dks bench` need is in it."""
    assert found["benchmark"] == name and found["what"] and found["machine"]["cpu"]
    assert found["options"]["repeats"] in (1, 2) and found["options"]["short"]
    assert found["results"]
    for result in found["results"]:
        assert result["name"] and result["unit"] and len(result["ways"]) > 1
        for way, each in result["ways"].items():
            assert len(each["values"]) == found["options"]["repeats"] and all(
                value > 0 for value in each["values"]
            )
            assert each["low"] <= each["median"] <= each["high"]
            assert ("ratio" in each) == (result["against"] is not None and way != result["against"])
            assert all({"figure", "met"} <= bound.keys() for bound in each.get("wanted", []))


@pytest.mark.slow
def test_a_step_says_how_far_it_is_from_the_limit_and_an_unknown_network_is_one_line(
    measure: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(BENCHMARKS / "step.py")
    typed = ["--short", "--repeats", "1", "--device", "cpu", *TINY["step"], "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", [script, *typed])
    runpy.run_path(script, run_name="__main__")
    out = capsys.readouterr().out
    assert "resnet8 dks, batch 2" in out and "% of the limit" in out
    monkeypatch.setattr(sys, "argv", [script, "--networks", "resnet33"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(script, run_name="__main__")
    assert left.value.code == 2
    assert "resnet33: choose from densenet100_12, " in capsys.readouterr().err.splitlines()[-1]


def test_what_is_wanted_of_a_step_depends_on_network_method_precision_and_device(
    measure: ModuleType,
) -> None:
    wanted = __import__("step").wanted

    def at_least(ratio: float) -> object:
        return [measure.Bound("ratio", at_least=ratio)]

    assert wanted("cpu", "resnet32", "dks", "fp32") == at_least(1.4) and wanted(
        "cpu", "resnet32", "dks", "bf16"
    ) == at_least(2.3)
    assert wanted("cuda", "resnet32", "dks", "bf16") == at_least(4) and wanted(
        "cuda", "wrn28_10", "dks", "bf16"
    ) == at_least(2)
    assert wanted("cpu", "mobilenet", "dks", "fp32") == at_least(1), "not slower"
    assert (
        wanted("cuda", "mobilenet", "dks", "bf16") == at_least(1)
        and wanted("cuda", "resnet32", "dks", "fp32") == []
    )
    assert (
        wanted("cpu", "mobilenet", "ds", "fp32") == wanted("cpu", "mobilenet", "dks", "bf16") == []
    )


@pytest.mark.slow
def test_ours_and_the_plain_loop_train_alike(measure: ModuleType) -> None:
    """From the same weights on the same images the losses of the first steps are near each other.

    The crops differ.
    """
    import torch

    workload, plain, ours = (__import__(name) for name in ("workload", "plain_loop", "ours"))
    config = workload.configuration(
        "resnet8", "dks", "recipe.batch_size=32", "device=cpu", "recipe.lr=0.001"
    )
    images = workload.random_images(config, 64)
    losses = []
    for make in (plain.PlainLoop, ours.Ours):
        torch.manual_seed(0)
        losses.append(make(config, images, images, torch.device("cpu")).steps(4))
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_the_plain_loss_is_equation_4(measure: ModuleType) -> None:
    import torch

    import dks

    torch.manual_seed(0)
    logits, labels = {name: torch.randn(8, 10) for name in ("c1", "c2", "c3")}, torch.arange(8)
    for strategy, matched in (("bidir", True), ("none", False)):
        plainly = __import__("plain_loop").dks_loss(logits, labels, matched)
        torch.testing.assert_close(plainly, dks.SynergyLoss(strategy)(logits, labels).total)


def test_cells_side_by_side_count_while_all_of_them_are_at_work(measure: ModuleType) -> None:
    packing = __import__("packing")
    # From 12 to 20: the first trains 4 epochs, the second 2 of 4 s each.
    assert packing.together([[10, 12, 14, 16, 18, 20, 22], [12, 16, 20]]) == pytest.approx(6 / 8)
    with pytest.raises(ValueError, match="more epochs"):
        packing.together([[1, 2], [3, 4]])


def test_the_page_is_what_the_results_say(measure: ModuleType) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert __import__("report").page(text) == text, "run python benchmarks/report.py"


def test_a_table_of_the_page_has_medians_ratios_and_what_was_missed(
    measure: ModuleType, tmp_path: Path
) -> None:
    report = __import__("report")
    bound = {"ours": [measure.Bound("ratio", at_least=2.5)]}
    result = measure.Result(
        "resnet32",
        "s",
        {"plain": [3.0, 3.0], "ours": [1.5, 1.5]},
        "plain",
        False,
        {},
        bound,
        "a note",
    )
    about = {
        **measure.machine(),
        "cpu": "Some CPU",
        "usable_cores": 2,
        "commit": f"{'a' * 40}-dirty",
        "load_before": 0.25,
    }
    found = {"machine": about, "options": {"repeats": 2}, "results": [result.to_json()]}
    measure.keep(tmp_path / "some-cpu" / "step.json", found)
    page = report.page(
        "before\n<!-- results step -->\nold\n<!-- end -->\n<!-- results epoch -->\n<!-- end -->\n",
        tmp_path,
    )
    assert (
        "**Some CPU, 2 cores, " in page
        and "commit aaaaaaaaaaaa-dirty" in page
        and "load before 0.2" in page
    )
    assert "|  | plain | ours |\n| --- | ---: | ---: |\n" in page
    assert (
        "| resnet32 (s) | 3 | 1.5<br>**2.00** times better<br>wanted ratio at least 2.5: "
        "**missed** |" in page
    )
    assert "old" not in page and "a note" in page and page.startswith("before\n")
    assert page.endswith("<!-- results epoch -->\nNot measured yet.\n<!-- end -->\n")
    assert report.page(page, tmp_path) == page


# --- dks bench

SCRIPT = '''"""How long {name} takes.

More of it.
"""
import json, sys

def run(about, results):
    print(json.dumps({{"benchmark": {name!r}, "what": about.splitlines()[0], "arguments": sys.argv[1:], "results": results}}))

if __name__ == "__main__":
    figures = {{"GFLOP/s": 80.0, "% of the limit": 40.0}}
    wanted = [{{"figure": "ratio", "met": {met}}}]
    ours = {{"median": 100.0, "ratio": {{"median": 2.0}}, "figures": figures, "wanted": wanted}}
    run(__doc__, [{{"name": "{name} of all", "unit": "images/s", "ways": {{"plain": {{"median": 50.0}}, "ours": ours}}}}])
'''  # noqa: E501


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scripts, one that fails, and a file that they share."""
    (tmp_path / "walking.py").write_text(SCRIPT.format(name="walking", met=True))
    (tmp_path / "running.py").write_text(SCRIPT.format(name="running", met=False))
    (tmp_path / "shared.py").write_text('"""Call run(__doc__) at the end."""\n')
    monkeypatch.setattr(bench, "declarations", lambda name: tmp_path)
    return tmp_path


def dks_bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *arguments])
    return int(left.value.code or 0)


def test_dks_bench_lists_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dks_bench("--list") == 0
    assert (
        capsys.readouterr().out
        == "running  How long running takes.\nwalking  How long walking takes.\n"
    )


def test_dks_bench_runs_one_after_another_and_tells_the_distance_to_the_limit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dks_bench() == 0
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in err.splitlines()] == ["[1/2] running", "[2/2] walking"]
    lines = [line.rstrip() for line in out.splitlines()]
    assert "How long running takes." in lines
    assert "running of all  ours   100 images/s  2 times better  not as wanted" in lines
    assert "walking of all  ours   100 images/s  2 times better  as wanted" in lines
    assert (
        lines[-1]
        == "walking of all, of the speed of a large matrix product here: ours 40 % (80 GFLOP/s)"
    )


def test_dks_bench_hands_options_on_and_speaks_to_programs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dks_bench("walking", "--device", "cpu", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == {}
    (walking,) = found["benchmarks"]
    assert walking["benchmark"] == "walking" and walking["arguments"] == [
        "--short",
        "--device",
        "cpu",
        "--json",
    ]
    assert dks_bench("walking", "--full", "--json") == 0
    assert json.loads(capsys.readouterr().out)["benchmarks"][0]["arguments"] == ["--json"]


def test_a_benchmark_that_fails_is_one_line_and_the_others_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "falling.py").write_text(
        '"""Falls."""\nrun = print\nrun(__doc__)\nraise SystemExit("it fell")\n'
    )
    assert dks_bench() == 1
    out, err = capsys.readouterr()
    assert "[1/3] falling  failed: it fell" in err
    assert "walking of all" in out


def test_a_quiet_benchmark_says_only_what_failed_and_a_verbose_one_what_is_started(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dks_bench("walking", "-q") == 0
    out, err = capsys.readouterr()
    assert err == "" and "How long walking takes." in out
    (folder / "falling.py").write_text(
        '"""Falls."""\nrun = print\nrun(__doc__)\nraise SystemExit("it fell")\n'
    )
    assert dks_bench("-q", "falling", "walking") == 1
    assert capsys.readouterr().err == "[1/2] falling  failed: it fell\n"
    assert dks_bench("-v", "walking") == 0
    started, ended, took = capsys.readouterr().err.splitlines()
    assert started.endswith(f"{folder / 'walking.py'} --short --json")
    assert ended.startswith("[1/1] walking  ") and took.startswith("took ")


def test_an_unknown_benchmark_is_one_line_that_names_the_choices(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dks_bench("crawling", "walking") == 2
    assert (
        capsys.readouterr().err
        == "error: crawling: no such benchmark; choose from running, walking\n"
    )
