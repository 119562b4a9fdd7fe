"""The notebooks of `analysis/`: thin, stored without output, and what they show is what the runs gave."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT, TINY, start, train

from dks.sweeps import files
from dks.tables.model import Shape, Table, build
from dks.tables.sheet import error_text
from dks.tables.study import Study

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
    assert all(OPENED.findall("\n".join(code(read(name)))) == [OTHERS.get(name, name)] for name in NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_thin_and_stored_without_output(name: str) -> None:
    import nbformat

    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells] == ["title", "table", *(["figure"] if name in FIGURES else [])]
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", *["code"] * (len(notebook.cells) - 1)]
    for cell in notebook.cells[1:]:
        assert (cell.outputs, cell.execution_count) == ([], None)
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert name not in FIGURES or f'draw("{FIGURES[name]}", table, study.source)' in code(notebook)[-1]
    lines = [line for source in code(notebook) for line in source.splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_tells_the_command_that_its_sweep_file_tells(name: str) -> None:
    sweep = OTHERS.get(name, name)
    (command,) = re.findall(rf"^# +(dks sweep run {sweep}\b.*)$", (ROOT / "sweeps" / f"{sweep}.yaml").read_text(), re.MULTILINE)
    assert f"`{command}`" in read(name).cells[0].source
    assert f"[{name}]({name}.ipynb)" in (FOLDER / "README.md").read_text()


# --- a part of a table


def designs_by_methods() -> Table:
    """Three designs x two methods with two seeds, and the baseline told beneath."""
    errors = {"ours": 5.0, "narrow": 7.0, "shallow": 6.0}
    entries = [
        {
            **{"aux": aux, "method": method, "seed": seed, "cell_id": f"{aux}-{method}-{seed}", "config_id": f"{aux}-{method}"},
            **{"entry_id": f"{aux}-{method}", "over_baseline": "none-baseline", "over_ds": f"{aux}-ds", "over_alone": None},
            **{
                "state": "done",
                "left_out": "",
                "trained": method,
                "computed": "",
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
    assert part.cells == {place: cell for place, cell in table.cells.items() if place[0][0] in ("ours", "shallow")}
    assert (part.aside, part.tested, part.states) == ((), [], {})
    assert (part.name, part.title, part.gains) == (table.name, table.title, table.gains)
    one = table.only(aux=["ours", "none"], method=["dks", "baseline"])
    assert list(one.cells) == [(("none",), ("baseline",)), (("ours",), ("dks",))]
    assert (one.columns, one.aside) == ((("dks",),), table.aside)
    assert table.only(aux=["nothing"]).cells == table.only(axu=["ours"]).cells == {}
    assert table.only() == dataclasses.replace(table, pairs=(), states={})
    html = part._repr_html_()
    assert "4.15(0.07)" in html and "7.15(0.07)" not in html


# --- as they run

# The least that fills every place of every table.
SMALL = (*TINY, "backbone=resnet8", "data.test_images=50", "seed=1")
# Table 4 has a branch that only the networks for ImageNet have.
DEEP = ("backbone=resnet18", "data.image_size=32", "data.augmentation=pad_crop", "data.train_images=16", "recipe.batch_size=8")
# The error curves are of these two networks, over several runs; here of one tenth of the width.
WIDE = (
    *("backbone=wrn28_10,wrn28_10_dropout", "backbone.depth=10", "backbone.width=1", "seed=1,2"),
    *(
        "backbone.branches.c3.stages=[{blocks:1,width:32},{blocks:1,width:64}]",
        "backbone.branches.c2.stages=[{blocks:1,width:128}]",
    ),
)


@dataclass(frozen=True)
class Workshop:
    """A folder in which every sweep of the paper ran at reduced size, tracked in one MLflow store."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"DKS_STORE": f"sqlite:///{self.folder / 'mlflow.db'}", "DKS_RESULTS": str(self.folder / "results")}

    def table(self, name: str) -> Table:
        """The table of a notebook, from the folders of the runs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            table = Study.open(OTHERS.get(name, name)).table()
        return table.only(backbone=["wrn28_10", "wrn28_10_dropout"]) if name == "error_curves" else table


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("notebooks")
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    status, _, err = train(folder, *TINY, "backbone=resnet8", "method=baseline", "seed=9", "tracking=off", **cache)
    assert status == 0, err
    (teacher,) = (path.name for path in (folder / "runs").iterdir())
    taught = ("teacher=checkpoint", f"kd_teacher.cell='{teacher}'", "kd_teacher.temperature=1,5", "data.holdout=8")
    for name in PAPER:
        own = {"table1": WIDE, "table4": DEEP, "table6": taught}.get(name, ())
        small = [each for each in SMALL if each.partition("=")[0] not in {other.partition("=")[0] for other in own}]
        process = start(["-m", "dks", "sweep", "run", name, *small, *own], folder, **cache)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    yield Workshop(folder)
    shutil.rmtree(folder / "runs")  # weights take much room


@pytest.fixture
def own_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Jupyter writes stays out of the home of whoever runs the tests."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("DKS_STORE", "DKS_RESULTS"):
        monkeypatch.delenv(name, raising=False)


def execute(name: str, folder: Path, allow_errors: bool = False) -> NotebookNode:
    """Run it as Jupyter does: the notebook's folder is the current one."""
    from nbclient import NotebookClient

    notebook = read(name)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=place, allow_errors=allow_errors).execute()
    return notebook


def outputs(notebook: NotebookNode, cell: str, kind: str) -> list[Any]:
    """What a cell left of one kind: a MIME type, `text` (printed) or `error`."""
    (found,) = (each.outputs for each in notebook.cells if each.id == cell)
    if kind == "text":
        return [each.text for each in found if each.output_type == "stream"]
    if kind == "error":
        return [f"{each.ename}: {each.evalue}" for each in found if each.output_type == "error"]
    return [each.data[kind] for each in found if kind in each.get("data", {})]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/*/record.json")}


slow = pytest.mark.slow
own = pytest.mark.usefixtures("own_jupyter")


@slow
@own
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_what_the_runs_in_the_store_gave(
    name: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in workshop.variables.items():
        monkeypatch.setenv(variable, value)
    notebook = execute(name, FOLDER)
    assert outputs(notebook, "table", "text") == [f"runs from {workshop.variables['DKS_STORE']}\n"]
    (html,) = outputs(notebook, "table", "text/html")
    table = workshop.table(name)
    assert html == table._repr_html_(), "the store and the folders of the runs tell the same"
    assert "missing" not in html
    assert '<th scope="col">paper</th>' not in html, "these are not the paper's settings"
    found = records(workshop.folder)
    for (row, column), cell in table.cells.items():
        assert cell.is_whole and error_text(cell) in html
        if "classifier" not in table.row_axes:
            errors = [found[cell_id]["final"]["test/top1_error"] for cell_id in cell.cell_ids]
            assert math.isclose(statistics.fmean(errors), cell.numbers[0].mean or math.nan), (row, column)
            assert f"{statistics.fmean(errors):.2f}" in html
    if name in FIGURES:
        (image,) = outputs(notebook, "figure", "image/svg+xml")
        assert image.startswith("<svg") and image.rstrip().endswith("</svg>")
        assert "<path" in image and table.title.partition(" with ")[0].partition(",")[0] in image
    assert not any(outputs(notebook, cell.id, "error") for cell in notebook.cells if cell.cell_type == "code")


@slow
@own
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["table3", "figure3"])
def test_without_variables_a_notebook_reads_what_lies_beside_its_folder(name: str, workshop: Workshop, tmp_path: Path) -> None:
    tracked, untracked = tmp_path / "tracked", tmp_path / "untracked"
    for folder, beside in ((tracked, ("results", "runs", "mlflow.db")), (untracked, ("results", "runs"))):
        (folder / "analysis").mkdir(parents=True)
        for each in beside:
            (folder / each).symlink_to(workshop.folder / each)
    expected = workshop.table(name)._repr_html_()
    for folder, source in ((tracked, "sqlite:///mlflow.db"), (untracked, "runs/")):
        notebook = execute(name, folder / "analysis")
        assert outputs(notebook, "table", "text") == [f"runs from {source}\n"]
        assert outputs(notebook, "table", "text/html") == [expected]
    assert not list((tracked / "analysis").iterdir())


@slow
@own
@pytest.mark.parametrize("name", ["table3", "table6", "figure3", "error_curves"])
def test_without_runs_a_notebook_shows_the_papers_numbers(name: str, tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    notebook = execute(name, tmp_path / "analysis", allow_errors=True)
    assert outputs(notebook, "table", "text") == ["runs from runs/\n"]
    (html,) = outputs(notebook, "table", "text/html")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        table = Study.open(OTHERS.get(name, name)).table()
    numbers = [number.paper.mean for cell in table.cells.values() for number in cell.numbers if number.paper]
    shown = [mean for mean in numbers if mean in html]
    assert shown == numbers if name != "error_curves" else len(shown) >= 6
    assert html.count("missing") >= len(shown) / len(table.metrics)
    if name in FIGURES:
        (error,) = outputs(notebook, "figure", "error")
        assert error == f"RequestError: {OTHERS.get(name, name)}: no run has a learning curve yet"
    made = {path.name for path in tmp_path.iterdir() if not path.name.startswith(("jupyter_", "ipython"))}
    assert made == {"analysis"} and not list((tmp_path / "analysis").iterdir())


@slow
@own
def test_a_store_that_is_not_there_is_one_line_and_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "analysis").mkdir()
    monkeypatch.setenv("DKS_STORE", "sqlite:///nowhere.db")
    notebook = execute("table3", tmp_path / "analysis", allow_errors=True)
    (error,) = outputs(notebook, "table", "error")
    assert error.startswith("RequestError: ") and "nowhere.db" in error and "\n" not in error
    assert not list(tmp_path.glob("**/nowhere.db"))
