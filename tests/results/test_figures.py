"""Figures: what is drawn is what was measured, and can be read."""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from dks.config.errors import RequestError
from dks.results.figures import FORMATS, KINDS, draw, image, write
from dks.results.figures.labels import Name, place
from dks.results.figures.names import backbone_name, method_name, names, value_name
from dks.results.figures.style import COLOURS, DPI, MARKERS, looks, new_figure, styled
from dks.results.model import Table, build
from dks.results.shape import Epoch, Metric, Over, Shape
from dks.sweeps.paper import Key, paper_table
from tests.conftest import ROOT

TRAIN, TEST = "train/top1_error", "test/top1_error"


@dataclass
class Run:
    """A run of a fake store."""

    labels: dict[str, str]
    seed: int = 1
    method: str = "dks"
    state: str = "done"
    # metric -> its value in every epoch
    curves: dict[str, list[float]] = field(default_factory=dict)
    epochs: int | None = None  # asked for; None: as many as the curves have
    numbers: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def cell_id(self) -> str:
        return "-".join((*self.labels.values(), str(self.seed)))

    @property
    def epoch(self) -> int:
        return max(map(len, self.curves.values()), default=0)


@dataclass
class FakeSource:
    """A source that holds runs in memory."""

    held: list[Run]
    name: str = "fake"

    def runs(self, cell_ids: Collection[str] | None = None) -> pd.DataFrame:
        rows = [
            {
                "cell_id": run.cell_id,
                "seed": run.seed,
                "method": run.method,
                "state": run.state,
                "epoch": run.epoch,
                "epochs": run.epochs or run.epoch,
                "device": run.device,
                **{
                    f"final/{metric}": values[-1] for metric, values in run.curves.items() if values
                },
                **run.numbers,
            }
            for run in self.held
            if run.state != "missing" and (cell_ids is None or run.cell_id in cell_ids)
        ]
        columns = ["cell_id", "seed", "method", "state", "epoch", "epochs", "device"]
        return pd.DataFrame(
            rows, columns=list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
        )

    def histories(self, cell_ids: Collection[str], metrics: Collection[str]) -> pd.DataFrame:
        rows = [
            (run.cell_id, epoch, metric, value)
            for run in self.held
            if run.cell_id in cell_ids
            for metric, values in run.curves.items()
            if metric in metrics
            for epoch, value in enumerate(values, 1)
        ]
        return pd.DataFrame(rows, columns=["cell_id", "epoch", "metric", "value"])

    def config(self, cell_id: str) -> dict[str, Any]:
        return {}


def table_of(
    runs: list[Run],
    rows: list[str],
    columns: list[str] | None = None,
    metrics: tuple[Metric, ...] = (Metric.top1,),
    aside: Mapping[str, str] | None = None,
    **more: Any,
) -> Table:
    """The table of these runs, its errors as in the last epoch."""
    entries = []
    for run in runs:
        config_id = "|".join(run.labels.values())
        row = more["paper"].labelled(run.labels) if "paper" in more else None
        values = {
            metric.name: math.nan if run.state != "done" else run.curves[metric.value][-1]
            for metric in metrics
        }
        entries.append(
            {
                **run.labels,
                "cell_id": run.cell_id,
                "config_id": config_id,
                "entry_id": config_id,
                "seed": run.seed,
                "trained": run.labels.get("method", run.method),
                "state": run.state,
                "computed": "",
                "keys": [Key(config_id)] if row is None else list(row.keys),
                "left_out": ""
                if run.state != "done" or all(map(math.isfinite, values.values()))
                else "result not finite",
                **{f"over_{over.value}": None for over in Over},
                **values,
            }
        )
    shape = Shape(metrics=metrics, aside=dict(aside or {}))
    return build(
        entries, "sweep", "A title", [*rows, *(columns or [])], rows, columns, shape, **more
    )


def seeds(
    labels: dict[str, str],
    test: list[list[float]],
    train: list[list[float]] | None = None,
    **more: Any,
) -> list[Run]:
    """One run a seed with these curves."""
    return [
        Run(
            labels,
            seed,
            labels.get("method", "dks"),
            curves={TEST: values, **({TRAIN: train[seed - 1]} if train else {})},
            **more,
        )
        for seed, values in enumerate(test, 1)
    ]


def lines(figure: Figure, panel: int = 0, style: str = "-", thin: bool = False) -> list[Line2D]:
    """The curves of a panel."""
    return [
        line
        for line in figure.axes[panel].lines
        if line.get_linestyle() == style and (line.get_linewidth() < 0.9) == thin
    ]


def texts(figure: Figure) -> list[Text]:
    """All that is written and can be seen."""
    ticks = [
        (axis, tick)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
    ]
    hidden = {
        text
        for axis, tick in ticks
        for text in (tick.label1, tick.label2)
        if not axis.axes.get_visible()
        or not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def box_of(text: Text) -> Bbox:
    """What the letters cover, in pixels."""
    text.get_window_extent()  # with an arrow, and so that a label finds its place
    return Text.get_window_extent(text)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def of_gradient(epochs: int, last: float, noise: float = 0.0) -> list[float]:
    """A curve that falls steeply, in three steps."""
    levels = (
        [last + 15] * (epochs // 2)
        + [last + 2] * (epochs // 4)
        + [last] * (epochs - epochs // 2 - epochs // 4)
    )
    return [
        level + 50 * math.exp(-epoch / 3) + noise * math.sin(7 * epoch + last)
        for epoch, level in enumerate(levels)
    ]


METHODS = {"baseline": 30.0, "ds": 29.5, "dks": 27.0}


@cache
def large() -> tuple[Table, FakeSource]:
    """Networks x methods with two metrics.

    Runs of every state, and the paper's numbers where there are any.
    """
    runs = []
    for number, backbone in enumerate(
        ("resnet32", "wrn28_10_dropout", "densenet100_12", "my_$net_50%")
    ):
        for method, error in METHODS.items():
            for seed in (1, 2, 3):
                curve = of_gradient(60, error - number + seed / 10, noise=0.3)
                state = (
                    "done"
                    if (backbone, method) != ("densenet100_12", "dks")
                    else ("missing", "running", "failed")[seed - 1]
                )
                curves = {
                    TEST: curve,
                    TRAIN: [value - 5 for value in curve],
                    "test/top5_error": [value / 3 for value in curve],
                }
                if state != "done":
                    curves = (
                        {metric: values[:20] for metric, values in curves.items()}
                        if state != "missing"
                        else {}
                    )
                cost = 10.0 ** (15 + number) * (1 + len(method) / 5)
                numbers = {"cost/training_flops": cost, "cost/seconds": cost / 1e13}
                runs.append(
                    Run(
                        {"backbone": backbone, "method": method},
                        seed,
                        method,
                        state,
                        curves,
                        60,
                        numbers,
                    )
                )
    return table_of(
        runs,
        ["backbone", "method"],
        metrics=(Metric.top1, Metric.top5),
        paper=paper_table("table1"),
    ), FakeSource(runs)


@cache
def drawn(kind: str) -> Figure:
    return draw(kind, *large())


def test_curves_are_the_mean_and_the_range_of_training_and_test_error() -> None:
    test = [[50.0, 40, 31], [52, 44, 33], [51, 39, 29]]
    train = [[60.0, 35, 10], [58, 33, 12], [56, 34, 14]]
    runs = seeds({"method": "baseline"}, test, train) + seeds(
        {"method": "dks"}, [[45.0, 30, 25]], [[70.0, 60, 40]]
    )
    figure = draw("curves", table_of(runs, ["method"]), FakeSource(runs))
    (solid, other), (dashed, other_dashed) = lines(figure), lines(figure, style="--")
    assert solid.get_ydata() == pytest.approx([51, 41, 31])
    assert dashed.get_ydata() == pytest.approx([58, 34, 12])
    assert list(solid.get_xdata()) == [1, 2, 3]
    # One run is drawn as it is.
    assert (list(other.get_ydata()), list(other_dashed.get_ydata())) == ([45, 30, 25], [70, 60, 40])
    assert solid.get_color() == dashed.get_color() != other.get_color() == other_dashed.get_color()
    bands = [collection.get_paths()[0].vertices for collection in figure.axes[0].collections]
    assert {tuple(point) for point in bands[1]} == {
        (1, 50),
        (2, 39),
        (3, 29),
        (1, 52),
        (2, 44),
        (3, 33),
    }
    assert len(bands) == 2
    assert figure.axes[0].get_ylabel() == "top-1 error (%)"
    assert {
        "baseline",
        "DKS",
        "training, mean of the runs",
        "test, mean of the runs",
        "their range",
    } <= set(words(figure))


def test_spread_is_the_median_and_the_whole_range_with_a_panel_a_row() -> None:
    curves = [[50.0, 31], [52.0, 33], [90.0, 29]]
    runs = [
        run
        for backbone in ("resnet32", "mobilenet")
        for method in METHODS
        for run in seeds({"backbone": backbone, "method": method}, curves)
    ]
    for rows, columns in ((["backbone"], ["method"]), (["backbone", "method"], None)):
        figure = draw("spread", table_of(runs, rows, columns), FakeSource(runs))
        assert [axes.get_title() for axes in figure.axes] == ["ResNet-32", "MobileNet"]
        assert [list(line.get_ydata()) for line in lines(figure, 1)] == [[52, 31]] * 3
        (band,) = figure.axes[0].collections[0].get_paths()
        assert {tuple(point) for point in band.vertices} == {(1, 50), (1, 90), (2, 29), (2, 33)}
        assert not lines(figure, style="--")
        assert {"median of the runs", "their range", *map(method_name, METHODS)} <= set(
            words(figure)
        )


def test_steps_of_the_learning_rate_stay_steps() -> None:
    curve = of_gradient(100, 20.0)
    runs = seeds({"method": "dks"}, [curve])
    figure = draw("curves", table_of(runs, ["method"]), FakeSource(runs))
    assert list(lines(figure)[0].get_ydata()) == curve
    low, high = figure.axes[0].get_ylim()
    assert low < 20 < high
    assert curve[9] < high < curve[2]  # the beginning would leave no room for the steps


def test_runs_that_are_not_finished_are_shown_and_counted_but_not_averaged() -> None:
    runs = seeds({"method": "dks"}, [[40.0, 30, 20], [42.0, 32, 22], [90.0, 80], [70.0]])
    runs[2].state, runs[2].epochs = "running", 3
    runs[3].epochs = 3  # done, says its record, but epochs are missing
    figure = draw("curves", table_of(runs, ["method"]), FakeSource(runs))
    assert [list(line.get_ydata()) for line in lines(figure)] == [[41, 31, 21]]
    assert [list(line.get_ydata()) for line in lines(figure, thin=True)] == [[90, 80], [70]]
    assert "run not finished" in words(figure)
    assert "DKS (3 of 4)" in words(figure)  # as the table counts them


def test_a_configuration_without_curves_is_named_in_its_panel_or_in_the_legend() -> None:
    runs = [
        *seeds({"aux": "ours", "method": "ds"}, [[3.0, 2]]),
        Run({"aux": "ours", "method": "dks"}, state="missing"),
    ]
    alone = draw("spread", table_of(runs, ["aux"], ["method"]), FakeSource(runs))
    assert "DKS (missing)" in words(alone)
    runs += [
        Run({"aux": "narrow", "method": method}, state=state)
        for method, state in (("ds", "failed"), ("dks", "queued"))
    ]
    panels = draw("spread", table_of(runs, ["aux"], ["method"]), FakeSource(runs))
    assert {"DKS: missing", "DS: failed\nDKS: queued"} <= set(words(panels))


def test_values_that_are_not_finite_are_left_out_of_curves() -> None:
    runs = seeds({"method": "dks"}, [[40.0, 30, 20], [42.0, math.nan, 22], [41.0, math.inf, 21]])
    figure = draw("curves", table_of(runs, ["method"]), FakeSource(runs))
    assert list(lines(figure)[0].get_ydata()) == [41, 30, 21]


def test_cells_beside_the_table_are_in_every_panel_to_compare_with() -> None:
    runs = seeds({"aux": "none", "method": "baseline"}, [[30.0, 29]])
    runs += [
        run
        for aux in ("narrow", "ours")
        for method in ("ds", "dks")
        for run in seeds({"aux": aux, "method": method}, [[9.0, 8]])
    ]
    table = table_of(runs, ["aux"], ["method"], aside={"method": "baseline"})
    figure = draw("spread", table, FakeSource(runs))
    assert [axes.get_title() for axes in figure.axes] == ["narrow blocks", "ours"]
    assert [list(lines(figure, panel)[0].get_ydata()) for panel in (0, 1)] == [[30, 29]] * 2
    assert len({lines(figure, panel)[0].get_color() for panel in (0, 1)}) == 1


def test_classifiers_have_their_own_curves() -> None:
    both = {TEST: [30.0, 20], f"{TEST}_c2": [50.0, 40]}
    runs = [
        Run({"classifier": "c1", "training": "dks"}, curves=both),
        Run({"classifier": "c2", "training": "dks"}, curves=both),
        Run({"classifier": "c2", "training": "alone"}, method="single", curves={TEST: [60.0, 55]}),
    ]
    figure = draw("curves", table_of(runs, ["classifier"], ["training"]), FakeSource(runs))
    assert [list(line.get_ydata()) for line in lines(figure)] == [[30, 20], [50, 40], [60, 55]]
    assert {"C1, DKS", "C2, DKS", "C2, alone"} <= set(words(figure))


def test_dots_have_the_mean_the_interval_and_the_papers_figure() -> None:
    table, figure = large()[0], drawn("dots")
    first, second = figure.axes
    assert (first.get_xlabel(), second.get_xlabel()) == (
        "top-1 test error (%)",
        "top-5 test error (%)",
    )
    names = [text.get_text() for text in first.get_yticklabels()]
    assert names[:4] == ["ResNet-32", "baseline", "DS", "DKS"]
    assert "DKS (1 missing, 1 running, 1 failed)" in names
    for axes, index in ((first, 0), (second, 1)):
        at = {
            (int(line.get_ydata()[0]), line.get_marker()): [
                float(value) for value in line.get_xdata()
            ]
            for line in axes.lines
        }
        for row, column, line in (
            ("resnet32", "baseline", 1),
            ("resnet32", "dks", 3),
            ("my_$net_50%", "ds", 14),
        ):
            number = table.cells[(row, column), ()].numbers[index]
            assert [number.mean] in at.values()
            (mean,) = [x for (y, marker), x in at.items() if y == line and marker not in "|D"]
            assert mean == [number.mean]
            assert at[line, "|"] == list(number.interval or ())
        assert not [
            y
            for y, marker in at
            if y == names.index("DKS (1 missing, 1 running, 1 failed)") and marker != "D"
        ]
    paper = {
        int(line.get_ydata()[0]): float(line.get_xdata()[0])
        for line in first.lines
        if line.get_marker() == "D"
    }
    assert paper[3] == 26.81
    assert all(
        line.get_markerfacecolor() == "none" for line in first.lines if line.get_marker() == "D"
    )
    assert not [line for line in second.lines if line.get_marker() == "D"]
    assert {"mean of the runs", "95% t interval", "paper"} <= set(words(figure))


def test_single_runs_have_no_interval() -> None:
    runs = [
        run
        for aux in ("ours", "narrow")
        for run in seeds({"aux": aux, "strategy": "bidir"}, [[2.0, 1.5]])
    ]
    figure = draw("dots", table_of(runs, ["aux", "strategy"]), FakeSource(runs))
    assert {line.get_marker() for line in figure.axes[0].lines}.isdisjoint("|D")
    assert "one run" in words(figure)
    assert not {"95% t interval", "paper", "mean of the runs"} & set(words(figure))


def test_the_axis_of_errors_ends_where_errors_end() -> None:
    runs = seeds({"method": "ds"}, [[99.0], [93.0]]) + seeds({"method": "dks"}, [[1.0], [9.0]])
    table = table_of(runs, ["method"])
    low, high = draw("dots", table, FakeSource(runs)).axes[0].get_xlim()
    interval = table.cells[("ds",), ()].numbers[0].interval
    assert interval is not None and interval[1] > 110 > 101 > high > 99
    assert -3 < low < 1


def test_errors_of_the_best_epoch_are_called_optimistic() -> None:
    runs = seeds({"method": "dks"}, [[2.0, 1.5]])
    figure = draw("dots", table_of(runs, ["method"], epoch=Epoch.best), FakeSource(runs))
    assert figure.axes[0].get_xlabel() == "top-1 test error (%), best epoch (optimistic)"


def test_cost_shows_the_means_over_runs_in_flops_and_time() -> None:
    runs = []
    for method, flops, seconds in (("baseline", 2e15, 3600.0), ("dks", 3e15, 7200.0)):
        for seed in (1, 2):
            numbers = {"cost/training_flops": flops, "cost/seconds": seconds + 3600 * seed}
            runs.append(
                Run({"method": method}, seed, method, curves={TEST: [30.0 + seed]}, numbers=numbers)
            )
    runs[0].device = "cuda"
    runs.append(Run({"method": "ds"}, state="killed", numbers={"cost/seconds": 5.0}))
    figure = draw("cost", table_of(runs, ["method"]), FakeSource(runs))
    flops, time = figure.axes
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in flops.lines] == [
        (2.0, 31.5),
        (3.0, 31.5),
    ]
    assert [line.get_xdata()[0] for line in time.lines] == pytest.approx([2.5, 3.5])
    assert flops.get_xlabel() == "training cost (10¹⁵ FLOPs)"
    assert time.get_xlabel() == "training time (hours), on 2 kinds of device"
    assert (flops.get_xscale(), time.get_xscale()) == ("linear", "linear")
    assert {"baseline", "DKS", "no result yet: DS"} <= set(words(figure))


def test_cost_is_logarithmic_where_it_spans_a_factor_of_ten_and_may_be_known_in_part() -> None:
    runs = [
        Run({"backbone": backbone}, curves={TEST: [error]}, numbers={"cost/seconds": seconds})
        for backbone, error, seconds in (
            ("resnet8", 10.0, 60.0),
            ("resnet32", 8.0, 599.0),
            ("resnet110", 7.0, 6000.0),
        )
    ]
    two, three = (
        draw("cost", table_of(some, ["backbone"]), FakeSource(some)) for some in (runs[:2], runs)
    )
    assert [axes.get_xscale() for axes in (*two.axes, *three.axes)] == ["linear", "log"]
    assert two.axes[0].get_xlabel() == three.axes[0].get_xlabel() == "training time (minutes)"
    ticks = {text.get_text() for text in three.axes[0].get_xticklabels()}
    assert {"1", "10", "100"} <= ticks


def test_a_name_in_the_cost_figure_stands_beside_a_point_of_its_own() -> None:
    figure = drawn("cost")
    backbones = list(dict.fromkeys(backbone for backbone, _ in large()[0].rows))
    for axes in figure.axes:
        joined = [line for line in axes.lines if line.get_linewidth() < 0.9]
        points = {
            backbone_name(backbone): axes.transData.transform(line.get_xydata())
            for backbone, line in zip(backbones, joined, strict=True)
        }
        assert [text.get_text() for text in axes.texts] == list(points)
        for text in axes.texts:
            box = box_of(text)
            gaps = {
                name: min(
                    math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))
                    for x, y in points[name]
                )
                for name in points
            }
            assert min(gaps, key=lambda name: gaps[name]) == text.get_text()
            assert gaps[text.get_text()] < 12 / 72 * DPI


def placed(*names: Name) -> list[Bbox]:
    """Where names stand on axes that count in pixels."""
    with styled():
        figure = new_figure("", 3, 3)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, 3 * DPI)
        axes.set_ylim(0, 3 * DPI)
        place(axes, names)
        return [box_of(text) for text in axes.texts]


def test_names_hide_neither_points_nor_lines_nor_one_another() -> None:
    free, *_ = placed(Name("DKS", ((300, 300),)))
    assert free.x0 > 300 and free.y0 < 300 < free.y1  # to the right, where it reads best
    boxes = placed(
        Name("DKS", ((300, 300),)),
        Name("DS", ((330, 300),)),
        Name("b", ((330, 330),)),
        Name("c", ((330, 270),)),
    )
    for box, other in itertools.combinations(boxes, 2):
        assert not box.overlaps(other)
    for box, (x, y) in itertools.product(boxes, ((300, 300), (330, 300), (330, 330), (330, 270))):
        assert not box.contains(x, y)
    across, _ = placed(Name("DKS", ((300, 300),)), Name("line", ((350, 500), (350, 100))))
    assert across.x1 < 350 or across.y0 > 500 or across.y1 < 100
    (edge,) = placed(Name("a long name", ((880, 880),)))
    assert edge.x1 <= 900 and edge.y1 <= 900


def test_names_do_not_stand_nearer_to_another_point() -> None:
    (free,) = placed(Name("DKS", ((300, 300),)))
    beyond = (free.x1 + 15, 300)
    box, _ = placed(Name("DKS", ((300, 300),)), Name("other", (beyond,)))
    assert box.x1 < beyond[0] - 60


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_draw_is_one_clear_line(kind: str) -> None:
    runs = [Run({"method": method}, state="missing") for method in METHODS]
    with pytest.raises(RequestError, match=r"^sweep: no (finished )?run (has|is|says)[^\n]*$"):
        draw(kind, table_of(runs, ["method"]), FakeSource(runs))


def test_an_unknown_kind_is_refused_with_the_choices() -> None:
    table, source = large()
    with pytest.raises(RequestError, match="'pie'; choose one of curves, spread, dots, cost"):
        draw("pie", table, source)


def test_a_figure_that_nobody_could_read_is_refused() -> None:
    runs = [run for index in range(401) for run in seeds({"recipe.lr": str(index)}, [[2.0, 1.5]])]
    table = table_of(runs, ["recipe.lr"])
    for kind in KINDS:
        with pytest.raises(
            RequestError, match="401 configurations, and a figure of more than 400 cannot be read"
        ):
            draw(kind, table, FakeSource(runs))
    runs = [
        run
        for index in range(90)
        for aux in ("ours", "narrow")
        for run in seeds({"seed2": str(index), "aux": aux}, [[2.0]])
    ]
    with pytest.raises(RequestError, match="90 panels of curves"):
        draw("spread", table_of(runs, ["seed2"], ["aux"]), FakeSource(runs))


@pytest.mark.slow
def test_many_configurations_without_columns_are_parted_into_panels() -> None:
    runs = [
        run for index in range(20) for run in seeds({"recipe.lr": str(index)}, [[2.0, 1.5 + index]])
    ]
    figure = draw("curves", table_of(runs, ["recipe.lr"]), FakeSource(runs))
    assert [len(lines(figure, panel)) for panel in range(3)] == [8, 8, 4]
    assert {f"recipe.lr={index}" for index in range(20)} <= set(words(figure))


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("kind", KINDS)
def test_all_letters_are_large_enough_and_inside_the_figure(kind: str) -> None:
    figure = drawn(kind)
    width, height = (float(size) for size in figure.get_size_inches())
    assert width in (3.4, 7.0)
    edge = 0.02 * DPI
    for text in texts(figure):
        assert text.get_fontsize() >= 8
        box = box_of(text)
        assert box.x0 >= -edge and box.x1 <= width * DPI + edge, text
        assert box.y0 >= -edge and box.y1 <= height * DPI + edge, text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_legends_stand_outside_of_the_data_and_no_letters_overlap(kind: str) -> None:
    figure = drawn(kind)
    for legend, axes in itertools.product(figure.legends, figure.axes):
        assert (
            not axes.get_visible() or legend.get_window_extent().y1 <= axes.get_tightbbox().y0 + 1
        )
    shown = [(text, box_of(text).padded(-2)) for text in texts(figure)]
    assert len(shown) > 10
    for (text, box), (other, other_box) in itertools.combinations(shown, 2):
        assert not box.overlaps(other_box), (text, other)


@pytest.mark.slow
def test_labels_are_never_read_as_formulas(tmp_path: Path) -> None:
    odd = ["a_b_c", "$x_1$ 50%", "\\frac{1}", "<b>&"]
    for kind in KINDS:
        runs = [
            Run({"data.root": label}, curves={TEST: [3.0, 2.0]}, numbers={"cost/seconds": 5.0})
            for label in odd
        ]
        figure = draw(kind, table_of(runs, ["data.root"]), FakeSource(runs))
        assert {f"data.root={label}" for label in odd} <= set(words(figure))
        assert not any(text.get_parse_math() or text.get_usetex() for text in texts(figure))
        for form in FORMATS:
            assert len(image(figure, form)) > 1000
        # matplotlib says beside the outlines of letters what they are.
        assert f"<!-- {html.escape('data.root=$x_1$ 50%')} -->" in image(figure, "svg").decode()


def test_files_are_written_whole_in_three_formats(tmp_path: Path) -> None:
    figure = drawn("dots")
    written = write(figure, tmp_path / "new" / "folder", "table1-dots")
    assert [path.name for path in written] == [
        "table1-dots.svg",
        "table1-dots.pdf",
        "table1-dots.png",
    ]
    assert [path.read_bytes()[:4] for path in written] == [b"<?xm", b"%PDF", b"\x89PNG"]
    assert {path.name for path in written[0].parent.iterdir()} == {path.name for path in written}
    assert b"A title" in written[0].read_bytes() and b"/Type3" not in written[1].read_bytes()
    with Image.open(written[2]) as picture:
        assert picture.size[0] == 7 * DPI
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"file/a\.svg cannot be written: "):
        write(figure, tmp_path / "file", "a")


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, Any]:
    """What another process finds, with another order of sets and another time zone.

    Modules loaded and bytes of figures.
    """
    code = (
        "import sys; import dks.results.figures; early = list(sys.modules)\n"
        "from tests.results.test_figures import *\n"
        "digests = {kind: digest(drawn(kind)) for kind in reversed(list(KINDS))}\n"
        "print(json.dumps({'early': early, 'late': list(sys.modules), 'digests': digests}))\n"
    )
    settings = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=250, check=True
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def digest(figure: Figure) -> list[str]:
    return [hashlib.sha256(image(figure, form)).hexdigest() for form in FORMATS]


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(elsewhere: dict[str, Any]) -> None:
    assert elsewhere["digests"] == {kind: digest(drawn(kind)) for kind in KINDS}
    assert digest(draw("cost", *large())) == digest(drawn("cost"))


@pytest.mark.slow
def test_importing_figures_is_cheap_and_drawing_opens_no_window(elsewhere: dict[str, Any]) -> None:
    assert not {"matplotlib", "pandas", "torch", "mlflow"} & set(elsewhere["early"])
    assert "matplotlib.figure" in elsewhere["late"]
    assert "matplotlib.pyplot" not in elsewhere["late"]


def test_a_persons_own_settings_are_neither_used_nor_changed() -> None:
    plain = image(drawn("dots"), "svg")
    with matplotlib.rc_context(
        {"font.size": 20, "axes.facecolor": "black", "lines.linewidth": 9, "text.parse_math": True}
    ):
        before = dict(matplotlib.rcParams)
        assert image(draw("dots", *large()), "svg") == plain
        assert dict(matplotlib.rcParams) == before


def test_colours_are_those_of_okabe_and_ito_and_markers_do_the_same_in_grey() -> None:
    """Eight that the colour-blind tell apart; the first three differ in grey as well."""
    assert (
        *("#000000", "#E69F00", "#0072B2", "#009E73"),
        *("#56B4E9", "#D55E00", "#CC79A7", "#F0E442"),
    ) == COLOURS
    found = list(looks(map(str, range(72))).values())
    assert len({(look.colour, look.marker) for look in found}) == 72
    assert "D" not in MARKERS  # the paper's
    for first in range(64):  # those that are drawn together have different markers
        assert len({look.marker for look in found[first : first + 8]}) == 8


@pytest.mark.parametrize(
    ("axis", "value", "name"),
    [
        ("method", "baseline", "baseline"),
        ("method", "ds", "DS"),
        ("method", "dks", "DKS"),
        ("method", "kd_c1", "KD on C1"),
        ("method", "kd_c1_ds", "KD on C1+DS"),
        ("method", "kd_c2c3_ds", "KD on C2C3+DS"),
        ("backbone", "resnet1202", "ResNet-1202"),
        ("backbone", "densenet40_12", "DenseNet (d=40, k=12)"),
        ("backbone", "wrn28_10_dropout", "WRN-28-10 (0.3 dropout)"),
        ("backbone", "mobilenet", "MobileNet"),
        ("aux", "ap_conv_2fc", "AP+1Conv+2FC"),
        ("aux_design", "ours", "ours"),
        ("positions", "c2c3c4", "C2C3C4"),
        ("strategy", "bidir", "bi-directional"),
        ("label_noise.ratio", "0.5", "label_noise.ratio=0.5"),
    ],
)
def test_legends_use_the_papers_words(axis: str, value: str, name: str) -> None:
    assert value_name(axis, value) == name


def test_every_choice_of_the_paper_has_a_name_of_its_own() -> None:
    for group in ("method", "backbone", "aux_design", "aux_positions", "matching_strategy"):
        choices = [path.stem for path in (ROOT / "conf" / group).glob("*.yaml")]
        assert len({value_name(group, choice) for choice in choices}) == len(choices) > 3


def test_names_leave_out_what_says_nothing_unless_two_would_be_the_same() -> None:
    assert names(["method", "aux"], [("baseline", "none"), ("dks", "ours")]) == [
        "baseline",
        "DKS, ours",
    ]
    assert names(["aux", "strategy"], [("none", "none"), ("ours", "-")]) == [
        "aux=none, strategy=none",
        "ours",
    ]
    assert names(["method", "aux"], [("ds", "none"), ("ds", "-")]) == [
        "method=ds, aux=none",
        "method=ds, aux=-",
    ]
