"""All runs that a report tells of, begun or not, and what they cost."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from dks.config.reading import read_text
from dks.config.secrets import without_password
from dks.runs.record import Record, RunFolder
from dks.runs.states import State
from dks.sweeps.manifest import Manifest


@dataclass(frozen=True)
class Spent:
    """What one kind of device has computed."""

    device: str
    runs: int  # that it worked on
    hours: float  # of all processes together
    flops: float  # of the runs that it finished, where they are known


@dataclass(frozen=True)
class Runs:
    """One row a run asked for, in the order of the sweep.

    The source's columns, and `error` (why it failed, else ""), `mlflow_uri` and `mlflow_link` ("":
    unknown, or no page).
    """

    frame: pd.DataFrame
    # runs of the tables that wait until something is chosen, and have no identity before
    pending: int
    spent: tuple[Spent, ...]  # the longest first
    versions: dict[str, int]  # "torch 2.11.0" -> runs computed with it

    @property
    def states(self) -> dict[str, int]:
        """State -> runs; finished ones first, those never begun last."""
        counts = Counter(self.frame["state"]) + Counter({State.missing.value: self.pending})
        order = (
            State.done,
            State.running,
            State.queued,
            State.failed,
            State.killed,
            State.lost,
            State.missing,
        )
        return {state.value: counts[state.value] for state in order if counts[state.value]}

    @property
    def begun(self) -> pd.DataFrame:
        """Without the runs that nobody began."""
        return self.frame[self.frame["place"].notna()]


def collect(parts: Sequence[Manifest], found: pd.DataFrame, source: str) -> Runs:
    """The runs of these sweeps, each once; those that choose a hyper-parameter as well.

    Args:
        found: the runs that there are, as `dks.tracking.source.Source.runs` has them.
        source: what a person calls the place where they were found.
    """
    cells = {cell.cell_id: cell for part in parts for cell in (*part.cells, *part.selection)}
    rows = [(cell.cell_id, cell.config_id, cell.seed, cell.method) for cell in cells.values()]
    wanted = pd.DataFrame(rows, columns=["cell_id", "config_id", "seed", "method"])
    frame = wanted.merge(
        found.drop(columns=["config_id", "seed", "method"]), on="cell_id", how="left"
    )
    frame["state"] = frame["state"].fillna(State.missing.value)
    runs = frame.to_dict("records")
    records = [_record(run["place"]) for run in runs]
    frame["error"] = [
        _error(run["state"], record) for run, record in zip(runs, records, strict=True)
    ]
    frame["mlflow_uri"] = uris = [_mlflow_uri(run, source) for run in runs]
    frame["mlflow_link"] = [_mlflow_link(run, uri) for run, uri in zip(runs, uris, strict=True)]
    last = [record.attempts[-1] for record in records if record is not None and record.attempts]
    versions = Counter(
        f"{name} {version}" for attempt in last for name, version in attempt.versions.items()
    )
    return Runs(
        frame,
        sum(len(part.pending) for part in parts),
        _spent(runs, records),
        dict(sorted(versions.items())),
    )


def _record(place: Any) -> Record | None:
    """The record of a run in a folder; what a store alone knows of has none."""
    return RunFolder(place).read_record() if _is_folder(place) else None


def _is_folder(place: Any) -> bool:
    return isinstance(place, str) and Path(place).is_dir()


def _error(state: str, record: Record | None) -> str:
    if state == State.done.value or record is None or record.error is None:
        return ""
    return f"{record.error['type']}: {record.error['message']}"


def _spent(
    runs: Sequence[Mapping[Any, Any]], records: Sequence[Record | None]
) -> tuple[Spent, ...]:
    hours: defaultdict[str, float] = defaultdict(float)
    flops: defaultdict[str, float] = defaultdict(float)
    worked: Counter[str] = Counter()
    for run, record in zip(runs, records, strict=True):
        shares = _shares(run, record)
        for device, seconds in shares:
            hours[device] += seconds / 3600
        worked.update({device for device, _ in shares})
        if shares and run["state"] == State.done.value:
            flops[shares[-1][0]] += _number(run.get("cost/training_flops"))
    spent = (Spent(device, count, hours[device], flops[device]) for device, count in worked.items())
    return tuple(sorted(spent, key=lambda each: (-each.hours, each.device)))


def _shares(run: Mapping[Any, Any], record: Record | None) -> list[tuple[str, float]]:
    """Kind of device and seconds, for every attempt.

    Several processes that train together count each.
    """
    if record is not None:
        return [
            (kind(attempt.device), attempt.seconds * attempt.processes)
            for attempt in record.attempts
        ]
    return (
        [(kind(run["device"]), _number(run.get("cost/seconds")))]
        if isinstance(run["device"], str)
        else []
    )


def _number(value: Any) -> float:
    return 0.0 if value is None or value != value else float(value)


def kind(device: str) -> str:
    """CPU for `cpu`, NVIDIA H100 for `cuda:0 (NVIDIA H100)`."""
    return device.partition("(")[2].removesuffix(")").strip() or (
        "CPU" if device == "cpu" else device
    )


def _mlflow_uri(run: Mapping[Any, Any], source: str) -> str:
    """The store that holds a run, as far as it can be known; without passwords."""
    if not isinstance(run["mlflow_run_id"], str):
        return ""
    if not _is_folder(run["place"]):
        return source
    try:
        return without_password(json.loads(read_text(RunFolder(run["place"]).mlflow_file))["uri"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _mlflow_link(run: Mapping[Any, Any], uri: str) -> str:
    """The page of a run on an MLflow server; other stores have none."""
    experiment, run_id = run["mlflow_experiment_id"], run["mlflow_run_id"]
    if not uri.startswith(("http://", "https://")) or not isinstance(experiment, str):
        return ""
    place = f"experiments/{quote(experiment, safe='')}/runs/{quote(run_id, safe='')}"
    return f"{uri.rstrip('/')}/#/{place}"
