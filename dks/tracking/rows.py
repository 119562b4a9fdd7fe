"""One row a run: its fields, how records and MLflow stores fill them, and the frames made of them.

What MLflow does to numbers is undone: NaN, which it stores as 0 and a mark, and infinity, which it
stores as the largest number there is.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd

from dks.config.extensions import cited
from dks.runs.attempts import ComputedBy, computed_by, device_model
from dks.runs.best import TOP1, best_of
from dks.runs.record import Record, RunFolder, Status
from dks.runs.states import State

# What is known of a run: the names in `FIELDS`, and numbers, absent where there is none.
Row = dict[str, Any]
Texts = Mapping[str, str]  # tags and params of a run in an MLflow store

TOP5 = "test/top5_error"
# and all others: running
STATES = {"FINISHED": State.done, "FAILED": State.failed, "KILLED": State.killed}
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


@dataclass(frozen=True)
class StoredRun:
    """A run in an MLflow store, of those that are a cell."""

    run_id: str
    cell_id: str
    experiment_id: str
    status: str
    start: int  # milliseconds since 1970
    end: int | None

    @property
    def ended(self) -> bool:
        return self.status in STATES and self.end is not None

    @property
    def stamp(self) -> str:
        """What changes when an ended run goes on, and ends again, or gets another id."""
        return f"{self.status} {self.end} {self.cell_id}"


@dataclass(frozen=True)
class Field:
    """A column that is no metric.

    Args:
        source: the tag or param by which an MLflow store has it; "": it has it otherwise.
        parse: of its text there, and what it is without one.
    """

    name: str
    dtype: str = "object"
    source: str = ""
    parse: Callable[[str | None], Any] = lambda text: text


def _text(text: str | None) -> str:
    return text or ""


def _whole(default: int) -> Callable[[str | None], int]:
    return lambda text: int(text or default)


def _known(unknown: str) -> Callable[[str | None], str | None]:
    return lambda text: None if text == unknown else text


def _list(text: str | None) -> list[Any]:
    """Nothing where somebody has changed it by hand."""
    try:
        told = json.loads(text or "[]")
    except ValueError:
        return []
    return told if isinstance(told, list) else []


FIELDS = (
    Field("cell_id"),
    Field("config_id", "object", "dks.config_id", _text),
    Field("seed", "int64", "dks.seed", _whole(0)),
    Field("method", "object", "dks.method", _text),
    Field("state"),
    Field("epoch", "int64"),
    Field("epochs", "int64", "recipe.epochs", _whole(0)),
    Field("git_commit", "object", "dks.git_commit", _known("unknown")),
    Field("data_fingerprint", "object", "data.fingerprint", _known("None")),
    Field("device", "object", "dks.device"),
    Field("started"),
    Field("mlflow_run_id"),
    Field("mlflow_experiment_id"),
    Field("place"),
    Field("attempts", "int64", "dks.attempts", _whole(1)),
    Field("extensions", "object", "dks.extensions", lambda text: cited(_list(text))),
    Field("computed_by", "object", "dks.computed_by", _list),
    Field("schema_version", "int64", "dks.schema_version", _whole(1)),
)
COLUMNS = tuple(field.name for field in FIELDS)


def record_row(folder: RunFolder, record: Record, data: Texts, recipe: Texts) -> Row:
    """The row of a run folder, but for its run in MLflow; `state` is the record's own status.

    Args:
        data, recipe: these sections of its configuration, as far as they can be read.
    """
    attempts, ends = record.attempts, (record.final, folder.best(record))
    if record.status is not Status.done:  # as a record that is done would have them
        entries = folder.journal.read()
        # of several of one epoch the newest
        last = max(reversed(entries), key=lambda entry: entry.epoch, default=None)
        ends = {} if last is None else {"epoch": last.epoch, **last.metrics}, best_of(entries)
    final = dict(ends[0])
    return {
        "cell_id": folder.cell_id,
        "config_id": record.config_id,
        "seed": record.seed,
        "method": record.method,
        "state": record.status.value,
        "epoch": int(final.pop("epoch", 0)),
        "epochs": int(recipe.get("epochs") or 0),
        "git_commit": attempts[-1].git_commit if attempts else None,
        "data_fingerprint": data.get("fingerprint"),
        "device": attempts[-1].device if attempts else None,
        "started": attempts[0].started if attempts else None,
        "place": str(folder.path),
        "attempts": len(attempts),
        "extensions": cited(each for attempt in attempts for each in attempt.extensions),
        "computed_by": [asdict(each) for each in computed_by(attempts)],
        "schema_version": record.schema_version,
        **_numbers("final", final),
        **_numbers("best", ends[1]),
        **_numbers("cost", record.cost),
    }


def mlflow_row(
    run: StoredRun, texts: Texts, latest: Mapping[str, tuple[int, float]], place: str
) -> Row:
    """The row of a run in a store; without `best/...` where the run does not tell it.

    Args:
        texts: its tags and params.
        latest: metric -> its last step, and its value then.
        place: the URI of the run.
    """
    epoch = latest[TOP1][0] if TOP1 in latest else 0
    final, summary = {}, {}
    # without `best/epoch`, all are of the best epoch of c1, as an earlier version sent them
    tells_best = run.status == "FINISHED" and "best/epoch" in latest
    for name, (step, value) in latest.items():
        if name.startswith("cost/") or (name.startswith("best/") and tells_best):
            summary[name] = value
        elif epoch and step == epoch and not is_summary(name):
            final[name] = value
    started = datetime.fromtimestamp(run.start / 1000, timezone.utc)
    return {
        **{field.name: field.parse(texts.get(field.source)) for field in FIELDS if field.source},
        "computed_by": _computed_by(texts),
        "cell_id": run.cell_id,
        "state": STATES.get(run.status, State.running).value,
        "epoch": epoch,
        "started": started.isoformat(timespec="milliseconds"),
        "mlflow_run_id": run.run_id,
        "mlflow_experiment_id": run.experiment_id,
        "place": place,
        **_numbers("final", final),
        **summary,
    }


def is_summary(metric: str) -> bool:
    """Is it one of those that are added at the end of a run?"""
    return metric.startswith(("best/", "cost/"))


def restored(value: float, is_nan: bool = False) -> float:
    """The number that was logged."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def runs_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The data frame that `dks.tracking.source.Source.runs` describes."""
    columns: dict[str, Any] = {
        field.name: pd.Series([row[field.name] for row in rows], dtype=field.dtype)
        for field in FIELDS
    }
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


def _numbers(prefix: str, values: Mapping[str, float]) -> Row:
    """Metrics or costs as columns, such as `final/test/top1_error`."""
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}


def _computed_by(texts: Texts) -> list[dict[str, Any]]:
    """The `ComputedBy` of a run; of one that an older version sent, what its other tags say."""
    told = _list(texts.get("dks.computed_by"))
    with suppress(TypeError):  # somebody has changed it by hand
        made = [asdict(ComputedBy(**each)) for each in told]
        if "dks.computed_by" in texts and all(
            type(each["code"]) in (str, type(None)) for each in made
        ):
            return made
    commit = _known("unknown")(texts.get("dks.git_commit"))
    return [asdict(ComputedBy(None, commit, device_model(texts.get("dks.device", ""))))]
