"""From runs with exactly the paper's results come exactly the paper's tables, digit for digit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dks.results import render
from dks.results.model import Table
from dks.results.provenance import provenance
from dks.results.study import Study
from tests.support.published import SWEEPS, publish, rows


def markdown_rows(text: str) -> Iterator[list[str]]:
    """Head and body of the first table, as texts."""
    for line in text.split("\n\n")[1].splitlines():
        if not line.startswith("|:"):
            yield [
                re.sub(r"\\(.)", r"\1", part).strip().strip("*")
                for part in line.strip("|").split(" | ")
            ]


def latex_rows(text: str) -> Iterator[list[str]]:
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    for line in body.splitlines():
        if line.endswith(r" \\") and r"\multicolumn" not in line:
            yield [
                re.sub(r"\\textbf\{(.*)\}", r"\1", part).replace("\\", "").strip()
                for part in line.removesuffix(r" \\").split(" & ")
            ]


def check(name: str, table: Table, form: str) -> int:
    """Each figure of ours is the paper's in the same row; how many there were."""
    head, *body = (markdown_rows if form == "md" else latex_rows)(render.TEXT_FORMATS[form](table))
    kinds = [
        text.split()[-1] if "gain" not in text else "paper's gain" if "paper's" in text else "gain"
        for text in head
    ]
    seen = 0
    for row in body:
        ours: dict[str, str] = {}
        for kind, text in zip(
            kinds[len(table.row_axes) :], row[len(table.row_axes) :], strict=True
        ):
            if kind in ("error", "(%)", "top-1/top-5"):
                ours = {"error": text}
            elif kind == "gain":
                ours["gain"] = text
            elif kind == "paper" and text:
                assert text == ours["error"] or text == ours["error"].split("(")[0], (name, row)
                seen += 1
            elif kind == "paper's gain" and text:
                assert text == ours["gain"], (name, row)
            elif kind == "difference" and text:
                assert text in ("+0.00", "+0.00/+0.00"), (name, row)
            elif kind == "n" and text:
                assert text in ("1", "5")
    return seen


# Configurations in each table; Table 3's baseline is in its caption.
FIGURES = {
    "table1": 24,
    "table2": 9,
    "table3": 10,
    "table4": 6,
    "table5": 6,
    "table6": 6,
    "strategies": 4,
    "noise": 7,
}
FIGURES |= {"resnet1202": 3, "figure3": 4}


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("name", SWEEPS)
def test_every_table_of_the_paper_comes_out_digit_for_digit(name: str, in_folder: Path) -> None:
    publish(in_folder, name)
    table = Study.open(name).table()
    assert not any(cell.differs for cell in table.cells.values())
    assert set(table.states) == {"done"}
    for form in ("md", "latex"):
        assert check(name, table, form) == FIGURES[name]
    if name == "table3":
        assert (
            "none baseline: 29.97(0.33), n = 5, paper 29.97(0.33), difference +0.00"
            in render.markdown(table)
        )
    printed = {row["top1_error"] for row in rows(name)}
    assert printed <= set(re.findall(r"-?\d+\.\d\d", render.markdown(table)))


def test_a_table_is_there_before_any_run_with_the_papers_numbers(in_folder: Path) -> None:
    text = render.markdown(Study.open("table4").table())
    assert "| baseline | none | missing | 31.06/11.13 |  |  | 0 of 1 |" in text
    assert "of 6 runs 6 missing" in text
    assert not list(in_folder.iterdir()), "looking writes nothing"


@pytest.mark.slow
def test_the_store_tells_the_same_as_the_records(in_folder: Path) -> None:
    """All ten sweeps through the real sink into SQLite, then every table from the store alone, in
    every format.
    """
    from dks.config.schema import Tracking, TrackingKind
    from dks.tracking.sync import sync

    tracking = Tracking(TrackingKind.local, "sqlite:///mlflow.db")
    runs = {run.cell_id for name in SWEEPS for run in publish(in_folder, name)}
    report = sync("runs", target=tracking)
    assert not report.failed and {run.cell_id for run in report.runs} == runs
    for name in SWEEPS:
        local, stored = Study.open(name), Study.open(name, store="sqlite:///mlflow.db")
        for form in render.TEXT_FORMATS:
            assert render.TEXT_FORMATS[form](stored.table()) == render.TEXT_FORMATS[form](
                local.table()
            ), (name, form)
        assert check(name, stored.table(), "md") == FIGURES[name]
        first = json.dumps(provenance(stored, stored.table()))
        again = Study.open(name, store="sqlite:///mlflow.db")
        assert json.dumps(provenance(again, again.table())) == first


@pytest.mark.slow
def test_a_smaller_sweep_is_never_beside_the_papers_numbers(in_folder: Path) -> None:
    study = Study.open("table3", ["data=digits", "backbone=resnet8", "recipe.epochs=2", "seed=1,2"])
    text = render.markdown(study.table())
    assert "26.81" not in text and "paper's gain" not in text
    assert "backbone=resnet8 (paper: resnet32); data=digits (paper: cifar100)" in text.replace(
        "\\", ""
    )
    chosen = Study.open(
        "table6", ["teacher=resnet50", "kd_teacher.temperature=5", "recipe.epochs=2"]
    ).table()
    assert {cell.method: cell.differs for cell in chosen.cells.values()} == dict.fromkeys(
        ("baseline", "ds", "dks", "kd_c1", "kd_c1_ds", "kd_c2c3_ds"),
        ("recipe.epochs=2 (paper: 100)",),
    )
    assert not chosen.has_paper
    seeds = Study.open("table4", ["seed=1,2,3"]).table()
    assert seeds.has_paper and not any(cell.differs for cell in seeds.cells.values()), (
        "more seeds of the same setting are still the paper's"
    )
