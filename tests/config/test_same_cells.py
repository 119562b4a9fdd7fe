"""Points of a sweep that are one cell.

It runs once, fills the rows of all of them, and the table says so.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from dks.results import render
from dks.results.model import Table, build
from dks.results.shape import Over
from tests.conftest import TINY

RunHere = Callable[..., tuple[int, str, str]]
NOTE = "the same configuration, trained once: method=ds and method=dks"


def test_a_synergy_of_weight_0_is_deep_supervision(run_here: RunHere, in_folder: Path) -> None:
    """Two points, one run; whatever the row is called, the method is what was trained."""
    status, out, err = run_here(
        "-m", "method=ds,dks", "loss.beta=0", *TINY, "recipe.epochs=1", "hydra/launcher=basic"
    )
    assert status == 0, err
    (record,) = [json.loads(path.read_text()) for path in in_folder.glob("runs/*/record.json")]
    assert record["method"] == "ds"
    assert "1 cell (1 missing); 1 to run; 1 more point is one of these in other words" in err
    assert NOTE in out
    (folder,) = in_folder.glob("results/*")
    for name in ("table.md", "table.tex", "table.html"):
        assert NOTE in (folder / name).read_text().replace("\\=", "="), name
    one, other = csv.DictReader(io.StringIO((folder / "table.csv").read_text()))
    assert (one["method"], one["same_as"], other["method"], other["same_as"]) == (
        "ds",
        "",
        "dks",
        "ds",
    )
    assert (
        (one["mean"], one["cell_ids"])
        == (other["mean"], other["cell_ids"])
        == (one["mean"], record["cell_id"])
    )
    sweep = json.loads((folder / "sweep.json").read_text())
    assert [cell["method"] for cell in sweep["cells"]] == ["ds", "ds"]


def test_a_value_that_is_typed_twice_is_refused(run_here: RunHere, in_folder: Path) -> None:
    for typed, value in (
        ("seed=1,2,1", "1"),
        ("aux=ours,shallow,ours", "ours"),
        ("recipe.lr=choice(0.5,0.5)", "0.5"),
    ):
        assert run_here("-m", typed) == (
            2,
            "",
            f"error: {typed} has {value} twice; give each value once\n",
        )
    assert not list(in_folder.iterdir())


def rows() -> list[dict[str, Any]]:
    """A baseline and a better method, each in two rows, with two seeds each."""
    made = []
    for name, entry, values in (
        ("plain", "P", [30.0, 31.0]),
        ("ours", "M", [20.0, 21.5]),
        ("plain again", "P", [30.0, 31.0]),
        ("ours again", "M", [20.0, 21.5]),
    ):
        for seed, value in enumerate(values):
            made.append(
                {
                    **{
                        "name": name,
                        "cell_id": f"{entry}{seed}",
                        "config_id": entry,
                        "entry_id": entry,
                        "keys": [],
                    },
                    **{
                        "over_baseline": "P",
                        "over_ds": None,
                        "over_alone": None,
                        "seed": seed,
                        "state": "done",
                    },
                    **{"left_out": "", "trained": "", "computed": "", "top1": value},
                }
            )
    return made


def table() -> Table:
    """One more run of the method is not finite."""
    failed = {"cell_id": "M2", "seed": 2, "left_out": "result not finite"}
    more = [{**row, **failed} for row in rows() if row["entry_id"] == "M" and row["seed"] == 0]
    return build([*rows(), *more], "t", "t", ["name", "seed"])


def test_rows_with_the_same_runs_have_the_same_numbers_and_one_test() -> None:
    made = table()
    assert made.same == {
        (("plain again",), ()): (("plain",), ()),
        (("ours again",), ()): (("ours",), ()),
    }
    (test,) = made.comparisons
    assert (test.place, test.over, test.n) == ((("ours",), ()), Over.baseline, 2)
    assert test.p_holm == test.difference.p, "corrected for one test, not for two"
    gains = {place[0][0]: cell.numbers[0].gains for place, cell in made.cells.items()}
    assert gains == {
        "plain": {},
        "plain again": {},
        "ours": {Over.baseline: 9.75},
        "ours again": {Over.baseline: 9.75},
    }
    assert made.left_out == {"result not finite": 1}, "one run, in two rows"
    assert made.states == {"done": 5}


def test_every_format_says_which_rows_are_the_same() -> None:
    made = table()
    screen = io.StringIO()
    render.terminal(made, Console(file=screen, width=200))
    texts = [
        screen.getvalue(),
        *(render.TEXT_FORMATS[form](made) for form in ("md", "latex", "html")),
    ]
    for text in texts:
        assert (
            "the same configuration, trained once: name=plain and name=plain again"
            in text.replace("\\=", "=")
        )
        assert (
            "the same configuration, trained once: name=ours and name=ours again"
            in text.replace("\\=", "=")
        )
    lines = list(csv.DictReader(io.StringIO(render.comma_separated(made))))
    assert [line["same_as"] for line in lines] == ["", "", "plain", "ours"]
    assert lines[1]["p_over_baseline"] == lines[3]["p_over_baseline"] != ""
    cells = json.loads(render.as_json([made]))[0]["cells"]
    firsts = [{"row": {"name": name}, "column": {}} for name in ("plain", "ours")]
    assert [cell["same_as"] for cell in cells] == [None, None, *firsts]
    assert cells[1]["tests"] == cells[3]["tests"] != {}


def test_two_rows_of_one_configuration_alone_are_not_the_best_of_anything() -> None:
    assert [cell.is_best for cell in build(rows(), "t", "t", ["name", "seed"]).cells.values()] == [
        False,
        True,
        False,
        True,
    ]
    alone = [row for row in rows() if row["entry_id"] == "P"]
    assert [cell.is_best for cell in build(alone, "t", "t", ["name", "seed"]).cells.values()] == [
        False,
        False,
    ]
