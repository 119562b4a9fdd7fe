"""The results in `docs/results/`.

Page, README, table and provenance agree, and tell of nothing but the runs.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config.compose import Composer, compose_here
from dks.sweeps.files import read
from dks.sweeps.plan import plan
from dks.sweeps.spec import grid_of
from tests.conftest import ROOT
from tests.system.test_slow import PHOTOGRAPHS

FOLDERS = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/provenance.json"))
each_result = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def provenance(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return found


def texts(value: Any) -> list[str]:
    """Every text in something that JSON holds."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def rows_of_markdown(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_there_is_a_result() -> None:
    assert [folder.name for folder in FOLDERS] == ["cifar10_jpeg"]


@each_result
def test_every_number_is_the_mean_of_runs_that_are_done(folder: Path) -> None:
    told = provenance(folder)
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = {line["config_id"]: line for line in csv.DictReader(file)}
    assert told["sweep"] == folder.name
    assert lines.keys() == {cell["config_id"] for cell in told["cells"]}
    for cell in told["cells"]:
        runs = cell["runs"]
        assert len(runs) >= 3
        assert {run["state"] for run in runs} == {"done"}
        assert len({run["seed"] for run in runs}) == len(runs)
        assert all(re.fullmatch("[0-9a-f]{40}", run["git_commit"]) for run in runs), (
            "nothing that was not committed"
        )
        ((metric, numbers),) = cell["numbers"].items()
        line = lines[cell["config_id"]]
        assert metric == line["metric"]
        assert line["cell_ids"].split() == [run["cell_id"] for run in runs]
        assert (
            numbers["mean"]
            == pytest.approx(statistics.mean(numbers["values"]))
            == pytest.approx(float(line["mean"]))
        )
        assert (
            numbers["sd"]
            == pytest.approx(statistics.stdev(numbers["values"]))
            == pytest.approx(float(line["sd"]))
        )
    assert len({run["epoch"] for cell in told["cells"] for run in cell["runs"]}) == 1, (
        "the same budget for all"
    )
    assert len({run["data_fingerprint"] for cell in told["cells"] for run in cell["runs"]}) == 1


@each_result
def test_page_and_readme_show_the_table(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = (folder / "table.md").read_text(encoding="utf-8").strip()
    assert table in page
    errors = "\n".join(rows_of_markdown(table.split("\n\n")[1]))
    assert errors.count("\n") >= 4
    assert errors in readme
    assert f"docs/results/{folder.name}" in readme
    told = provenance(folder)
    by_name = {
        next(iter(cell.values())): next(iter(cell["numbers"].values())) for cell in told["cells"]
    }
    for name, numbers in by_name.items():
        assert f"| {name} | " in errors
        assert f"{numbers['mean']:.2f}({numbers['sd']:.2f})" in errors
        assert " ".join(f"{value:.2f}" for value in numbers["values"]) in page, (
            "the errors of all seeds"
        )


@each_result
def test_nothing_tells_of_the_machine_that_computed_it(folder: Path) -> None:
    assert [
        text
        for text in texts(provenance(folder))
        if text.startswith(("/", "~")) or re.search(r"=/|[a-z]://", text)
    ] == []


@each_result
def test_its_figures_are_vectors_with_words_on_what_they_show(folder: Path) -> None:
    drawn = sorted(path.name for path in folder.glob("*.svg"))
    assert drawn
    page = (folder / "README.md").read_text(encoding="utf-8")
    for name in drawn:
        (alternative,) = re.findall(rf"!\[([^\]]+)\]\({re.escape(name)}\)", page)
        assert len(alternative) > 20
        assert "<image" not in (folder / name).read_text(encoding="utf-8")


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the CIFAR-10 Parquet files are not at hand")
def test_the_sweep_of_today_is_the_one_that_was_run() -> None:
    """The same cells: nothing that can change a number is another since then."""
    told = provenance(ROOT / "docs" / "results" / "cifar10_jpeg")
    grid = grid_of(read("cifar10_jpeg"), [f"data.root={PHOTOGRAPHS}"], OverridesParser.create())
    cells = plan(grid, Composer(compose_here)).cells
    assert {cell.cell_id for cell in cells} == {
        run["cell_id"] for cell in told["cells"] for run in cell["runs"]
    }
