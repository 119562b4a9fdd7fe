"""`dks sweep ...` as typed.

Choices on held-out images, unions, retries, limits, states from another process.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dks.runs.record import RunFolder
from dks.sweeps import files
from tests.conftest import TINY, start
from tests.support import program

# One cell after another in this process: no worker has to start.
SMALL = (*TINY, "recipe.epochs=1", "tracking=off", "hydra/launcher=basic")
Dks = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dks(in_folder: Path) -> Dks:
    """`dks ARGUMENTS` in an empty folder: exit status, output, errors."""
    return program.dks


@pytest.fixture
def sweeps(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sweeps for this test alone."""
    folder = tmp_path_factory.mktemp("sweeps")
    monkeypatch.setattr(files, "declarations", lambda name: folder)
    return folder


def records(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(folder.glob("runs/*/record.json"))
    }


def plan(dks: Dks, name: str, *overrides: str) -> dict[str, Any]:
    status, out, err = dks("sweep", "plan", name, "--json", "--probe", "0", *overrides)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.slow
def test_a_plan_says_how_many_cells_run_at_a_time_and_why(
    sweeps: Path, dks: Dks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dks.sweeps.estimate import packing

    (sweeps / "mine.yaml").write_text("title: Seeds\ngrids:\n- {seed: 1..5}\n")
    given = (*TINY[:-1], "tracking=off", "hydra.launcher.slots=auto")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert (
        plan(dks, "mine", *given)["slots"]
        == "slots=auto: decided by a measurement when the sweep runs"
    )
    assert plan(dks, "mine", *given[:-1])["slots"] is None
    trials = (packing.Trial(1, 4, 100.0), packing.Trial(2, 2, 300.0), packing.Trial(4, 1, 150.0))
    monkeypatch.setattr(
        packing, "_tried", lambda work, division: packing.Packing(trials, 200.0, False)
    )
    status, out, err = dks("sweep", "plan", "mine", "--probe", "0.5", *given)
    assert status == 0, err
    assert (
        "slots=auto: 2 cells, each with 2 threads, 300 images/s (1 cell with 4 threads 100, 4 "
        "cells, each with 1" in out
    )
    assert "with 2 at a time" in out
    status, _, err = dks("sweep", "plan", "mine", *given[:-1], "hydra.launcher.slots=some")
    assert (status, "hydra.launcher.slots=some: it must be a whole number" in err) == (2, True)


@pytest.mark.slow
def test_a_value_is_chosen_on_held_out_images_and_then_trained_on_all(
    sweeps: Path, dks: Dks, in_folder: Path
) -> None:
    (sweeps / "mine.yaml").write_text(
        "title: A choice\ntable: {rows: [method]}\ngrids:\n"
        "- {method: baseline, seed: 1}\n"
        "- {method: dks, seed: 1, choose: {recipe.lr: [1e-9, 0.05], holdout: 32}}\n"
    )
    first = plan(dks, "mine", *SMALL)
    assert len(first["cells"]) == 3
    assert first["undecided"] == [
        "method=dks: 1 more cell follows when recipe.lr is chosen among 1e-09, 0.05 on held-out "
        "images"
    ]
    status, out, err = dks("sweep", "run", "mine", *SMALL)
    assert status == 0, err
    made = records(in_folder)
    tried = {
        cell: record for cell, record in made.items() if "data.holdout=32" in record["overrides"]
    }
    assert len(made) == 4
    assert len(tried) == 2
    errors = {
        override.removeprefix("recipe.lr="): record["final"]["val/top1_error"]
        for record in tried.values()
        for override in record["overrides"]
        if override.startswith("recipe.lr=")
    }
    best = min(("1e-09", "0.05"), key=lambda value: errors[value])  # the first of equals
    (final,) = [r for c, r in made.items() if c not in tried and r["method"] == "dks"]
    assert f"recipe.lr={best}" in final["overrides"]
    assert "val/top1_error" not in final["final"]
    assert f"{final['final']['test/top1_error']:.2f}" in out
    (name,) = [path.name for path in (in_folder / "results").iterdir()]
    assert (sweeps / "mine.yaml").stem in name
    again = plan(dks, "mine", *SMALL)
    assert again["undecided"] == []
    assert {cell["state"] for cell in again["cells"]} == {"done"}
    status, out, err = dks("sweep", "run", "mine", *SMALL)
    assert "all 4 cells are done, nothing to launch" in err
    assert records(in_folder) == made


@pytest.mark.slow
def test_a_union_runs_shared_cells_once_and_shows_every_table(
    sweeps: Path, dks: Dks, in_folder: Path
) -> None:
    (sweeps / "one.yaml").write_text(
        "title: Table one\ngrids:\n- {method: [baseline, ds], seed: 1}\n"
    )
    (sweeps / "two.yaml").write_text(
        "title: Table two\ngrids:\n- {strategy: [none, bidir], aux: ours, seed: 1}\n"
    )
    (sweeps / "both.yaml").write_text("title: Both\ninclude: [one, two]\n")
    planned = plan(dks, "both", *SMALL)
    assert len(planned["cells"]) == 3, "deep supervision is in both"
    assert planned["saved_runs"] == 1
    status, out, err = dks("sweep", "run", "both", *SMALL)
    assert status == 0, err
    assert "1 runs are saved" in err
    assert len(records(in_folder)) == 3
    assert "Table one" in out
    assert "Table two" in out
    (whole,) = [
        path.name for path in (in_folder / "results").iterdir() if path.name.startswith("both")
    ]
    status, shown, _ = dks("table", whole)
    assert status == 0
    assert shown == out
    _, listed, _ = dks("sweep", "status", whole)
    assert "3 cells: 3 done" in listed


@pytest.mark.slow
def test_a_part_of_a_union_is_retried_by_its_own_name(
    sweeps: Path, dks: Dks, in_folder: Path
) -> None:
    """It means the cells that it had in the union.

    Those of its file, with the overrides and the base that reached them.
    """
    (sweeps / "one.yaml").write_text(
        "title: Table one\ngrids:\n- {method: [baseline, ds], recipe.lr: 1.0e+30, seed: 1}\n"
    )
    (sweeps / "two.yaml").write_text(
        "title: Table two\ngrids:\n- {method: dks, recipe.lr: 0.01, seed: 1}\n"
    )
    (sweeps / "both.yaml").write_text(
        "title: Both\nbase: {recipe.epochs: 1}\ninclude: [one, two]\n"
    )
    small = [item for item in SMALL if not item.startswith(("data.train_images", "recipe.epochs"))]
    status, _, err = dks("sweep", "run", "both", "data.train_images=320", *small)
    assert status == 1, err

    def attempts() -> list[tuple[str, str, int]]:
        return [
            (cell, each["method"], len(each["attempts"]))
            for cell, each in records(in_folder).items()
        ]

    begun = {path: json.loads(path.read_text()) for path in in_folder.glob("results/*/sweep.json")}
    before = attempts()
    (part,) = [found["name"] for found in begun.values() if found["title"].startswith("Table one")]
    status, _, err = dks("sweep", "retry", part)
    assert status == 1, err
    assert attempts() == [
        (cell, method, count + (method != "dks")) for cell, method, count in before
    ]
    assert {
        path: json.loads(path.read_text()) for path in in_folder.glob("results/*/sweep.json")
    } == begun


def test_a_union_of_one_sweep_is_found_by_its_own_name(sweeps: Path, dks: Dks) -> None:
    (sweeps / "one.yaml").write_text("grids:\n- {method: [baseline, ds], seed: 1}\n")
    (sweeps / "whole.yaml").write_text("include: [one]\n")
    assert dks("sweep", "run", "whole", *SMALL)[0] == 0
    for name in ("one", "whole"):
        status, out, err = dks("sweep", "status", name)
        assert status == 0, err
        assert "2 cells: 2 done" in out


@pytest.mark.slow
def test_a_retry_uses_the_overrides_that_change_no_result_as_well(
    sweeps: Path, dks: Dks, in_folder: Path
) -> None:
    (sweeps / "mine.yaml").write_text(
        "base: {data: synthetic, data.image_size: 8, data.train_images: 320, data.test_images: "
        "32, data.pad: 1}\n"
        "grids:\n- {recipe.lr: [1.0e+30, 2.0e+30], recipe.epochs: 1, seed: 1}\n"
    )
    changing_nothing = "runs_dir=elsewhere threads=1 tracking=off hydra/launcher=basic"
    status, _, err = dks("sweep", "run", "mine", *changing_nothing.split())
    assert status == 1, err
    status, _, err = dks("sweep", "retry", "mine")
    assert status == 1, err
    assert not (in_folder / "runs").exists()
    made = [json.loads(path.read_text()) for path in in_folder.glob("elsewhere/*/record.json")]
    assert [len(record["attempts"]) for record in made] == [2, 2]


@pytest.mark.slow
def test_a_cell_that_a_file_has_in_two_spellings_runs_once_and_fills_both_rows(
    sweeps: Path, dks: Dks, in_folder: Path
) -> None:
    same = "positions: none, aux_positions.at: [[c2]]"
    (sweeps / "mine.yaml").write_text(
        "table: {rows: [positions]}\n"
        f"grids:\n- {{positions: c2, seed: [1, 2]}}\n- {{positions: c3, seed: [1, 2]}}\n- "
        f"{{{same}, seed: [1, 2]}}\n"
    )
    status, out, err = dks("sweep", "plan", "mine", "--probe", "0", *SMALL)
    assert status == 0, err
    assert "4 cells (4 missing); 4 to run; 2 more points are one of these in other words" in out
    status, out, err = dks("sweep", "run", "mine", *SMALL)
    assert status == 0, err
    made = records(in_folder)
    assert len(made) == 4 and all(len(record["attempts"]) == 1 for record in made.values())
    assert "the same configuration, trained once: positions=c2 and positions=none" in out


@pytest.mark.slow
def test_failures_are_retried_limited_and_run_again_on_request(
    sweeps: Path, dks: Dks, in_folder: Path
) -> None:
    (sweeps / "mine.yaml").write_text(
        "grids:\n- {recipe.lr: [1.0e+30, 2.0e+30, 0.01], seed: 1, data.train_images: 320}\n"
    )
    small = [item for item in SMALL if not item.startswith("data.train_images")]
    status, _, err = dks("sweep", "run", "mine", "--retries", "2", "--fail-fast", *small)
    assert status == 1
    made = records(in_folder)
    assert sorted(len(record["attempts"]) for record in made.values()) == [0, 0, 3], (
        "tried again twice, then nothing is begun"
    )
    assert "is tried again (2 of 2)" in err
    status, out, _ = dks("sweep", "status", "mine")
    assert status == 0
    assert "3 cells: 2 missing, 1 failed" in out
    assert "NonFiniteLoss: non-finite loss at epoch 1" in out
    assert "run.log" in out
    # Only the failed one is run again, from another command line, with what the sweep was asked
    # for.
    status, _, err = dks("sweep", "retry", "mine")
    assert status == 1, err
    assert sorted(len(record["attempts"]) for record in records(in_folder).values()) == [0, 0, 4]
    status, _, _ = dks("sweep", "run", "mine", *small)
    assert status == 1
    states = sorted(record["status"] for record in records(in_folder).values())
    assert states == ["done", "failed", "failed"]
    status, out, _ = dks("sweep", "wait", "mine", "--every", "0")
    assert status == 1, "it is over, and some have failed"
    assert "failed" in out


@pytest.mark.slow
def test_overrides_that_change_results_make_a_sweep_of_its_own(dks: Dks, in_folder: Path) -> None:
    status, out, _ = dks("sweep", "run", "quickstart", "aux=ours", "strategy=none,bidir", *SMALL)
    assert status == 0
    (name,) = [path.name for path in (in_folder / "results").iterdir()]
    assert name.startswith("quickstart-")
    assert "with aux=ours strategy=none,bidir" in out
    # By its plain name as long as it is the only one, by the same overrides, and by its own name.
    for asked in (
        ["quickstart"],
        ["quickstart", "aux=ours", "strategy=none,bidir", *TINY, "recipe.epochs=1"],
        [name],
    ):
        status, out, _ = dks("sweep", "status", *asked)
        assert status == 0
        assert f"{name}: 2 cells: 2 done" in out
    assert dks("table", "quickstart")[0] == 0
    status, _, err = dks("sweep", "run", name)
    assert status == 0
    assert "all 2 cells are done" in err


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)
    return found


def begin(folder: Path, line: str) -> subprocess.Popen[str]:
    """`dks LINE` with many epochs, in a process of its own that has begun to train."""
    long = ["recipe.epochs=400", "data.train_images=640", "tracking=off"]
    process = start(["-m", "dks", *line.split(), *TINY, *long], folder)
    slots = 2 if "slots=2" in line else 1

    def training() -> bool:
        journals = [path.stat().st_size for path in folder.glob("runs/*/metrics.jsonl")]
        return len([size for size in journals if size > 900]) == slots

    wait_for(training)
    return process


@pytest.mark.slow
def test_another_process_sees_and_cancels_a_running_sweep(dks: Dks, in_folder: Path) -> None:
    asked = "method=baseline,dks seed=1,2"
    process = begin(in_folder, f"sweep run methods {asked} hydra.launcher.slots=2")
    try:
        _, out, _ = dks("sweep", "status", "methods")
        assert "4 cells: 2 queued, 2 running" in out
        assert "images/s" in out
        told = json.loads(dks("sweep", "status", "methods", "--json")[1])
        running = [cell["epochs"] for cell in told["cells"] if cell["state"] == "running"]
        assert running == [400, 400]
        # The same sweep again has nothing to launch.
        again = plan(
            dks, "methods", *TINY, *["recipe.epochs=400", "data.train_images=640"], *asked.split()
        )
        states = sorted(cell["state"] for cell in again["cells"])
        assert states == ["queued", "queued", "running", "running"]
        status, out, _ = dks("sweep", "cancel", "methods")
        assert status == 0
        assert "2 queued cells withdrawn, 2 running ones told to stop" in out
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    _, out, _ = dks("sweep", "status", "methods")
    assert "4 cells: 4 killed" in out
    assert all(not RunFolder(in_folder / "runs" / cell).is_claimed() for cell in records(in_folder))


@pytest.mark.slow
def test_a_plan_of_ten_thousand_cells_takes_seconds(in_folder: Path) -> None:
    """Not a benchmark, which is benchmarks/planning.py.

    This fails where Hydra composes every cell again, which takes 20 minutes.
    """
    line = "-m dks sweep plan quickstart --json --probe 0 seed=range(1,1112)"
    out, err = start([*line.split(), *TINY], in_folder).communicate(timeout=120)
    assert len(json.loads(out)["cells"]) == 9 * 1111, err


@pytest.mark.slow
def test_the_signal_that_stops_a_sweep_does_not_matter(in_folder: Path) -> None:
    process = begin(in_folder, "sweep run methods method=dks seed=1,2")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: the same command goes on from here" in err
