"""What of its runs a sweep counts.

States, results that are not finite, epochs that are missing, classifiers one by one.
"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from dks.results.entries import entries
from dks.results.model import build
from dks.results.shape import Epoch, Metric, Over, Shape
from dks.results.sheet import caption, main
from dks.results.study import Study
from dks.sweeps.manifest import Manifest, ManifestCell
from dks.tracking.source import Source

METRICS = (Metric.top1, Metric.top5)


def cell(
    name: str, method: str = "dks", classifiers: tuple[str, ...] = ("c1", "c2"), **labels: str
) -> ManifestCell:
    return ManifestCell(
        {"method": method, **labels},
        name,
        f"config-{name}",
        "plain",
        1,
        method,
        [],
        "supervised",
        list(classifiers),
    )


def sweep(*cells: ManifestCell, **more: Any) -> Manifest:
    return Manifest("s", "S", ["method", *more.pop("axes", [])], "runs", list(cells), **more)


def run(
    name: str, state: str = "done", epoch: int = 10, epochs: int = 10, **numbers: float
) -> dict[str, Any]:
    """A row of a source; keys such as final_top1_error_c2 stand for final/test/top1_error_c2."""
    named = {key.replace("_", "/test/", 1): value for key, value in numbers.items()}
    return {"cell_id": name, "state": state, "epoch": epoch, "epochs": epochs, **named}


def made(
    manifest: Manifest,
    *runs: dict[str, Any],
    epoch: Epoch = Epoch.last,
    by_classifier: bool = False,
) -> list[dict[str, Any]]:
    columns = ["cell_id", "state", "epoch", "epochs"]
    return entries(
        manifest,
        pd.DataFrame(list(runs), columns=None if runs else columns),
        METRICS,
        epoch,
        by_classifier,
    )


def test_a_cell_without_a_run_is_missing_and_one_that_is_not_done_has_no_number() -> None:
    plain, going = made(
        sweep(cell("a"), cell("b")),
        run("b", "running", final_top1_error=50.0, final_top5_error=20.0),
    )
    assert (plain["state"], going["state"]) == ("missing", "running")
    assert all(math.isnan(each["top1"]) and each["left_out"] == "" for each in (plain, going))
    assert (plain["over_baseline"], plain["over_ds"], plain["over_alone"]) == (
        "plain",
        "supervised",
        None,
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_is_left_out(value: float) -> None:
    (found,) = made(sweep(cell("a")), run("a", final_top1_error=5.0, final_top5_error=value))
    assert (found["state"], found["left_out"]) == ("done", "result not finite")


def test_with_five_classes_or_fewer_there_is_no_top5_error_and_the_run_counts() -> None:
    few, more = (
        dataclasses.replace(cell(name), classes=classes)
        for name, classes in (("few", 5), ("more", 6))
    )
    runs = [
        run("few", final_top1_error=5.0),
        run("more", final_top1_error=5.0, final_top5_error=1.0),
    ]
    found = made(sweep(few, more), *runs)
    assert [(each["left_out"], each["top1"], each["top5"]) for each in found] == [
        ("", 5.0, None),
        ("", 5.0, 1.0),
    ]
    old = made(sweep(few), run("few", final_top1_error=5.0, final_top5_error=0.0))  # as runs had it
    assert (old[0]["left_out"], old[0]["top5"]) == ("", None)
    labelled = [dataclasses.replace(each, labels={"data": each.cell_id}) for each in (few, more)]
    table = build(made(sweep(*labelled), *runs), "s", "S", ["data"], shape=Shape(METRICS))
    assert [row.cells[0].text for row in main(table).rows] == ["5.00/-", "5.00/1.00"]


def test_a_table_has_no_column_for_an_error_that_none_of_its_cells_has() -> None:
    """`table2` asks for both."""
    few = dataclasses.replace(
        cell("few", "baseline"), classes=5, labels={"backbone": "resnet18", "method": "baseline"}
    )
    whole = Manifest(
        "table2",
        "T",
        ["backbone", "method"],
        "runs",
        [few],
        ["backbone"],
        ["method"],
        named="table2",
    )
    frame = pd.DataFrame([{**run("few", final_top1_error=5.0), "schema_version": 2}])
    source = cast(Source, SimpleNamespace(name="runs", runs=lambda cell_ids: frame))
    table = Study(whole, (whole,), source).table()
    assert table.metrics == (Metric.top1,)
    assert "top-1 test error" in caption(table)
    assert [row.cells[0].text for row in main(table).rows] == ["5.00"]


def test_a_run_with_fewer_epochs_than_asked_for_is_left_out() -> None:
    whole, short, unknown = made(
        sweep(cell("a"), cell("b"), cell("c")),
        run("a", final_top1_error=5.0, final_top5_error=1.0),
        run("b", epoch=9, final_top1_error=5.0, final_top5_error=1.0),
        run("c", epochs=0, final_top1_error=5.0, final_top5_error=1.0),
    )
    assert [each["left_out"] for each in (whole, short, unknown)] == ["", "epochs missing", ""]


def test_the_last_and_the_best_epoch_are_not_mixed() -> None:
    numbers = {
        "final_top1_error": 5.0,
        "final_top5_error": 2.0,
        "best_top1_error": 4.0,
        "best_top5_error": 3.0,
    }
    for epoch, expected in ((Epoch.last, (5.0, 2.0)), (Epoch.best, (4.0, 3.0))):
        (found,) = made(sweep(cell("a")), run("a", **numbers), epoch=epoch)
        assert (found["top1"], found["top5"]) == expected


def test_every_classifier_is_a_row_and_compared_with_itself_trained_alone() -> None:
    """The shape of the paper's Table 5."""
    manifest = sweep(
        cell("plain", "baseline", ("c1",), positions="none"),
        cell("only2", "single", ("c2",), positions="c2"),
        cell("both", "dks", ("c1", "c2"), positions="c2"),
        axes=["positions"],
    )
    runs = [
        run("plain", final_top1_error=31.0, final_top5_error=11.0),
        run("only2", final_top1_error=30.5, final_top5_error=10.5),
        run(
            "both",
            final_top1_error=28.5,
            final_top5_error=9.5,
            final_top1_error_c2=27.5,
            final_top5_error_c2=8.5,
        ),
    ]
    found = made(manifest, *runs, by_classifier=True)
    assert [(each["classifier"], each["training"], each["top1"]) for each in found] == [
        ("c1", "alone", 31.0),
        ("c2", "alone", 30.5),
        ("c1", "dks", 28.5),
        ("c2", "dks", 27.5),
    ]
    table = build(found, "s", "S", ["classifier", "training"], ["classifier"], ["training"])
    gains = {
        place[0][0]: cell.numbers[0].gains
        for place, cell in table.cells.items()
        if place[1] == ("dks",)
    }
    assert gains == {"c1": {Over.alone: 2.5}, "c2": {Over.alone: 3.0}}
    assert table.states == {"done": 3}, "a run with two classifiers is one run"


def test_an_axis_method_has_what_was_typed_and_the_cell_what_it_trains() -> None:
    """A preset of one's own, and a synergy of weight 0.

    Who names no method is called after what is trained.
    """
    typed = {"a": "mine", "b": "dks", "c": "-"}
    cells = [
        dataclasses.replace(cell(name, "ds"), labels={"method": method})
        for name, method in typed.items()
    ]
    table = build(made(sweep(*cells)), "s", "S", ["method"])
    assert list(table.rows) == [("mine",), ("dks",), ("ds",)]
    assert [each.method for each in table.cells.values()] == ["ds", "ds", "ds"]


def test_a_cell_that_waits_for_a_choice_has_its_place() -> None:
    found = made(
        sweep(cell("a"), pending=[{"method": "kd_c1"}]),
        run("a", final_top1_error=5.0, final_top5_error=1.0),
    )
    table = build(found, "s", "S", ["method"], ["method"], undecided=["kd_c1: 1 more cell follows"])
    waiting = table.cells[("kd_c1",), ()]
    assert (waiting.states, waiting.wanted, waiting.cell_ids) == ({"missing": 1}, 1, ())
