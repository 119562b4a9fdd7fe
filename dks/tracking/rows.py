"""The numbers of runs, row by row as sources read them, and the data frames made from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dks.runs.best import TOP1

# What is known of a run: the names in `COLUMNS`, and numbers, absent where there is none.
Row = dict[str, Any]

TOP5 = "test/top5_error"
COLUMNS = (
    "cell_id",
    "config_id",
    "seed",
    "method",
    "state",
    "epoch",
    "epochs",
    "git_commit",
    "data_fingerprint",
    "device",
    "started",
    "mlflow_run_id",
    "mlflow_experiment_id",
    "place",
    "attempts",
    "extensions",
    "computed_by",
    "schema_version",
)
_WHOLE = frozenset({"seed", "epoch", "epochs", "attempts", "schema_version"})
_ALWAYS = frozenset(  # numbers whose columns are there even if no run has one
    {
        f"final/{TOP1}",
        f"final/{TOP5}",
        "best/epoch",
        f"best/{TOP1}",
        f"best/{TOP5}",
        "cost/seconds",
        "cost/training_flops",
    }
)


def runs_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The data frame that `dks.tracking.source.Source.runs` describes."""
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        values = [row[name] for row in rows]
        columns[name] = pd.Series(values, dtype="int64" if name in _WHOLE else object)
    for name in sorted(_ALWAYS.union(*rows).difference(COLUMNS)):
        columns[name] = np.array([row.get(name, math.nan) for row in rows], dtype=float)
    return pd.DataFrame(columns)


def histories_frame(
    points: Iterable[tuple[str, int, str, float]], cell_ids: Collection[str]
) -> pd.DataFrame:
    """The data frame that `dks.tracking.source.Source.histories` describes, from (cell, epoch,
    metric, value), each once.
    """
    frame = pd.DataFrame(list(points), columns=["cell_id", "epoch", "metric", "value"])
    place = {cell_id: number for number, cell_id in enumerate(dict.fromkeys(cell_ids))}
    frame = frame.astype({"cell_id": object, "epoch": "int64", "metric": object, "value": float})
    frame = frame.assign(place=frame["cell_id"].map(place)).sort_values(
        ["place", "metric", "epoch"], kind="stable"
    )
    return frame.drop(columns="place").reset_index(drop=True)


def numbers(prefix: str, values: Mapping[str, float]) -> Row:
    """Metrics or costs as columns, such as `final/test/top1_error`."""
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}
