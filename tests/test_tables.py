"""Tables from a frame of runs: statistics, gains, what is missing, and every format."""

from __future__ import annotations

import io
import math
import statistics
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from dks.tables import render
from dks.tables.model import Table, build


def frame(*runs: dict[str, Any]) -> pd.DataFrame:
    """Runs with the columns that building needs; a cell's configuration is all its labels but the seed."""
    rows = []
    for number, run in enumerate(runs):
        labels = {key: value for key, value in run.items() if key not in ("seed", "state", "value", "method")}
        rows.append(
            {
                "cell_id": f"cell{number}",
                "config_id": "|".join(labels.values()),
                "baseline_id": "|".join(
                    "baseline" if key == "method" else value for key, value in run.items() if key in labels
                ),
                "seed": 0,
                "state": "done",
                "value": math.nan,
                "git_commit": None,
                "folder": "",
                **run,
                "best": run.get("value", math.nan),
            }
        )
    return pd.DataFrame(rows)


def seeds(values: list[float | None], **labels: str) -> list[dict[str, Any]]:
    return [
        {**labels, "seed": seed, **({"value": value} if value is not None else {"state": "failed"})}
        for seed, value in enumerate(values)
    ]


def only(table: Table, *place: str) -> Any:
    return table.cells[(tuple(place[:-1]), place[-1])]


def test_mean_and_sample_standard_deviation_over_seeds() -> None:
    values = [29.97, 30.11, 29.5, 30.4, 29.8]
    table = build(frame(*seeds(values, aux="ours", strategy="bidir")), ["aux", "strategy", "seed"], "t", "m")
    cell = only(table, "ours", "bidir")
    assert cell.mean == pytest.approx(statistics.fmean(values))
    assert cell.sd == pytest.approx(math.sqrt(sum((v - cell.mean) ** 2 for v in values) / 4))
    assert (cell.n, cell.wanted) == (5, 5)
    assert render.cell_text(cell, table) == "29.96(0.34)"


def test_a_failed_or_missing_run_is_said_and_not_averaged_away() -> None:
    runs = [*seeds([10.0, None, 12.0], aux="ours", strategy="a"), {"aux": "ours", "strategy": "b", "state": "missing"}]
    runs.append({"aux": "ours", "strategy": "c", "state": "failed"})
    table = build(frame(*runs), ["aux", "strategy", "seed"], "t", "m")
    assert render.cell_text(only(table, "ours", "a"), table) == "11.00(1.41) n=2 of 3, 1 failed"
    assert render.cell_text(only(table, "ours", "b"), table) == "missing"
    assert render.cell_text(only(table, "ours", "c"), table) == "failed"


def test_few_runs_are_said_once_or_where_they_differ() -> None:
    same = build(frame(*seeds([1.0, 2.0], aux="a"), *seeds([3.0, 4.0], aux="b")), ["aux", "seed"], "t", "m")
    assert "n = 2 seeds" in render.caption(same)
    assert render.cell_text(only(same, "a", ""), same) == "1.50(0.71)"
    single = build(frame(*seeds([1.0], aux="a"), *seeds([3.0], aux="b")), ["aux"], "t", "m")
    assert "n = 1 (a single seed, no standard deviation)" in render.caption(single)
    mixed = build(frame(*seeds([1.0, 2.0], aux="a"), *seeds([3.0] * 6, aux="b")), ["aux", "seed"], "t", "m")
    assert render.cell_text(only(mixed, "a", ""), mixed) == "1.50(0.71) n=2"
    assert render.cell_text(only(mixed, "b", ""), mixed) == "3.00(0.00)"


def test_the_best_is_the_lowest_among_those_with_all_their_runs() -> None:
    runs = [*seeds([5.0, None], aux="broken"), *seeds([6.0, 6.0], aux="good"), *seeds([7.0, 7.0], aux="worse")]
    table = build(frame(*runs), ["aux", "seed"], "t", "m")
    assert [row[0] for (row, _), cell in table.cells.items() if cell.is_best] == ["good"]
    one = build(frame(*seeds([6.0], aux="good")), ["aux"], "t", "m")
    assert not any(cell.is_best for cell in one.cells.values()), "nothing to compare with"


def with_baselines() -> pd.DataFrame:
    rows = []
    for number, (net, method, value) in enumerate(
        [("r20", "baseline", 10.0), ("r20", "ds", 9.5), ("r20", "dks", 8.0), ("r32", "baseline", 7.0), ("r32", "dks", 7.5)]
    ):
        row = {"cell_id": f"{number}", "config_id": f"{net}{method}", "baseline_id": f"{net}baseline", "seed": 0}
        rows.append({**row, "backbone": net, "method": method, "state": "done", "value": value, "best": value})
    return pd.DataFrame(rows)


def test_the_gain_is_over_the_baseline_of_the_same_network() -> None:
    table = build(with_baselines(), ["backbone", "method"], "t", "m")
    gains = {(row[0], column): cell.gain for (row, column), cell in table.cells.items()}
    assert gains == {
        ("r20", "baseline"): None,
        ("r20", "ds"): 0.5,
        ("r20", "dks"): 2.0,
        ("r32", "baseline"): None,
        ("r32", "dks"): -0.5,
    }
    assert render.cell_text(only(table, "r20", "dks"), table) == "8.00 [+2.00]"
    assert "gain over the baseline" in render.caption(table)


def test_one_axis_is_one_column_and_three_are_grouped_rows() -> None:
    one = build(frame(*seeds([1.0], aux="a"), *seeds([2.0], aux="b")), ["aux"], "t", "m")
    assert (one.row_axes, one.column_axis, one.rows) == (("aux",), None, (("a",), ("b",)))
    runs = [{"x": x, "y": y, "z": z, "value": 1.0} for x in "ab" for y in "cd" for z in "ef"]
    three = build(frame(*runs), ["x", "y", "z"], "t", "m")
    assert three.row_axes == ("x", "y")
    assert three.rows == (("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"))
    assert three.columns == ("e", "f")


def test_only_seeds_make_one_row() -> None:
    table = build(frame(*[{"seed": s, "value": float(s)} for s in range(3)]), ["seed"], "t", "m")
    assert render.cell_text(table.cells[((), "")], table) == "1.00(1.00)"


@pytest.fixture
def table() -> Table:
    runs = [
        *seeds([5.1, 5.1], aux_design="ap_2fc", strategy="a|b"),
        *seeds([4.0, 4.2], aux_design="50%_&", strategy="a|b"),
        *seeds([None, None], aux_design="ap_2fc", strategy="c"),
        *seeds([6.0, 6.1], aux_design="50%_&", strategy="c"),
    ]
    return build(frame(*runs), ["aux_design", "strategy", "seed"], "my_sweep", "m")


def test_markdown_keeps_digits_and_escapes(table: Table) -> None:
    assert render.markdown(table) == (
        "my\\_sweep: top-1 test error in %, last epoch, mean(std) over seeds\n"
        "\n"
        "| aux\\_design | strategy=a\\|b | strategy=c |\n"
        "|:---|---:|---:|\n"
        "| ap\\_2fc | 5.10(0.00) n=2 | 2 failed |\n"
        "| 50%\\_& | **4.10(0.14) n=2** | 6.05(0.07) n=2 |\n"
    )


def test_latex_is_booktabs_with_everything_escaped(table: Table) -> None:
    assert render.latex(table) == (
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{my\\_sweep: top-1 test error in \\%, last epoch, mean(std) over seeds}\n"
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "aux\\_design & strategy=a|b & strategy=c \\\\\n"
        "\\midrule\n"
        "ap\\_2fc & 5.10(0.00) n=2 & 2 failed \\\\\n"
        "50\\%\\_\\& & \\textbf{4.10(0.14) n=2} & 6.05(0.07) n=2 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )


def test_csv_has_full_precision_and_the_run_ids(table: Table) -> None:
    lines = render.comma_separated(table).splitlines()
    assert lines[0] == "aux_design,strategy,mean,sd,n,wanted,gain,best_epoch_mean,not_done,cell_ids"
    assert lines[2] == "50%_&,a|b,4.1,0.14142135623730964,2,2,,4.1,,cell2 cell3"
    assert lines[3] == "ap_2fc,c,,,0,2,,,failed:2,cell4 cell5"


def test_the_best_is_bold_on_a_terminal_and_starred_elsewhere(table: Table) -> None:
    plain, colour = io.StringIO(), io.StringIO()
    render.terminal(table, Console(file=plain, width=120))
    render.terminal(table, Console(file=colour, width=120, force_terminal=True, color_system="standard", no_color=False))
    assert "4.10(0.14) n=2*" in plain.getvalue()
    assert "\x1b[" not in plain.getvalue()
    assert "\x1b[1m4.10(0.14) n=2\x1b[0m" in colour.getvalue()
    assert "2*" not in colour.getvalue()
