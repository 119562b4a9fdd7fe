"""The notebooks of `analysis/`.

Thin, stored without output, and what they show is what the runs gave.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from dks.results.model import Table, build
from dks.results.shape import Shape
from dks.sweeps import files
from tests.conftest import ROOT

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = ROOT / "analysis"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
FIGURES = {"figure3": "curves", "error_curves": "spread", "cost": "cost"}
# Those that show another sweep than the one of their own name.
OTHERS = {"error_curves": "table1", "cost": "table3"}
OPENED = re.compile(r'Study\.open\("(\w+)"')
MOST_LINES = 13
PAPER = [part.name for part in files.read("paper").include]


def read(name: str) -> NotebookNode:
    import nbformat

    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


# --- as they are stored


def test_there_is_a_notebook_for_every_sweep_of_the_paper() -> None:
    assert sorted([*PAPER, *OTHERS]) == NOTEBOOKS
    assert all(
        OPENED.findall("\n".join(code(read(name)))) == [OTHERS.get(name, name)]
        for name in NOTEBOOKS
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_thin_and_stored_without_output(name: str) -> None:
    import nbformat

    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells] == [
        "title",
        "table",
        *(["figure"] if name in FIGURES else []),
    ]
    assert [cell.cell_type for cell in notebook.cells] == [
        "markdown",
        *["code"] * (len(notebook.cells) - 1),
    ]
    for cell in notebook.cells[1:]:
        assert (cell.outputs, cell.execution_count) == ([], None)
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert (
        name not in FIGURES or f'draw("{FIGURES[name]}", table, study.source)' in code(notebook)[-1]
    )
    lines = [line for source in code(notebook) for line in source.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_tells_the_command_that_its_sweep_file_tells(name: str) -> None:
    sweep = OTHERS.get(name, name)
    (command,) = re.findall(
        rf"^# +(dks sweep run {sweep}\b.*)$",
        (ROOT / "sweeps" / f"{sweep}.yaml").read_text(),
        re.MULTILINE,
    )
    assert f"`{command}`" in read(name).cells[0].source
    assert f"[{name}]({name}.ipynb)" in (FOLDER / "README.md").read_text()


# --- a part of a table


def designs_by_methods() -> Table:
    """Three designs x two methods with two seeds, and the baseline told beneath."""
    errors = {"ours": 5.0, "narrow": 7.0, "shallow": 6.0}
    entries = [
        {
            **{
                "aux": aux,
                "method": method,
                "seed": seed,
                "cell_id": f"{aux}-{method}-{seed}",
                "config_id": f"{aux}-{method}",
            },
            **{
                "entry_id": f"{aux}-{method}",
                "over_baseline": "none-baseline",
                "over_ds": f"{aux}-ds",
                "over_alone": None,
            },
            **{
                "state": "done",
                "left_out": "",
                "trained": method,
                "computed": "",
                "keys": [],
                "top1": error + seed / 10 - (method == "dks"),
            },
        }
        for aux, method, error in [
            ("none", "baseline", 8.0),
            *((aux, method, error) for aux, error in errors.items() for method in ("ds", "dks")),
        ]
        for seed in (1, 2)
    ]
    shape = Shape(aside={"method": "baseline"})
    return build(entries, "t", "T", ["aux", "method"], ["aux"], ["method"], shape)


def test_only_keeps_the_cells_with_these_labels_as_they_are() -> None:
    table = designs_by_methods()
    assert table.comparisons and table.states == {"done": 14}
    part = table.only(aux=["ours", "shallow"])
    assert (part.rows, part.columns) == ((("ours",), ("shallow",)), (("ds",), ("dks",)))
    assert part.cells == {
        place: cell for place, cell in table.cells.items() if place[0][0] in ("ours", "shallow")
    }
    assert (part.aside, part.tested, part.states) == ((), [], {})
    assert (part.name, part.title, part.gains) == (table.name, table.title, table.gains)
    one = table.only(aux=["ours", "none"], method=["dks", "baseline"])
    assert list(one.cells) == [(("none",), ("baseline",)), (("ours",), ("dks",))]
    assert (one.columns, one.aside) == ((("dks",),), table.aside)
    assert table.only(aux=["nothing"]).cells == table.only(axu=["ours"]).cells == {}
    assert table.only() == dataclasses.replace(table, pairs=(), states={})
    html = part._repr_html_()
    assert "4.15(0.07)" in html and "7.15(0.07)" not in html
