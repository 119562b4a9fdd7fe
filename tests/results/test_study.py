"""From a sweep and its runs to what a command shows.

What is found, what differs from the paper, where numbers come from.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dks.cli import main as cli
from dks.config.errors import RequestError
from dks.config.methods import computed_with
from dks.results.shape import Epoch
from dks.results.study import Study
from dks.sweeps.paper import differences
from dks.training.resolver import Resolver
from tests.conftest import TINY, composed, config, train


def lines(ours: list[str], paper: list[str]) -> list[str]:
    return differences(
        config(*ours), composed(*ours).choices, config(*paper), composed(*paper).choices
    )


def test_another_choice_is_one_line_and_a_value_within_the_same_choice_names_its_key() -> None:
    synthetic = ["data=synthetic", "backbone=resnet20"]
    assert lines(synthetic, synthetic) == []
    assert lines([*synthetic, "recipe.epochs=2"], synthetic) == ["recipe.epochs=2 (paper: 200)"]
    assert lines([*synthetic, "method=baseline"], [*synthetic, "method=ds"]) == [
        "aux_design=none (paper: ours)",
        "aux_positions=none (paper: c2c3)",
    ]
    assert lines([*synthetic, "aux_positions.at=[c2]"], synthetic) == [
        'aux_positions.at=["c2"] (paper: ["c2","c3"])'
    ]
    assert lines(["data=synthetic", "backbone=resnet8"], synthetic) == [
        "backbone=resnet8 (paper: resnet20)"
    ]


def test_what_cannot_change_a_result_and_the_seed_are_no_difference() -> None:
    paper = ["data=synthetic", "backbone=resnet20"]
    same = [
        "seed=7",
        "threads=1",
        "tracking=off",
        "tracking.experiment=mine",
        "runs_dir=elsewhere",
        "eval_batch_size=7",
    ]
    assert lines([*paper, *same], paper) == []
    taught = [*paper, "method=kd_c1", "teacher=checkpoint", "kd_teacher.cell=abc"]
    with pytest.raises(RequestError):
        config(*taught)  # no such run: what is compared are real configurations


def test_other_images_of_the_same_source_are_a_difference() -> None:
    """A part of ImageNet has a fingerprint, the whole has none."""
    whole = composed("data=imagenet", "backbone=resnet18")
    paper = Resolver(absent_ok=True)(whole)
    part = dataclasses.replace(paper, data=dataclasses.replace(paper.data, fingerprint="ab12"))
    assert differences(part, whole.choices, paper, whole.choices) == [
        "data.fingerprint=ab12 (paper: all of imagenet)"
    ]


def test_how_a_run_computes_is_no_difference_from_the_paper_but_said_of_its_cell() -> None:
    paper = ["data=synthetic", "backbone=resnet20"]
    assert lines([*paper, "compute=fast"], paper) == []
    assert computed_with(config(*paper)) == ""
    assert computed_with(config(*paper, "compute=fast")) == "precision=bf16 tf32=true"
    assert computed_with(config(*paper, "compute.cuda_graphs=true")) == "", "it changes no result"
    assert (
        computed_with(config(*paper, "compute=deterministic", "compute.compile=true"))
        == "compile=true deterministic=true"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with two seeds, in a folder that tests only read and add to."""
    folder = tmp_path_factory.mktemp("study")
    status, _, err = train(folder, "-m", "method=baseline,dks", "seed=1,2", "tracking=off", *TINY)
    assert status == 0, err
    return folder


@pytest.fixture
def small(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is the one with these runs."""
    monkeypatch.chdir(finished)
    return finished


def dks(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.mark.slow
def test_a_table_is_written_with_where_its_numbers_come_from(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = (path.name for path in Path("results").iterdir())
    for form in ("md", "latex", "html", "csv"):
        status, out, _ = dks(capsys, "table", name, "--format", form, "--output", f"t.{form}")
        assert (status, out) == (0, f"written to t.{form}\nwritten to t.{form}.json\n")
        assert dks(capsys, "table", name, "--format", form)[1] == Path(f"t.{form}").read_text()
    (told,) = json.loads(Path("t.md.json").read_text())
    cells = {cell["method"]: cell for cell in told["cells"]}
    for run in cells["dks"]["runs"]:
        record = json.loads(Path("runs", run["cell_id"], "record.json").read_text())
        assert run["git_commit"] == record["attempts"][-1]["git_commit"]
        assert (run["state"], run["seed"], run["place"]) == (
            "done",
            record["seed"],
            str(Path("runs", run["cell_id"])),
        )
        assert (
            record["final"]["test/top1_error"]
            in cells["dks"]["numbers"]["test/top1_error"]["values"]
        )
        assert record["config_id"] == cells["dks"]["config_id"]
    assert told["query"]["epoch"] == "last"
    first = Path("t.md.json").read_bytes()
    dks(capsys, "table", name, "--format", "md", "--output", "t.md")
    assert Path("t.md.json").read_bytes() == first, "the same runs give the same bytes"
    assert Path("results", name, "table.md").read_text() == Path("t.md").read_text()


@pytest.mark.slow
def test_the_best_epoch_is_read_from_the_records(small: Path) -> None:
    (name,) = (path.name for path in Path("results").iterdir())
    study = Study.open(name)
    best = [
        json.loads(path.read_text())["best"]["test/top1_error"]
        for path in Path("runs").glob("*/record.json")
    ]
    assert sorted(
        value for cell in study.table(Epoch.best).cells.values() for value in cell.numbers[0].values
    ) == sorted(best)


def test_wrong_requests_are_one_line(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = dks(capsys, "table", "tabel1")
    assert status == 2 and err.count("\n") == 1 and "no sweep 'tabel1'" in err
    status, _, err = dks(capsys, "table", "table1", "--output", "x.md")
    assert (status, err) == (2, "error: --output x.md needs --format: md, latex, html, csv\n")
    (name,) = (path.name for path in Path("results").iterdir())
    status, _, err = dks(capsys, "table", name, "seed=1")
    assert status == 2 and "is no named sweep, so it takes no overrides" in err
    status, _, err = dks(capsys, "table", name, "--store", "sqlite:///nowhere.db")
    assert status == 2 and err.count("\n") == 1 and "nowhere.db" in err
    assert not Path("nowhere.db").exists(), "looking creates no store"
    study = Study.open(name)
    with pytest.raises(RequestError, match="several tables"):
        dataclasses.replace(study, parts=study.parts * 2).table()


@pytest.mark.slow  # IPython comes with the notebooks, not with the fast tests
def test_a_notebook_shows_a_wrong_request_without_the_way_there(in_folder: Path) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    with pytest.raises(RequestError) as raised:
        Study.open("tabel3")
    shell, shown = InteractiveShell(), list[str]()
    shell._showtraceback = lambda etype, evalue, stb: shown.extend(stb)
    shell.showtraceback((raised.type, raised.value, raised.tb))
    (line,) = shown
    assert line.startswith("error: no sweep 'tabel3'")


@pytest.mark.slow
def test_figures_and_the_report_come_from_one_command_each(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = (path.name for path in Path("results").iterdir())
    status, out, err = dks(capsys, "figure", name)
    assert status == 0, err
    made = {path.name for path in Path("results", name, "figures").iterdir()}
    assert made == {
        f"{name}-{kind}.{form}"
        for kind in ("curves", "spread", "dots", "cost")
        for form in ("svg", "pdf", "png")
    }
    status, out, err = dks(capsys, "report", name)
    assert (status, out) == (0, f"written to results/{name}/report.html\n"), err
    status, _, err = dks(capsys, "figure", "table4", "--kind", "curves")
    assert (
        status == 2
        and err == "error: no curves: table4: no run has a learning curve yet\n"
        and err.count("\n") == 1
    )


def test_the_command_line_offers_every_format_and_every_kind_of_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are written out there, for looking them up would import what the command line starts
    without.
    """
    from dks.results.figures import KINDS
    from dks.results.render import TEXT_FORMATS

    assert f"[{'|'.join(['terminal', *TEXT_FORMATS])}]" in dks(capsys, "table", "--help")[1]
    assert f"[{'|'.join(KINDS)}]" in dks(capsys, "figure", "--help")[1]
