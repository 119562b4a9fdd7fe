"""Pictures of one run: how its errors and losses went, and the confusion matrix in the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dks.config.errors import RequestError, one_line
from dks.config.reading import read_text
from dks.results.figures.curves import Drawn, limit
from dks.results.figures.files import write
from dks.results.figures.style import DOUBLE, GREY, SINGLE, looks, new_figure, styled
from dks.runs.journal import Entry
from dks.runs.record import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 200  # that a picture can show
FEW_CLASSES = 20  # up to which there is room for numbers
LONGEST_NAME = 14  # characters of a class's name
SCREEN = 150  # dots an inch: they are looked at in MLflow, and a figure for print is another one
_TEST_ERROR, _TRAIN_ERROR, _TEST_LOSS = "test/top1_error", "train/top1_error", "test/loss"
# What is minimised, and its part that is the cross-entropy of c1, as a test loss is.
_WHOLE_LOSS, _OWN_LOSS = "train/loss", "train/loss_ce"
_STYLES: dict[str, Literal["-", "--", ":"]] = {
    "test": "-",
    "training": "--",
    "training, whole loss": ":",
}


def draw(folder: RunFolder, into: Path) -> list[Path]:
    """Write what there is to show of a run, and return the paths.

    They are `curves.png` once it has an epoch, and `confusion.png` of c1 once it is trained, for at
    most MOST_CLASSES classes.

    Raises:
        RequestError: a file of the run is damaged, or nothing can be written into that folder.
    """
    written = []
    if entries := folder.journal.read():
        written += write(curves(entries, folder.cell_id), into, "curves", ("png",))
    if matrix := _matrix(folder.confusion_file):
        names = _names(folder.classes_file)
        written += write(confusion(matrix, folder.cell_id, names), into, "confusion", ("png",))
    return written


def curves(entries: Sequence[Entry], title: str) -> Figure:
    """Top-1 error and loss against epoch, of every classifier, training dashed and test solid."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    def line(axes: Axes, metric: str, colour: str, meaning: str) -> list[Drawn]:
        """Draw a metric where it is finite, one epoch alone as a point; returns what was drawn."""
        points = {
            entry.epoch: value
            for entry in entries
            if abs(value := entry.metrics.get(metric, float("nan"))) < float("inf")
        }
        if not points:
            return []
        epochs, values = list(points), list(points.values())
        marker = "" if len(points) > 1 else "."
        axes.plot(epochs, values, _STYLES[meaning], color=colour, marker=marker)
        return [(epochs, values, values)]

    known = dict.fromkeys(chain.from_iterable(entry.metrics for entry in entries))
    suffixes = sorted(
        name.removeprefix(_TEST_ERROR) for name in known if name.startswith(_TEST_ERROR)
    )
    colours = {suffix: look.colour for suffix, look in looks(suffixes).items()}
    with styled():
        figure = new_figure(title, DOUBLE, 2.95, fitted=False, dpi=SCREEN)
        error, loss = figure.subplots(1, 2)
        # The places are the same for every run. To look for the best ones takes four times as long
        # as the drawing.
        figure.subplots_adjust(left=0.075, right=0.99, bottom=0.29, top=0.98, wspace=0.2)
        drawn = []
        for suffix, colour in colours.items():
            for name, meaning in ((_TRAIN_ERROR, "training"), (_TEST_ERROR, "test")):
                drawn += line(error, name + suffix, colour, meaning)
            line(loss, _TEST_LOSS + suffix, colour, "test")
        line(loss, _OWN_LOSS, colours[""], "training")
        whole = len(colours) > 1 and line(loss, _WHOLE_LOSS, GREY, "training, whole loss")
        limit(error, drawn)
        loss.set_xlim(error.get_xlim())
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        loss.yaxis.set_minor_locator(NullLocator())
        for axes, what in ((error, "top-1 error (%)"), (loss, "loss")):
            axes.set_ylabel(what)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(
                MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
            )
            axes.grid(axis="y")
        of_classifiers = [
            Line2D([], [], color=colour, label=suffix.removeprefix("_") or "c1")
            for suffix, colour in colours.items()
        ]
        of_styles = [
            Line2D([], [], color=GREY, linestyle=style, label=name)
            for name, style in _STYLES.items()
            if whole or "whole" not in name
        ]
        for handles, height in ((of_classifiers, 0.14), (of_styles, 0.07)):
            figure.legend(
                handles=handles,
                loc="upper center",
                ncols=len(handles),
                bbox_to_anchor=(0.5, height),
                borderaxespad=0,
            )
    return figure


def confusion(matrix: Sequence[Sequence[int]], title: str, names: Sequence[str] = ()) -> Figure:
    """A confusion matrix, in percent of each class by the colour; the numbers are images.

    Args:
        matrix: (K, K), a row a true class.
        names: of the classes, shown where there are few; without them they are numbers.
    """
    from matplotlib.colors import PowerNorm

    few = len(matrix) <= FEW_CLASSES
    share = [[100 * images / max(sum(row), 1) for images in row] for row in matrix]
    with styled():
        size = SINGLE if few else DOUBLE
        figure = new_figure(
            title, size, 0.87 * size, fitted=False, dpi=2 * SCREEN if few else SCREEN
        )
        axes = figure.subplots()
        named = few and len(names) >= len(matrix)
        left, bottom = (0.29, 0.29) if named else (0.13, 0.13) if few else (0.075, 0.07)
        figure.subplots_adjust(left=left, right=0.86 if few else 0.93, bottom=bottom, top=0.98)
        # By the square root, so that rare mistakes are seen beside what is right.
        norm = PowerNorm(0.5, 0, 100)
        image = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
        ticks = [0, 1, 5, 20, 50, 100]
        label = "images of the class (%)"
        figure.colorbar(image, label=label, ticks=ticks, fraction=0.045, pad=0.02)
        axes.spines[:].set_visible(True)
        axes.set_xlabel("predicted class of c1")
        axes.set_ylabel("true class")
        if few:
            texts = [one_line(name)[:LONGEST_NAME] for name in names[: len(matrix)]]
            axes.set_xticks(range(len(matrix)), texts if named else None)
            axes.set_yticks(range(len(matrix)), texts if named else None)
            if named:
                axes.tick_params(labelsize=6)
                axes.tick_params(axis="x", labelrotation=90)
            for true, row in enumerate(matrix):
                for predicted, images in enumerate(row):
                    if images:
                        colour = "white" if share[true][predicted] > 30 else "black"
                        size = 7 if len(matrix) <= 10 and images < 1000 else 4
                        centre: dict[str, Any] = {"ha": "center", "va": "center"}
                        axes.text(predicted, true, str(images), color=colour, size=size, **centre)
    return figure


def _matrix(file: Path) -> list[list[int]]:
    """The confusion matrix of c1 from `confusion.csv`.

    Empty where there is none, or none that a picture can show.
    """
    try:
        counts = {
            (int(row["true"]), int(row["predicted"])): int(row["images"])
            for row in csv.DictReader(io.StringIO(read_text(file)))
            if row["classifier"] == "c1"
        }
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    classes = range(1 + max(map(max, counts), default=-1))
    if len(classes) > MOST_CLASSES:  # or so it says
        return []
    return [[counts.get((true, predicted), 0) for predicted in classes] for true in classes]


def _names(file: Path) -> list[str]:
    """The names of the classes from `classes.json`.

    Empty where there are none, or the file is damaged.
    """
    try:
        names = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
