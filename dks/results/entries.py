"""What a table is built from.

One row for every point of a sweep, or every classifier of it, with what its run has shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from dks.config.names import long_name
from dks.results.computed import computed_by
from dks.results.model import Entry
from dks.results.shape import Epoch, Metric, Over
from dks.runs.states import State
from dks.sweeps.files import CLASSIFIER, TRAINING
from dks.sweeps.manifest import Manifest, ManifestCell
from dks.sweeps.paper import Key

# What the axes `classifier` and `training` ("alone", or the method) say in their own way.
_SAID = frozenset({"method", "aux_design", "aux_positions", "matching_strategy", "seed"})

_NO_METHOD = ("-", "null")  # labels of cells that name none; they are called after what they train

_NEEDED = frozenset({"cell_id", "state", "epoch", "epochs", "computed_by"})
NON_FINITE, UNFINISHED = "result not finite", "epochs missing"


def entries(
    sweep: Manifest,
    runs: pd.DataFrame,
    metrics: Sequence[Metric],
    epoch: Epoch,
    by_classifier: bool,
) -> list[Entry]:
    """One row a point of the sweep, or a classifier of it.

    Keys: the labels of the axes; `cell_id`, `config_id`, `seed`; `trained` (the method; an axis so
    called has what was typed, a preset of one's own or one whose terms have no weight); `computed`
    (what is not as in `compute=standard`); `keys` (by which the paper may know it, a
    `dks.sweeps.paper.Key` for every candidate of what is still to be chosen); `entry_id` (the
    configuration, or one classifier of it) and `over_<Over>` (the entry that it is compared with,
    None: none); `state`; `left_out` (why a finished run does not count, "": it does);
    `computed_by`; and one a metric, by its name, in percent, NaN
    unless it is done, None where there is none: `is_told`.

    Args:
        runs: as a `dks.tracking.source.Source` gives them.
        by_classifier: one row for every classifier of a run, with the axes `classifier` and
            `training`.
    """
    ending = tuple(metric.value for metric in metrics)
    wanted = [
        name
        for name in runs
        if name in _NEEDED or name.startswith(tuple(f"{epoch.source}/{each}" for each in ending))
    ]
    found = {run["cell_id"]: run for run in runs[wanted].to_dict("records")}
    rows = [
        row
        for cell in sweep.cells
        for row in _rows(cell, found.get(cell.cell_id), metrics, epoch, by_classifier)
    ]
    ids = sweep.pending_ids or [[] for _ in sweep.pending]
    rows += [
        _pending(labels, each, metrics, by_classifier)
        for labels, each in zip(sweep.pending, ids, strict=True)
    ]
    if by_classifier:
        _compare_with_alone(rows, other_axes(sweep))
    return rows


def is_told(metric: Metric, cell: ManifestCell) -> bool:
    """Can there be such an error? With five classes or fewer no label is beyond the first five."""
    return metric is not Metric.top5 or not 0 < cell.classes <= 5


def other_axes(sweep: Manifest) -> list[str]:
    """The axes that `classifier` and `training` do not stand for."""
    return [axis for axis in sweep.axes if long_name(axis) not in _SAID]


def _rows(
    cell: ManifestCell,
    run: Mapping[Any, Any] | None,
    metrics: Sequence[Metric],
    epoch: Epoch,
    by_classifier: bool,
) -> Iterator[dict[str, Any]]:
    state = State.missing.value if run is None else run["state"]
    several = len(cell.classifiers) > 1
    for classifier in cell.classifiers if by_classifier else cell.classifiers[:1]:
        suffix = f"_{classifier}" if several and classifier != "c1" else ""
        told = [metric for metric in metrics if is_told(metric, cell)]
        values = {metric.name: _value(run, metric.value + suffix, epoch) for metric in told}
        yield {
            **cell.labels,
            **({"method": cell.method} if cell.labels.get("method") in _NO_METHOD else {}),
            **(
                {CLASSIFIER: classifier, TRAINING: cell.method if several else "alone"}
                if by_classifier
                else {}
            ),
            "cell_id": cell.cell_id,
            "config_id": cell.config_id,
            "seed": cell.seed,
            "trained": cell.method,
            "computed": cell.computed,
            "keys": [Key(cell.setting_id or cell.config_id, classifier)],
            "entry_id": f"{cell.config_id}/{classifier}" if by_classifier else cell.config_id,
            f"over_{Over.baseline.value}": None if by_classifier else cell.baseline_id,
            f"over_{Over.ds.value}": None if by_classifier else cell.ds_id,
            f"over_{Over.alone.value}": None,
            "state": state,
            "left_out": _left_out(run, values)
            if run is not None and state == State.done.value
            else "",
            "computed_by": () if run is None else computed_by(run),
            **{metric.name: values.get(metric.name) for metric in metrics},
        }


def _pending(
    labels: Mapping[str, str],
    setting_ids: Sequence[str],
    metrics: Sequence[Metric],
    by_classifier: bool,
) -> dict[str, Any]:
    """A cell that has no identity before something is chosen."""
    return {
        **labels,
        **({CLASSIFIER: "c1", TRAINING: labels.get("method", "")} if by_classifier else {}),
        "cell_id": "",
        "config_id": "",
        "seed": int(labels["seed"]) if labels.get("seed", "-") != "-" else 0,
        "trained": labels.get("method", ""),
        "computed": "",
        "keys": list(map(Key, setting_ids)),
        "entry_id": "",
        **{f"over_{over.value}": None for over in Over},
        "state": State.missing.value,
        "left_out": "",
        "computed_by": (),
        **{metric.name: math.nan for metric in metrics},
    }


def _value(run: Mapping[Any, Any] | None, metric: str, epoch: Epoch) -> float:
    if run is None or run["state"] != State.done.value:
        return math.nan
    return float(run.get(f"{epoch.source}/{metric}", math.nan))


def _left_out(run: Mapping[Any, Any], values: Mapping[str, float]) -> str:
    if 0 < run["epoch"] < run["epochs"]:
        return UNFINISHED
    return "" if all(map(math.isfinite, values.values())) else NON_FINITE


def _compare_with_alone(rows: Sequence[dict[str, Any]], others: Sequence[str]) -> None:
    """A classifier trained with others is compared with the same one trained alone."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row[CLASSIFIER], *(row[axis] for axis in others)

    alone = {key(row): row["entry_id"] for row in rows if row[TRAINING] == "alone"}
    for row in rows:
        if row[TRAINING] != "alone":
            row[f"over_{Over.alone.value}"] = alone.get(key(row))
