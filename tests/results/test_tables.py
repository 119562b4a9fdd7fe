"""Tables from a frame of entries: statistics, gains, what is missing, and every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dks.results import render
from dks.results.model import Table, TableCell, build
from dks.results.results import show
from dks.results.shape import Epoch, Metric, Over, Shape
from dks.results.sheet import caption, sheets
from dks.results.statistics import compare, interval
from dks.sweeps.paper import Key, PaperNumber, PaperRow, PaperTable

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
AXES_OF_NOTHING = {
    "seed",
    "state",
    "value",
    "five",
    "method",
    "left_out",
    "computed",
    "computed_by",
    "keys",
}


def frame(*runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries.

    A configuration is all its labels but the seed, its baseline the same with method=baseline, its
    DS with ds.
    """
    rows = []
    for number, run in enumerate(runs):
        labels = {key: value for key, value in run.items() if key not in AXES_OF_NOTHING}

        def named(method: str, labels: dict[str, str] = labels) -> str:
            return "|".join([*labels.values(), method])

        method = run.get("method", "")
        rows.append(
            {
                "cell_id": f"cell{number}",
                "config_id": named(method),
                "entry_id": named(method),
                "over_baseline": named("baseline") if method else None,
                "over_ds": named("ds") if method == "dks" else None,
                "over_alone": None,
                "seed": 0,
                "state": "done",
                "left_out": "",
                "method": method,
                "trained": method,
                "computed": "",
                "keys": [Key(named(method))],
                "top1": run.get("value", math.nan),
                "top5": run.get("five", math.nan),
                **run,
            }
        )
    return rows


def seeds(values: list[float | None], **labels: str) -> list[dict[str, Any]]:
    return [
        {**labels, "seed": seed, **({"value": value} if value is not None else {"state": "failed"})}
        for seed, value in enumerate(values)
    ]


def make(runs: list[dict[str, Any]], axes: list[str], **more: Any) -> Table:
    return build(runs if runs and "entry_id" in runs[0] else frame(*runs), "t", "t", axes, **more)


def only(table: Table, *place: str) -> TableCell:
    """The cell in a table whose last axis makes the columns."""
    return table.cells[(tuple(place[:-1]), tuple(place[-1:]))]


def text(table: Table, *place: str) -> str:
    """What stands in that cell."""
    sheet = sheets(table)[0]
    row = next(row for row in sheet.rows if row.labels == tuple(place[:-1]))
    return next(
        cell.text for cell in row.cells if cell.place == (tuple(place[:-1]), tuple(place[-1:]))
    )


def test_mean_and_sample_standard_deviation_over_seeds() -> None:
    values = [29.97, 30.11, 29.5, 30.4, 29.8]
    table = make(seeds(list(values), aux="ours", strategy="bidir"), ["aux", "strategy", "seed"])
    cell = only(table, "ours", "bidir")
    (number,) = cell.numbers
    assert number.mean == pytest.approx(statistics.fmean(values))
    assert number.sd == pytest.approx(
        math.sqrt(sum((v - statistics.fmean(values)) ** 2 for v in values) / 4)
    )
    assert (cell.n, cell.wanted, cell.is_whole) == (5, 5, True)
    assert text(table, "ours", "bidir") == "29.96(0.34)"
    low, high = number.interval  # type: ignore[misc]
    half = 2.7764451 * number.sd / math.sqrt(5)  # type: ignore[operator]  # the 97.5 % quantile of t with 4 degrees of freedom
    assert (low, high) == pytest.approx((number.mean - half, number.mean + half))


@pytest.mark.filterwarnings("ignore:Precision loss")  # SciPy, of the sample that does not vary
@pytest.mark.parametrize("sample", [[29.9, 30.1, 30.6], [30.0, 30.0, 30.0, 30.0], [31.0, 29.0]])
def test_differences_are_those_of_scipy(sample: list[float]) -> None:
    from scipy import stats

    other = [31.2, 30.8, 31.5, 30.1, 31.0]
    (found,) = compare([(sample, other)])
    test = stats.ttest_ind(sample, other, equal_var=False)
    assert found is not None
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert interval(other) == pytest.approx(
        stats.t.interval(0.95, 4, statistics.fmean(other), stats.sem(other))
    )


def test_a_failed_or_missing_run_is_said_and_not_averaged_away() -> None:
    runs = [
        *seeds([10.0, None, 12.0], aux="ours", strategy="a"),
        {"aux": "ours", "strategy": "b", "state": "missing"},
    ]
    runs.append({"aux": "ours", "strategy": "c", "state": "failed"})
    table = make(runs, ["aux", "strategy", "seed"])
    assert text(table, "ours", "a") == "11.00(1.41) n=2 of 3, 1 failed"
    assert text(table, "ours", "b") == "missing"
    assert text(table, "ours", "c") == "failed"
    assert "of 5 runs 2 failed, 1 missing" in sheets(table)[0].notes


def test_a_finished_run_that_is_not_finite_or_lacks_epochs_is_left_out_and_counted() -> None:
    runs = [*seeds([10.0, math.nan], aux="a"), *seeds([9.0, 3.0], aux="b")]
    runs[1]["left_out"], runs[3]["left_out"] = "result not finite", "epochs missing"
    table = make(runs, ["aux", "seed"])
    cell = table.cells[("a",), ()]
    assert (cell.n, cell.wanted, cell.numbers[0].mean, cell.left_out) == (
        1,
        2,
        10.0,
        {"result not finite": 1},
    )
    assert table.left_out == {"result not finite": 1, "epochs missing": 1}
    assert "left out: 1 finished run (result not finite)" in sheets(table)[0].notes
    assert not any(cell.is_best for cell in table.cells.values()), "neither has all its runs"


def test_few_runs_are_said_once_or_where_they_differ() -> None:
    same = make([*seeds([1.0, 2.0], aux="a"), *seeds([3.0, 4.0], aux="b")], ["aux", "seed"])
    assert "n = 2 seeds" in caption(same)
    assert sheets(same)[0].rows[0].cells[0].text == "1.50(0.71)"
    single = make([*seeds([1.0], aux="a"), *seeds([3.0], aux="b")], ["aux"])
    assert "n = 1 (a single seed, no standard deviation)" in caption(single)
    mixed = make([*seeds([1.0, 2.0], aux="a"), *seeds([3.0] * 6, aux="b")], ["aux", "seed"])
    assert [row.cells[0].text for row in sheets(mixed)[0].rows] == ["1.50(0.71) n=2", "3.00(0.00)"]


def test_the_best_is_the_lowest_among_those_with_all_their_runs() -> None:
    runs = [
        *seeds([5.0, None], aux="broken"),
        *seeds([6.0, 6.0], aux="good"),
        *seeds([7.0, 7.0], aux="worse"),
    ]
    table = make(runs, ["aux", "seed"])
    assert [row[0] for (row, _), cell in table.cells.items() if cell.is_best] == ["good"]
    one = make(seeds([6.0], aux="good"), ["aux"])
    assert not any(cell.is_best for cell in one.cells.values()), "nothing to compare with"


def test_the_best_is_marked_for_each_network_unless_networks_alone_are_swept() -> None:
    runs = [
        {"backbone": net, "method": m, "value": v}
        for net, m, v in (("r8", "ds", 9.0), ("r8", "dks", 8.0), ("r32", "ds", 7.0))
    ]
    runs.append({"backbone": "r32", "method": "dks", "value": 7.5})
    table = make(runs, ["backbone", "method"])
    assert [row[0] + column[0] for (row, column), cell in table.cells.items() if cell.is_best] == [
        "r8dks",
        "r32ds",
    ]
    nets = make(
        [{"backbone": net, "value": v} for net, v in (("r8", 9.0), ("r32", 7.0))], ["backbone"]
    )
    assert [row[0] for (row, _), cell in nets.cells.items() if cell.is_best] == ["r32"]


def methods(**values: list[float]) -> list[dict[str, Any]]:
    """Runs of one network with these methods."""
    return [
        run for method, its in values.items() for run in seeds(list(its), net="r", method=method)
    ]


def test_gains_are_over_the_baseline_of_the_same_network_and_over_ds() -> None:
    runs = [
        {"net": "r20", "method": m, "value": v}
        for m, v in (("baseline", 10.0), ("ds", 9.5), ("dks", 8.0))
    ]
    runs += [{"net": "r32", "method": m, "value": v} for m, v in (("baseline", 7.0), ("dks", 7.5))]
    table = make(runs, ["net", "method"])
    gains = {
        (row[0], column[0]): cell.numbers[0].gains for (row, column), cell in table.cells.items()
    }
    assert gains == {
        ("r20", "baseline"): {},
        ("r20", "ds"): {Over.baseline: 0.5},
        ("r20", "dks"): {Over.baseline: 2.0, Over.ds: 1.5},
        ("r32", "baseline"): {},
        ("r32", "dks"): {Over.baseline: -0.5},
    }
    sheet = sheets(table)[0]
    assert [heading.text for heading in sheet.head[-1]] == [
        "error",
        "error",
        "gain",
        "error",
        "gain",
    ]
    assert [cell.text for cell in sheet.rows[1].cells] == [
        "7.00*".rstrip("*"),
        "",
        "",
        "7.50",
        "-0.50",
    ]
    assert "gain over the baseline" in caption(table)
    over_ds = make(runs, ["net", "method"], shape=Shape(gain=(Over.ds,)))
    assert [heading.text for heading in sheets(over_ds)[0].head[-1]] == [
        "error",
        "error",
        "error",
        "gain",
    ]
    assert sheets(over_ds)[0].rows[0].cells[-1].text == "1.50"


def test_every_method_is_tested_against_its_baseline_and_dks_against_ds_with_holms_correction() -> (
    None
):
    from scipy import stats

    values = {
        "baseline": [29.6, 30.1, 30.4, 29.8, 29.9],
        "ds": [29.7, 29.9, 30.3, 29.5, 30.0],
        "dks": [26.5, 27.1, 26.4, 27.2, 26.9],
    }
    table = make(methods(**values), ["net", "method", "seed"])
    p = {
        (method, over): stats.ttest_ind(values[over], values[method], equal_var=False).pvalue
        for method, over in (("ds", "baseline"), ("dks", "baseline"), ("dks", "ds"))
    }
    tests = {(each.place[1][0], each.over.value): each for each in table.comparisons}
    assert tests.keys() == p.keys()
    ordered = sorted(p, key=lambda key: p[key])
    for rank, key in enumerate(ordered):
        assert tests[key].difference.p == pytest.approx(p[key])
        floor = max(min(1.0, (3 - earlier) * p[ordered[earlier]]) for earlier in range(rank + 1))
        assert tests[key].p_holm == pytest.approx(floor)
    found = tests["dks", "baseline"].difference
    interval = stats.ttest_ind(
        values["baseline"], values["dks"], equal_var=False
    ).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    verdicts = [row.cells[-1].text for row in sheets(table)[1].rows]
    assert verdicts == ["no evidence", "evidence", "evidence"]
    assert "no evidence is not evidence of no effect" in sheets(table)[1].notes[0]


def test_a_terminal_shows_a_line_instead_of_very_many_tests() -> None:
    runs = [
        run
        for net in range(40)
        for method, values in (("baseline", [10.0, 10.1]), ("ds", [9.0 - net, 9.1 - net]))
        for run in seeds(list(values), net=f"n{net}", method=method)
    ]
    runs += [run for net in range(30) for run in seeds([8.0, 12.0], net=f"n{net}", method="dks")]
    table = make(runs, ["net", "method", "seed"])
    out = io.StringIO()
    render.terminal(table, Console(file=out, width=200))
    assert "100 gains can be tested; every other format lists the tests" in out.getvalue()
    assert "Hedges" not in out.getvalue() and render.markdown(table).count("evidence |") == 100


def test_hedges_g_has_the_small_sample_correction() -> None:
    from dks.results.statistics import hedges_g

    a, b = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0]
    pooled = math.sqrt((2 * 1.0 + 3 * (20 / 3)) / 5)
    correction = math.gamma(2.5) / (math.sqrt(2.5) * math.gamma(2.0))
    assert hedges_g(b, a) == pytest.approx(correction * (5.0 - 2.0) / pooled)
    assert correction == pytest.approx(1 - 3 / (4 * 5 - 1), abs=2e-3), (
        "the well-known approximation"
    )


def test_holm_by_hand() -> None:
    from dks.results.statistics import holm

    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    corrected = holm([0.5, math.nan, 0.9])
    assert corrected[0] == 1.0
    assert math.isnan(corrected[1])


def test_one_seed_gives_no_standard_deviation_no_interval_and_no_test() -> None:
    table = make(methods(baseline=[10.0], ds=[9.0, 9.5], dks=[8.0]), ["net", "method", "seed"])
    assert table.comparisons == ()
    assert only(table, "r", "dks").numbers[0].sd is None
    assert only(table, "r", "dks").numbers[0].interval is None
    assert len(sheets(table)) == 1


def test_samples_that_do_not_vary_have_no_p_value_unless_they_are_equal() -> None:
    table = make(
        methods(baseline=[10.0, 10.0], ds=[10.0, 10.0], dks=[8.0, 8.0]), ["net", "method", "seed"]
    )
    tests = {(each.place[1][0], each.over.value): each for each in table.comparisons}
    assert tests["ds", "baseline"].difference.p == 1.0
    assert math.isnan(tests["dks", "baseline"].difference.p)
    assert sheets(table)[1].rows[1].cells[3].text == "undefined"
    one_varies = make(methods(baseline=[10.0, 10.0], dks=[8.0, 9.0]), ["net", "method", "seed"])
    assert 0 < one_varies.comparisons[0].difference.p < 1


def test_one_axis_is_one_column_and_more_axes_are_grouped() -> None:
    one = make([*seeds([1.0], aux="a"), *seeds([2.0], aux="b")], ["aux"])
    assert (one.row_axes, one.column_axes, one.rows, one.columns) == (
        ("aux",),
        (),
        (("a",), ("b",)),
        ((),),
    )
    assert sheets(one)[0].head == (
        (dataclasses.replace(sheets(one)[0].head[0][0], text="error (%)"),),
    )
    runs = [{"x": x, "y": y, "z": z, "value": 1.0} for x in "ab" for y in "cd" for z in "ef"]
    three = make(runs, ["x", "y", "z"])
    assert three.row_axes == ("x", "y")
    assert three.rows == (("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"))
    assert three.columns == (("e",), ("f",))
    two_above = make(runs, ["x", "y", "z"], rows=["x"], columns=["y", "z"])
    head = sheets(two_above)[0].head
    assert [(heading.text, heading.span) for heading in head[0]] == [("y=c", 2), ("y=d", 2)]
    assert [(heading.text, heading.span) for heading in head[1]] == [
        ("z=e", 1),
        ("z=f", 1),
        ("z=e", 1),
        ("z=f", 1),
    ]


def test_only_seeds_make_one_row() -> None:
    table = make(frame(*[{"seed": s, "value": float(s)} for s in range(3)]), ["seed"])
    assert sheets(table)[0].rows[0].cells[0].text == "1.00(1.00)"


def test_a_value_swept_in_two_spellings_counts_once() -> None:
    runs = frame(*seeds([1.0, 3.0], aux="a"))
    table = make([*runs, runs[0]], ["aux", "seed"])
    assert table.cells[("a",), ()].wanted == 2


def paper(**means: str) -> PaperTable:
    rows = [
        PaperRow(
            {},
            {"top1": PaperNumber(*mean.split(","), None, where="here")},
            keys=frozenset({Key(f"r|{method}")}),
        )  # type: ignore[misc]
        for method, mean in means.items()
    ]
    return PaperTable("t", tuple(rows))


def test_the_papers_figure_stands_beside_ours_with_the_difference() -> None:
    table = make(
        methods(baseline=[29.9, 30.1], dks=[26.0, 27.0]),
        ["net", "method", "seed"],
        paper=paper(baseline="29.97,0.33"),
    )
    sheet = sheets(table)[0]
    assert [heading.text for heading in sheet.head[-1]] == [
        "error",
        "paper",
        "difference",
        "n",
        "error",
        "gain",
        "n",
    ]
    assert [cell.text for cell in sheet.rows[0].cells] == [
        "30.00(0.14)",
        "29.97(0.33)",
        "+0.03",
        "2",
        "26.50(0.71)",
        "3.50",
        "2",
    ]
    assert "ours less the paper's" in sheet.caption


def test_a_run_in_another_setting_is_never_beside_the_papers_figure() -> None:
    runs = methods(baseline=[29.9, 30.1], dks=[26.0, 27.0])
    for run in runs:
        run["keys"] = [Key(f"short {run['method']}")]
    differs = {
        "short baseline": ["recipe.epochs=2 (paper: 200)"],
        "short dks": ["recipe.epochs=2 (paper: 200)"],
    }
    table = make(
        runs, ["net", "method", "seed"], paper=paper(baseline="29.97,0.33"), differs=differs
    )
    assert not table.has_paper
    assert "29.97" not in render.markdown(table)
    assert (
        "not the paper's setting, so its numbers are not shown: recipe.epochs=2 (paper: 200)"
        in sheets(table)[0].notes
    )
    differs["short dks"].append("data=digits (paper: cifar100)")
    mixed = make(
        runs, ["net", "method", "seed"], paper=paper(baseline="29.97,0.33"), differs=differs
    )
    assert (
        "not the paper's setting in r dks: data=digits (paper: cifar100)" in sheets(mixed)[0].notes
    )


def test_how_numbers_were_computed_stands_beneath_them_unless_it_is_the_standard_way() -> None:
    fast = "precision=bf16 tf32=true"
    runs = [{"net": "r", "method": m, "value": v} for m, v in (("baseline", 10.0), ("dks", 8.0))]
    axes = ["net", "method"]
    assert not any("computed" in note for note in sheets(make(runs, axes))[0].notes)
    everywhere = make([{**run, "computed": fast} for run in runs], axes)
    assert f"computed with {fast}" in sheets(everywhere)[0].notes
    mixed = make([runs[0], {**runs[1], "computed": fast}], axes)
    notes = sheets(mixed)[0].notes
    assert (
        f"computed with {fast}: r dks" in notes
        and "computed in the standard way, float32: the others" in notes
    )
    lines = render.comma_separated(mixed).splitlines()
    column = lines[0].split(",").index("computed")
    assert [line.split(",")[column] for line in lines[1:]] == ["", fast]


def test_cells_set_aside_are_told_beneath_the_table() -> None:
    table = make(
        methods(baseline=[29.9, 30.1], dks=[26.0, 27.0]),
        ["net", "method", "seed"],
        shape=Shape(aside={"method": "baseline"}),
    )
    assert table.columns == (("dks",),)
    assert "r baseline: 30.00(0.14)" in sheets(table)[0].notes


def test_the_best_epoch_is_labelled_optimistic() -> None:
    table = make(seeds([1.0], aux="a"), ["aux"], epoch=Epoch.best)
    assert "best epoch, chosen by the test error itself and so optimistic" in caption(table)


def test_no_minus_before_a_zero() -> None:
    from dks.results.sheet import fixed

    assert [fixed(-0.001), fixed(-0.01), fixed(2.345)] == ["0.00", "-0.01", "2.35"]
    assert [fixed(-0.001, signed=True), fixed(0.2, signed=True), fixed(0.0, signed=True)] == [
        "+0.00",
        "+0.20",
        "+0.00",
    ]


@pytest.fixture
def rich_table() -> Table:
    """Everything at once.

    Two metrics, grouped heads, gains, the paper's figures, states, what is set aside, odd names.
    """
    runs = []
    odd = "50%_&$#{x}~^\\<b>|[1]"
    for design, method, values in (
        ("none", "baseline", [31.06, 31.06]),
        ("ap_2fc", "ds", [31.8, 31.9]),
        ("ap_2fc", "dks", [35.0, None]),
        (odd, "ds", [29.0, 31.0]),
        (odd, "dks", [26.2, 26.4]),
    ):
        for run in seeds(list(values), aux=design):
            five = {"five": run["value"] / 3} if "value" in run else {}
            runs.append({**run, **five, "method": method})
    entries = frame(*runs)
    for entry in entries:
        entry["over_baseline"] = "none|baseline"
    rows = [
        ("none", "baseline", PaperNumber("31.06", "0.10", None, where="Table 3, caption")),
        ("ap_2fc", "ds", PaperNumber("31.85", "0.42", None, where="Table 3")),
        ("ap_2fc", "dks", PaperNumber("35.09", "0.54", "-3.24", "ds", "Table 3")),
    ]
    printed = PaperTable(
        "t", tuple(PaperRow({}, {"top1": n}, keys=frozenset({Key(f"{a}|{m}")})) for a, m, n in rows)
    )
    shape = Shape((Metric.top1, Metric.top5), (Over.ds,), {"method": "baseline"})
    return build(
        entries,
        "my_sweep",
        "my_sweep, 100%",
        ["aux", "method", "seed"],
        ["aux"],
        ["method"],
        shape,
        paper=printed,
    )


@pytest.mark.parametrize("form", ["md", "latex", "html", "csv"])
def test_formats_are_as_looked_at(rich_table: Table, form: str) -> None:
    assert render.TEXT_FORMATS[form](rich_table) == (GOLDEN / f"table.{form}").read_text(
        encoding="utf-8"
    )


def test_programs_get_what_the_other_formats_say(rich_table: Table) -> None:
    (found,) = json.loads(render.as_json([rich_table]))
    lines = list(csv.DictReader(io.StringIO(render.comma_separated(rich_table))))
    cells = {(*cell["row"].values(), *cell["column"].values()): cell for cell in found["cells"]}
    axes = [*found["rows"], *found["columns"]]
    compared = 0
    for line in lines:
        cell = cells[tuple(line[axis] for axis in axes)]
        numbers = cell["metrics"][Metric(line["metric"]).name]
        assert " ".join(cell["cell_ids"]) == line["cell_ids"] and cell["n"] == int(line["n"])
        for name in ("mean", "sd", "low", "high", "difference"):
            assert ("" if numbers[name] is None else repr(numbers[name])) == line[name]
        for over, test in cell["tests"].items():
            if numbers is next(iter(cell["metrics"].values())):
                compared += 1
                assert all(
                    repr(test[name]) == line[f"{name}_over_{over}"]
                    for name in ("gain_low", "p", "p_holm")
                )
    assert compared == len(rich_table.comparisons) > 0
    keys = {
        "name",
        "title",
        "epoch",
        "rows",
        "columns",
        "states",
        "undecided",
        "decided",
        "changed",
        "earlier",
        "computed",
        "cells",
    }
    assert keys == set(found)


def test_the_terminal_is_as_looked_at(rich_table: Table) -> None:
    out = io.StringIO()
    render.terminal(rich_table, Console(file=out, width=200))
    assert out.getvalue() == (GOLDEN / "table.terminal").read_text(encoding="utf-8")


@pytest.mark.parametrize("terminal", [False, True])
def test_no_number_is_cut_however_narrow_the_terminal(
    rich_table: Table, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", Narrow())
    show(rich_table)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue())  # type: ignore[attr-defined]
    assert "…" not in shown
    assert all(
        cell.text in shown
        for sheet in sheets(rich_table)
        for row in sheet.rows
        for cell in row.cells
    )
    assert max(map(len, shown.splitlines())) < 400, "nothing is filled up with spaces"


def test_the_best_is_bold_on_a_terminal_and_starred_elsewhere() -> None:
    table = make([*seeds([5.1], aux="a"), *seeds([4.1], aux="b")], ["aux"])
    plain, dumb, colour = io.StringIO(), io.StringIO(), io.StringIO()
    render.terminal(table, Console(file=plain, width=120))
    render.terminal(
        table, Console(file=dumb, width=120, force_terminal=True, _environ={"TERM": "dumb"})
    )
    render.terminal(
        table,
        Console(
            file=colour, width=120, force_terminal=True, color_system="standard", no_color=False
        ),
    )
    assert "4.10*" in plain.getvalue() and dumb.getvalue() == plain.getvalue()
    assert "\x1b[" not in plain.getvalue()
    assert "\x1b[1m     4.10\x1b[0m" in colour.getvalue()
    assert "4.10*" not in colour.getvalue()
