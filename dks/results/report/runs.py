"""All runs that a report tells of, begun or not: one data frame, its texts and its costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from dks.config.reading import read_text
from dks.config.secrets import without_password
from dks.results.sheet import fixed
from dks.runs.record import Record, RunFolder
from dks.runs.states import State
from dks.runs.terminal import duration
from dks.sweeps.manifest import Manifest

COMMIT = 10  # digits of a commit that are shown


def collect(parts: Sequence[Manifest], found: pd.DataFrame, source: str) -> pd.DataFrame:
    """One row a run that these sweeps ask for, those included that choose a hyper-parameter.

    The source's columns, and `record` (None: it has no folder here), `error` (why it failed, else
    ""), `mlflow_uri` and `mlflow_link` ("": unknown, or no page).

    Args:
        found: the runs that there are, as `dks.tracking.source.Source.runs` has them.
        source: what a person calls the place where they were found.
    """
    cells = {cell.cell_id: cell for part in parts for cell in (*part.cells, *part.selection)}
    rows = [(cell.cell_id, cell.config_id, cell.seed, cell.method) for cell in cells.values()]
    wanted = pd.DataFrame(rows, columns=["cell_id", "config_id", "seed", "method"])
    found = found.drop(columns=["config_id", "seed", "method"])
    frame = wanted.merge(found, on="cell_id", how="left")
    frame["state"] = frame["state"].fillna(State.missing.value)
    folders = [
        RunFolder(place) if isinstance(place, str) and Path(place).is_dir() else None
        for place in frame["place"]
    ]
    frame["record"] = pd.Series(
        [None if folder is None else folder.read_record() for folder in folders], dtype=object
    )
    frame["error"] = [
        ""
        if record is None or record.error is None or state == State.done.value
        # the words of the exception
        else f"{record.error['type']}: {record.error['message']}"
        for state, record in zip(frame["state"], frame["record"], strict=True)
    ]
    frame["mlflow_uri"] = [
        "" if not isinstance(run_id, str) else source if folder is None else _mlflow_uri(folder)
        for run_id, folder in zip(frame["mlflow_run_id"], folders, strict=True)
    ]
    frame["mlflow_link"] = [_mlflow_link(run) for run in frame.to_dict("records")]
    return frame


def _mlflow_uri(folder: RunFolder) -> str:
    """The store that holds a run, as far as it can be known; without passwords."""
    try:
        return without_password(json.loads(read_text(folder.mlflow_file))["uri"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _mlflow_link(run: Mapping[Any, Any]) -> str:
    """The page of a run on an MLflow server; other stores have none."""
    uri, experiment = run["mlflow_uri"], run["mlflow_experiment_id"]
    if not uri.startswith(("http://", "https://")) or not isinstance(experiment, str):
        return ""
    run_id = quote(run["mlflow_run_id"], safe="")
    return f"{uri.rstrip('/')}/#/experiments/{quote(experiment, safe='')}/runs/{run_id}"


def spent(runs: pd.DataFrame) -> pd.DataFrame:
    """What each kind of device has computed, the longest first.

    Columns: `device`, `runs` that it worked on, `hours` of all processes together, `flops` of the
    runs that it finished, where they are known.
    """
    shares: list[tuple[str, str, float, float]] = []
    for run in runs.to_dict("records"):
        record: Record | None = run["record"]
        # several processes that train together count each
        worked = (
            [(each.device, each.seconds * each.processes) for each in record.attempts]
            if record is not None
            else [(run["device"], run.get("cost/seconds", 0.0))] * isinstance(run["device"], str)
        )
        flops = run.get("cost/training_flops", 0.0) if run["state"] == State.done.value else 0.0
        for number, (device, seconds) in enumerate(worked, start=1):
            last = flops if number == len(worked) else 0.0
            shares.append((device_kind(device), run["cell_id"], seconds / 3600, last))
    frame = pd.DataFrame(shares, columns=["device", "cell_id", "hours", "flops"])
    told = frame.groupby("device", as_index=False).agg(
        runs=("cell_id", "nunique"), hours=("hours", "sum"), flops=("flops", "sum")
    )
    return told.sort_values(["hours", "device"], ascending=[False, True])


def device_kind(device: str) -> str:
    """CPU for `cpu`, NVIDIA H100 for `cuda:0 (NVIDIA H100)`."""
    name = device.partition("(")[2].removesuffix(")").strip()
    return name or ("CPU" if device == "cpu" else device)


def scaled(value: float, unit: str = "") -> str:
    """Three digits: 1.7 PFLOP, 467 k."""
    for exponent, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**exponent:
            return f"{value / 10**exponent:.3g} {prefix}{unit}"
    return f"{value / 1000:.3g} k{unit}" if value >= 1000 else f"{value:.3g} {unit}".strip()


def short_commit(commit: str) -> str:
    """The first digits, and whether files had changed."""
    digits, dash, rest = commit.partition("-")
    return digits[:COMMIT] + dash + rest


def _memory(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


# What the panel behind a cell tells of each run: section -> head -> column of the frame and how its
# values are written. Errors of another classifier than the network's own have its name at the end
# of both.
_Column = tuple[str, Callable[[Any], str]]
PANEL: dict[str, dict[str, _Column]] = {
    "Runs": {
        "seed": ("seed", str),
        "state": ("state", str),
        "epochs": ("epochs told", str),
        "top-1 error": ("final/test/top1_error", fixed),
        "best top-1 error": ("best/test/top1_error", fixed),
        "best epoch": ("best/epoch", "{:.0f}".format),
        "top-5 error": ("final/test/top5_error", fixed),
        "training error": ("final/train/top1_error", fixed),
    },
    "Cost": {
        "seed": ("seed", str),
        "time": ("cost/seconds", duration),
        "an epoch": ("cost/seconds_per_epoch", duration),
        "operations": ("cost/training_flops", lambda count: scaled(count, "FLOP")),
        "images/s": ("cost/images_per_second", "{:,.0f}".format),
        "peak memory": ("cost/peak_memory_mib", _memory),
        "parameters": ("cost/parameters", scaled),
    },
    "Where they come from": {
        "seed": ("seed", str),
        "cell": ("cell_id", str),
        "begun (UTC)": ("started", lambda time: str(time)[:16].replace("T", " ")),
        "device": ("device", str),
        "commit": ("git_commit", short_commit),
        "attempts": ("attempts", "{:.0f}".format),
        "MLflow run": ("mlflow_run_id", str),
        "MLflow page": ("mlflow_link", str),
        "MLflow experiment": ("mlflow_experiment_id", str),
        "MLflow store": ("mlflow_uri", str),
        "place": ("place", str),
    },
}


def texts(runs: pd.DataFrame) -> dict[str, Any]:
    """Head -> a text a run, "" for what is not there; `{"pool": [...], "at": [...]}` where few
    different texts repeat.
    """
    runs = runs.assign(**{"epochs told": list(map(_epochs, runs.to_dict("records")))})
    shown: dict[str, _Column] = {"error": ("error", str)}
    for section in PANEL.values():
        shown |= section
    columns = {}
    for head, (name, show) in shown.items():
        for suffix in ("", "_c2", "_c3", "_c4"):
            if name + suffix in runs:
                values = runs[name + suffix]
                columns[head + suffix] = _pooled(
                    [
                        show(value) if there else ""
                        for value, there in zip(values, values.notna(), strict=True)
                    ]
                )
    return columns


def _epochs(run: Mapping[Any, Any]) -> str:
    """Those that it has, and those asked for where they are others."""
    if not run["epoch"] > 0:
        return ""
    asked = f" of {run['epochs']:.0f}" if run["epochs"] != run["epoch"] else ""
    return f"{run['epoch']:.0f}{asked}"


def _pooled(values: list[str]) -> Any:
    codes, pool = pd.factorize(pd.Series(values, dtype=object))
    if 2 * len(pool) >= len(values):
        return values
    return {"pool": list(pool), "at": codes.tolist()}
