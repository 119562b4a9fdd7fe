"""The pictures of one run."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dks.config.errors import RequestError
from dks.results.figures.run import confusion, curves, draw
from dks.runs.journal import Entry
from dks.runs.record import RunFolder
from tests.conftest import ROOT


def entry(epoch: int, **more: float) -> Entry:
    metrics = {
        "train/loss": 9.0 / epoch,
        "train/loss_ce": 3.0 / epoch,
        "train/top1_error": 60.0 / epoch,
        "train/top1_error_c2": 70.0 / epoch,
        "test/loss": 2.0 / epoch,
        "test/loss_c2": 2.5 / epoch,
        "test/top1_error": 50.0 / epoch,
        "test/top1_error_c2": 55.0 / epoch,
        "time/data": 1.0,
        "system/cpu_percent": 99.0,
    }
    return Entry(epoch, epoch, "", {**metrics, **more})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of three epochs and two classifiers."""
    run = RunFolder(tmp_path / "abc")
    run.path.mkdir()
    for epoch in (1, 2, 3):
        run.journal.append(epoch, epoch, entry(epoch).metrics)
    run.confusion_file.write_text(
        "classifier,true,predicted,images\nc1,0,0,7\nc1,1,0,2\nc1,1,2,1\nc2,0,2,9\n"
    )
    return run


def test_a_run_is_drawn(folder: RunFolder, tmp_path: Path) -> None:
    written = draw(folder, tmp_path / "pictures")
    assert [path.name for path in written] == ["curves.png", "confusion.png"]
    for path in written:
        with Image.open(path) as image:
            assert image.width >= 1000
            assert sum(map(bool, image.convert("L").histogram())) > 10, "shades"
    again = {path: path.read_bytes() for path in written}
    draw(folder, tmp_path / "pictures")
    assert {path: path.read_bytes() for path in written} == again, (
        "the same run gives the same bytes"
    )


def test_curves_hold_errors_and_losses_of_all_classifiers() -> None:
    entries = [entry(epoch) for epoch in range(1, 5)]
    error, loss = curves(entries, "a run").axes
    drawn = {
        (axes.get_ylabel(), line.get_color(), line.get_linestyle()): list(line.get_ydata())
        for axes in (error, loss)
        for line in axes.lines
    }
    black, orange = (line.get_color() for line in error.lines if line.get_linestyle() == "-")
    assert black != orange
    for key, metric in {
        ("top-1 error (%)", black, "--"): "train/top1_error",
        ("top-1 error (%)", black, "-"): "test/top1_error",
        ("top-1 error (%)", orange, "--"): "train/top1_error_c2",
        ("top-1 error (%)", orange, "-"): "test/top1_error_c2",
        ("loss", black, "-"): "test/loss",
        ("loss", black, "--"): "train/loss_ce",
        ("loss", orange, "-"): "test/loss_c2",
    }.items():
        assert drawn.pop(key) == [each.metrics[metric] for each in entries]
    assert list(drawn.values()) == [[each.metrics["train/loss"] for each in entries]], (
        "the whole loss, and nothing else"
    )


def test_what_is_not_finite_has_no_place_in_a_curve() -> None:
    entries = [entry(1), entry(2, **{"test/loss": math.inf, "test/top1_error": math.nan}), entry(3)]
    error, loss = curves(entries, "a run").axes
    for axes in (error, loss):
        assert sum(list(line.get_xdata()) == [1, 3] for line in axes.lines) == 1


def test_a_run_without_an_epoch_has_no_picture(tmp_path: Path) -> None:
    assert draw(RunFolder(tmp_path / "nothing"), tmp_path / "pictures") == []
    assert not (tmp_path / "pictures").exists()


def test_a_run_of_before_there_were_confusion_matrices_has_curves(
    folder: RunFolder, tmp_path: Path
) -> None:
    folder.confusion_file.unlink()
    assert [path.name for path in draw(folder, tmp_path)] == ["curves.png"]


def test_a_single_epoch_is_a_point(tmp_path: Path) -> None:
    error, _ = curves([entry(1)], "a run").axes
    assert {line.get_marker() for line in error.lines} == {"."}


def test_a_matrix_is_drawn_in_percent_of_each_class() -> None:
    figure = confusion([[8, 2], [0, 0]], "a run")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[80, 20], [0, 0]]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.texts] == ["8", "2"]
    large = confusion([[1] * 100] * 100, "a run")
    assert not large.axes[0].texts, "there is no room for numbers"


@pytest.mark.slow
def test_classes_have_their_names_where_there_is_room(folder: RunFolder, tmp_path: Path) -> None:
    figure = confusion(
        [[8, 2], [0, 0]],
        "a run",
        ["an ant", "a b\x1be\ne with a very long name", "one without images"],
    )
    shown = ["an ant", "a b\\x1be e wit"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == shown
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == shown
    numbers = confusion([[8, 2], [0, 0]], "a run", ["one name too few"])
    assert [text.get_text() for text in numbers.axes[0].get_xticklabels()] == ["0", "1"]
    without = draw(folder, tmp_path)[-1].read_bytes()
    folder.classes_file.write_text('["ant", "bee", "cat"]')
    assert draw(folder, tmp_path)[-1].read_bytes() != without
    for damaged in ("", "{", "[1, 2, 3]", '{"a": 1}'):
        folder.classes_file.write_text(damaged)
        assert draw(folder, tmp_path)[-1].read_bytes() == without


def test_a_matrix_of_too_many_classes_is_not_drawn(folder: RunFolder, tmp_path: Path) -> None:
    folder.confusion_file.write_text("classifier,true,predicted,images\nc1,200,0,7\n")
    assert [path.name for path in draw(folder, tmp_path)] == ["curves.png"]


@pytest.mark.parametrize(
    "content",
    [b"classifier,true\nc1,0\n", b"classifier,true,predicted,images\nc1,0,x,1\n", b"\xff"],
)
def test_a_damaged_matrix_is_told_in_one_line(
    folder: RunFolder, tmp_path: Path, content: bytes
) -> None:
    folder.confusion_file.write_bytes(content)
    with pytest.raises(RequestError, match=r"confusion\.csv cannot be read"):
        draw(folder, tmp_path)


def test_drawing_needs_no_torch() -> None:
    """The process that sends pictures to MLflow is small."""
    code = "import sys, dks.results.figures.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
