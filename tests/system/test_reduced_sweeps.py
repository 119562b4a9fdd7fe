"""Every named sweep run once at reduced size.

Its table, and what the notebooks of `analysis/` show of its runs.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.cli.main import main
from dks.results.model import Table
from dks.results.sheet import error_text
from dks.results.study import Study
from dks.runs.record import RunFolder, Status
from dks.sweeps import files, spec
from tests.conftest import ROOT, TINY, finished_run, sampled
from tests.system.test_notebooks import FIGURES, FOLDER, NOTEBOOKS, OTHERS, read

if TYPE_CHECKING:
    from nbformat import NotebookNode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# The least that fills every place of every table.
SMALL = (*TINY, "backbone=resnet8", "data.test_images=50", "seed=1")
# Table 4 has a branch that only the networks for ImageNet have.
DEEP = (
    "backbone=resnet18",
    "data.image_size=32",
    "data.augmentation=pad_crop",
    "data.train_images=16",
    "recipe.batch_size=8",
)
# The error curves are of these two networks, over several runs; here of one tenth of the width.
WIDE = (
    *("backbone=wrn28_10,wrn28_10_dropout", "backbone.depth=10", "backbone.width=1", "seed=1,2"),
    *(
        "backbone.branches.c3.stages=[{blocks:1,width:32},{blocks:1,width:64}]",
        "backbone.branches.c2.stages=[{blocks:1,width:128}]",
    ),
)


class Workshop:
    """A folder in which sweeps run when they are first asked for, tracked in one MLflow store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, set[str]()
        self.teacher = finished_run(folder, "backbone=resnet8", "method=baseline", "seed=9").cell_id

    @property
    def variables(self) -> dict[str, str]:
        return {
            "DKS_STORE": f"sqlite:///{self.folder / 'mlflow.db'}",
            "DKS_RESULTS": str(self.folder / "results"),
        }

    def overrides(self, name: str) -> list[str]:
        """How a sweep becomes small."""
        taught = (
            "teacher=checkpoint",
            f"kd_teacher.cell='{self.teacher}'",
            "kd_teacher.temperature=1,5",
            "data.holdout=8",
        )
        own = {"table1": WIDE, "table4": DEEP, "table6": taught}.get(name, ())
        if name == "paper":  # all of its tables have the same overrides
            own = (*DEEP, *taught)
        # of one epoch there is no curve
        drawn = name in {OTHERS.get(each, each) for each in FIGURES}
        small = (*SMALL, f"recipe.epochs={2 if drawn else 1}")
        return list({each.partition("=")[0]: each for each in (*small, *own)}.values())

    def run(self, name: str) -> None:
        """`dks sweep run NAME`, unless it ran before."""
        if name not in self.ran:
            main_of("sweep", "run", name, *self.overrides(name), "hydra/launcher=basic")
            self.ran.add(name)

    def table(self, name: str) -> Table:
        """The table of a notebook, from the folders of the runs."""
        table = Study.open(OTHERS.get(name, name)).table()
        return (
            table.only(backbone=["wrn28_10", "wrn28_10_dropout"])
            if name == "error_curves"
            else table
        )


def main_of(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code, arguments


@pytest.fixture(scope="module")
def whole_workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    yield Workshop(folder)
    shutil.rmtree(folder / "runs")  # weights take much room


@pytest.fixture
def workshop(whole_workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """The workshop is the current folder."""
    monkeypatch.chdir(whole_workshop.folder)
    return whole_workshop


# --- their tables


# The union of all that stand before it; that it shares their cells is tested without running them.
NAMES = sampled(files.names(), [name for name in files.names() if name != "paper"])


@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_runs_to_its_table_at_reduced_size(
    name: str, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.run(name)
    capsys.readouterr()
    overrides = workshop.overrides(name)
    main_of("sweep", "run", name, *overrides)
    captured = capsys.readouterr()
    assert "nothing to launch" in captured.err
    grid = spec.grid_of(files.read(name), overrides, OverridesParser.create())
    for part in grid.parts or (grid,):
        assert part.title.partition(" with ")[0] in captured.out
        table = Path("results", part.name, "table.csv").read_text().replace("\n", ",").split(",")
        assert all(choice.labels["method"] in table for choice in part.choices)
        if part.named == "table5":
            assert {"c1", "c2", "c3", "alone", "dks"} <= set(table)
        else:
            assert all(
                label in table
                for point in part.points
                for axis, label in point.labels.items()
                if axis != "seed"
            )
    assert {RunFolder(path).read_record().status for path in Path("runs").iterdir()} == {
        Status.done
    }


# --- the notebooks as they run


@pytest.fixture
def _own_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Jupyter writes stays out of the home of whoever runs the tests."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("DKS_STORE", "DKS_RESULTS"):
        monkeypatch.delenv(name, raising=False)


own_jupyter = pytest.mark.usefixtures("_own_jupyter")


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


@own_jupyter
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_what_the_runs_in_the_store_gave(
    name: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.run(OTHERS.get(name, name))
    for variable, value in workshop.variables.items():
        monkeypatch.setenv(variable, value)
    notebook = execute(name, FOLDER)
    assert outputs(notebook, "table", "text") == [f"runs from {workshop.variables['DKS_STORE']}\n"]
    (html,) = outputs(notebook, "table", "text/html")
    table = workshop.table(name)
    assert html == table._repr_html_(), "the store and the folders of the runs tell the same"
    assert "missing" not in html
    assert '<th scope="col">paper</th>' not in html, "these are not the paper's settings"
    found = {
        path.parent.name: json.loads(path.read_text())
        for path in workshop.folder.glob("runs/*/record.json")
    }
    for (row, column), cell in table.cells.items():
        assert cell.is_whole and error_text(cell) in html
        if "classifier" not in table.row_axes:
            errors = [found[cell_id]["final"]["test/top1_error"] for cell_id in cell.cell_ids]
            assert math.isclose(statistics.fmean(errors), cell.numbers[0].mean or math.nan), (
                row,
                column,
            )
            assert f"{statistics.fmean(errors):.2f}" in html
    if name in FIGURES:
        (image,) = outputs(notebook, "figure", "image/svg+xml")
        assert image.startswith("<svg") and image.rstrip().endswith("</svg>")
        assert "<path" in image and table.title.partition(" with ")[0].partition(",")[0] in image
    assert not any(
        outputs(notebook, cell.id, "error") for cell in notebook.cells if cell.cell_type == "code"
    )


@own_jupyter
@pytest.mark.parametrize("name", sampled(["table3", "figure3"], ["figure3"]))
def test_without_variables_a_notebook_reads_what_lies_beside_its_folder(
    name: str, workshop: Workshop, tmp_path: Path
) -> None:
    workshop.run(name)
    tracked, untracked = tmp_path / "tracked", tmp_path / "untracked"
    for folder, beside in (
        (tracked, ("results", "runs", "mlflow.db")),
        (untracked, ("results", "runs")),
    ):
        (folder / "analysis").mkdir(parents=True)
        for each in beside:
            (folder / each).symlink_to(workshop.folder / each)
    expected = workshop.table(name)._repr_html_()
    for folder, source in ((tracked, "sqlite:///mlflow.db"), (untracked, "runs/")):
        notebook = execute(name, folder / "analysis")
        assert outputs(notebook, "table", "text") == [f"runs from {source}\n"]
        assert outputs(notebook, "table", "text/html") == [expected]
    assert not list((tracked / "analysis").iterdir())


@own_jupyter
@pytest.mark.parametrize(
    "name", sampled(["table3", "table6", "figure3", "error_curves"], ["table6", "figure3"])
)
def test_without_runs_a_notebook_shows_the_papers_numbers(name: str, tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    notebook = execute(name, tmp_path / "analysis", allow_errors=True)
    assert outputs(notebook, "table", "text") == ["runs from runs/\n"]
    (html,) = outputs(notebook, "table", "text/html")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        table = Study.open(OTHERS.get(name, name)).table()
    numbers = [
        number.paper.mean
        for cell in table.cells.values()
        for number in cell.numbers
        if number.paper
    ]
    shown = [mean for mean in numbers if mean in html]
    assert shown == numbers if name != "error_curves" else len(shown) >= 6
    assert html.count("missing") >= len(shown) / len(table.metrics)
    if name in FIGURES:
        (error,) = outputs(notebook, "figure", "error")
        assert error == f"RequestError: {OTHERS.get(name, name)}: no run has a learning curve yet"
    made = {
        path.name
        for path in tmp_path.iterdir()
        if not path.name.startswith(("jupyter_", "ipython"))
    }
    assert made == {"analysis"} and not list((tmp_path / "analysis").iterdir())


@own_jupyter
def test_a_store_that_is_not_there_is_one_line_and_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "analysis").mkdir()
    monkeypatch.setenv("DKS_STORE", "sqlite:///nowhere.db")
    notebook = execute("table3", tmp_path / "analysis", allow_errors=True)
    (error,) = outputs(notebook, "table", "error")
    assert error.startswith("RequestError: ") and "nowhere.db" in error and "\n" not in error
    assert not list(tmp_path.glob("**/nowhere.db"))
