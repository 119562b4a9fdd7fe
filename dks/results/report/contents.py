"""What the page's script works on: runs, configurations, cells and curves, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dks.machine.code import short
from dks.results.model import Epoch, Place, Table, TableCell
from dks.results.report.curves import Curves, rounded
from dks.results.report.runs import Runs
from dks.results.sheet import OVER, fixed
from dks.sweeps.files import CLASSIFIER, TRAINING
from dks.tracking.source import Source

_TEXTS = (
    "cell_id",
    "state",
    "started",
    "device",
    "git_commit",
    "place",
    "mlflow_uri",
    "mlflow_link",
    "mlflow_run_id",
    "mlflow_experiment_id",
    "error",
)
_COUNTS = ("seed", "epoch", "epochs", "attempts")
_SHOWN = ("test/top1_error", "test/top5_error", "train/top1_error")
_ALONE = "alone"  # how `TRAINING` calls a classifier that is trained by itself


def contents(tables: Sequence[Table], runs: Runs, curves: Curves, source: Source) -> dict[str, Any]:
    """Runs and configurations are lists, and named elsewhere by their places in them."""
    frame = runs.frame
    run_at = {cell_id: index for index, cell_id in enumerate(frame["cell_id"])}
    config_ids = list(dict.fromkeys(frame["config_id"]))
    config_at = {config_id: index for index, config_id in enumerate(config_ids)}
    common, own = _configurations(source, runs, config_ids)
    return {
        "runs": _columns(frame),
        "configs": [
            {
                "id": config_id,
                "own": own.get(config_id),
                "curves": curves.configs.get(config_id, {}),
            }
            for config_id in config_ids
        ],
        "common": common,
        "curves": {
            "grids": curves.grids,
            "metrics": curves.metrics,
            "step": curves.step,
            "runs": {run_at[cell_id]: lines for cell_id, lines in curves.runs.items()}
            if curves.has_runs
            else None,
        },
        "tables": [_table(table, run_at, config_at) for table in tables],
    }


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Column -> values, or `{"pool": [...], "at": [...]}` where few different texts repeat."""
    columns: dict[str, Any] = {}
    for name in _TEXTS:
        values = [value if isinstance(value, str) else "" for value in frame[name]]
        pool = list(dict.fromkeys(values))
        at = {value: index for index, value in enumerate(pool)}
        columns[name] = (
            {"pool": pool, "at": [at[value] for value in values]}
            if 2 * len(pool) < len(values)
            else values
        )
    for name in _COUNTS:
        columns[name] = [0 if math.isnan(value) else int(value) for value in frame[name]]
    for name in sorted(frame.columns):
        kind, _, metric = name.partition("/")
        if (
            kind == "cost"
            or name.startswith("best/epoch")
            or (kind in ("final", "best") and metric.startswith(_SHOWN))
        ):
            numbers = [_number(value) for value in frame[name]]
            if any(number is not None for number in numbers):
                columns[name] = numbers
    return columns


def _number(value: float) -> float | str | None:
    """None for what is not there; text for what JSON cannot say."""
    if math.isinf(value):
        return "infinite"
    return rounded(value)


def _configurations(
    source: Source, runs: Runs, config_ids: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What all configurations have in common, and what each has besides.

    Only those that some run has begun.

    Runs of one configuration differ in their seed alone, so the first one speaks for all.
    """
    first = runs.begun.drop_duplicates("config_id").set_index("config_id")["cell_id"]
    known: dict[str, dict[str, Any]] = {}
    for config_id in config_ids:
        if config_id in first.index and (values := source.config(first[config_id])):
            known[config_id] = {
                key: _plain(value) for key, value in values.items() if key != "seed"
            }
    if not known:
        return {}, {}
    one, *others = known.values()
    common = {
        key: value
        for key, value in one.items()
        if all(key in each and each[key] == value for each in others)
    }
    return common, {
        config_id: {key: value for key, value in sorted(values.items()) if key not in common}
        for config_id, values in known.items()
    }


def _plain(value: Any) -> str:
    """The same for a value and for its text in a store."""
    return {"None": "", "True": "true", "False": "false"}.get(str(value), str(value))


def _table(table: Table, run_at: Mapping[str, int], config_at: Mapping[str, int]) -> dict[str, Any]:
    shown = (*table.row_axes, *table.column_axes)
    # what all others are compared with comes first
    places = sorted(table.cells, key=lambda place: place not in table.aside)
    return {
        "title": table.title,
        "classifiers": CLASSIFIER in shown,
        "cells": [
            _cell(table.cells[place], place, shown, run_at, config_at, table.epoch)
            for place in cells(table)
        ],
        "first": [cells(table).index(place) for place in places],
    }


def cells(table: Table) -> list[Place]:
    """The cells of a table in the order in which the page numbers them."""
    return list(table.cells)


def _cell(
    cell: TableCell,
    place: Place,
    shown: Sequence[str],
    run_at: Mapping[str, int],
    config_at: Mapping[str, int],
    epoch: Epoch,
) -> dict[str, Any]:
    labels = dict(zip(shown, (*place[0], *place[1]), strict=True))
    classifier = labels.get(CLASSIFIER, "c1") if labels.get(TRAINING) != _ALONE else "c1"
    return {
        "label": label(place) or cell.method,
        "labels": list(labels.items()),
        "config": config_at.get(cell.config_id),  # none before something is chosen
        "runs": [run_at[cell_id] for cell_id in cell.cell_ids],
        "classifier": "" if classifier == "c1" else f"_{classifier}",
        "wanted": cell.wanted,
        "facts": _facts(cell, epoch),
        "leftOut": [f"{count} {reason}" for reason, count in cell.left_out.items()],
        "differs": list(cell.differs),
    }


def label(place: Place) -> str:
    """What a person calls a cell."""
    return " ".join((*place[0], *place[1]))


def _facts(cell: TableCell, epoch: Epoch) -> list[tuple[str, str]]:
    """What is known of a configuration, each with its name."""
    facts = []
    when = "after the last epoch" if epoch is Epoch.last else "in its own best epoch"
    for number in cell.numbers:
        what = number.metric.label
        if number.mean is not None:
            spread = f" ± {fixed(number.sd)}" if number.sd is not None else ""
            facts.append((f"{what} test error {when}", f"{fixed(number.mean)}{spread} %"))
        if number.interval is not None:
            low, high = number.interval
            facts.append((f"{what}, 95 % interval of the mean", f"{fixed(low)} to {fixed(high)} %"))
        if number.paper is not None:
            spread = f" ± {number.paper.sd}" if number.paper.sd else ""
            facts.append(
                (f"{what} in the paper", f"{number.paper.mean}{spread} %, {number.paper.where}")
            )
        if number.difference is not None:
            facts.append((f"{what}, ours less the paper's", fixed(number.difference, signed=True)))
        facts += [
            (f"{what}, gain over {OVER[over]}", fixed(gain, signed=True))
            for over, gain in number.gains.items()
        ]
    computed = [("computed with", cell.computed)] if cell.computed else []
    computed += [
        (f"code {short(code)}", f"{count} of {cell.n} runs")
        for code, count in cell.codes.items()
        if len(cell.codes) > 1
    ]
    return [*facts, *computed, ("runs that count", f"{cell.n} of {cell.wanted}")]
