"""Runs read from an MLflow store."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from dks.config.registry import cited
from dks.config.secrets import without_password
from dks.runs.attempts import ComputedBy, device_model
from dks.runs.best import TOP1, best_epoch, classifier_ending
from dks.runs.states import State
from dks.tracking.cache import RowCache
from dks.tracking.mlflow_database import Database
from dks.tracking.mlflow_server import Server
from dks.tracking.mlflow_store import STATES, Point, Store, StoredData, StoredRun
from dks.tracking.rows import Row, histories_frame, numbers, runs_frame


class MlflowSource:
    """One experiment in the store at `uri`.

    Runs that ended are read once, and then only when they change.
    """

    def __init__(self, uri: str, experiment: str = "dks") -> None:
        self.name = without_password(uri)
        self._cache = RowCache(f"mlflow {_absolute(uri)} {experiment}")
        self._cells: dict[str, StoredRun] | None = None  # as they were when `runs` looked last
        self._store: Store = (Server if uri.startswith(("http://", "https://")) else Database)(
            uri, experiment
        )

    def runs(self, cell_ids: Collection[str] | None = None) -> pd.DataFrame:
        """As `dks.tracking.source.Source.runs`.

        Raises:
            RequestError: the store cannot be read, or has no such experiment.
        """
        everything = self._store.runs()
        of_cell = self._cells = _one_a_cell(everything)
        wanted = (
            sorted(of_cell)
            if cell_ids is None
            else [cell_id for cell_id in dict.fromkeys(cell_ids) if cell_id in of_cell]
        )
        chosen = {of_cell[cell_id].run_id: of_cell[cell_id] for cell_id in wanted}
        kept = self._cache.read(None if cell_ids is None else list(chosen))
        rows = {
            run_id: kept[run_id][1]
            for run_id, run in chosen.items()
            if run.ended and run_id in kept and kept[run_id][0] == run.stamp
        }
        fresh = self._read([run for run_id, run in chosen.items() if run_id not in rows])
        ended = {
            run_id: (chosen[run_id].stamp, row)
            for run_id, row in fresh.items()
            if chosen[run_id].ended
        }
        gone = kept.keys() - {run.run_id for run in everything} if cell_ids is None else ()
        self._cache.write(ended, gone)
        rows |= fresh
        return runs_frame([rows[run_id] for run_id in chosen])

    def histories(self, cell_ids: Collection[str], metrics: Collection[str]) -> pd.DataFrame:
        """As `dks.tracking.source.Source.histories`.

        Raises:
            RequestError: the store cannot be read, or has no such experiment.
        """
        of_cell = self._known()
        cells = {of_cell[cell_id].run_id: cell_id for cell_id in cell_ids if cell_id in of_cell}
        points = _newest(self._store.points(list(cells), sorted(set(metrics))))
        return histories_frame(
            ((cells[run_id], step, key, value) for (run_id, key, step), value in points.items()),
            cell_ids,
        )

    def config(self, cell_id: str) -> dict[str, Any]:
        """As `dks.tracking.source.Source.config`; all values are strings.

        Raises:
            RequestError: the store cannot be read, or has no such experiment.
        """
        run = self._known().get(cell_id)
        return {} if run is None else dict(self._store.params(run.run_id))

    def _known(self) -> dict[str, StoredRun]:
        if self._cells is None:
            self._cells = _one_a_cell(self._store.runs())
        return self._cells

    def _read(self, runs: Sequence[StoredRun]) -> dict[str, Row]:
        """Run -> its row."""
        data = self._store.data([run.run_id for run in runs]) if runs else {}
        rows = {run.run_id: _row(run, data[run.run_id], self._store.place(run)) for run in runs}
        untold = [
            run_id for run_id, row in rows.items() if row["epoch"] and "best/epoch" not in row
        ]
        for run_id, best in self._best(untold, data).items():
            rows[run_id] |= best
        return rows

    def _best(self, run_ids: Sequence[str], data: dict[str, StoredData]) -> dict[str, Row]:
        """The numbers of the best epochs of runs that do not tell them.

        Unfinished ones, and those of earlier versions.
        """
        names = {
            run_id: [key for key in data[run_id].latest if not _is_summary(key)]
            for run_id in run_ids
        }
        judged = sorted({key for keys in names.values() for key in keys if key.startswith(TOP1)})
        # run, ending of the classifier
        errors: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        for (run_id, metric, epoch), value in _newest(
            self._store.points(run_ids, judged) if run_ids else ()
        ).items():
            errors[run_id, classifier_ending(metric)].append((epoch, value))
        at: dict[int, set[tuple[str, str]]] = defaultdict(set)
        found: dict[str, Row] = defaultdict(dict)
        for (run_id, ending), known in errors.items():
            if (step := best_epoch(known)) is not None:
                at[step].add((run_id, ending))
                found[run_id][f"best/epoch{ending}"] = float(step)
        for step, members in at.items():
            runs = list(dict.fromkeys(run_id for run_id, _ in sorted(members)))
            metrics = sorted(
                {
                    key
                    for run_id in runs
                    for key in names[run_id]
                    if (run_id, classifier_ending(key)) in members
                }
            )
            for (run_id, metric, _), value in _newest(
                self._store.points(runs, metrics, step)
            ).items():
                if (run_id, classifier_ending(metric)) in members:
                    found[run_id][f"best/{metric}"] = value
        return found


def _one_a_cell(runs: Iterable[StoredRun]) -> dict[str, StoredRun]:
    """Cell -> its run: of several a finished one, then the one that was begun last."""
    ordered = sorted(
        runs, key=lambda run: (STATES.get(run.status) is State.done, run.start, run.run_id)
    )
    return {run.cell_id: run for run in ordered}


def _newest(points: Iterable[Point]) -> dict[tuple[str, str, int], float]:
    """(run, metric, step) -> the value that was logged last."""
    found: dict[tuple[str, str, int], tuple[int, float]] = {}
    for run_id, metric, step, when, value in points:
        before = found.get((run_id, metric, step))
        # MLflow takes the larger of two values of the same time.
        if before is None or when > before[0] or (when == before[0] and not value <= before[1]):
            found[run_id, metric, step] = when, value
    return {key: value for key, (_, value) in found.items()}


def _is_summary(metric: str) -> bool:
    """Is it one of those that the sink adds at the end of a run?"""
    return metric.startswith(("best/", "cost/"))


def _row(run: StoredRun, data: StoredData, place: str) -> Row:
    """What needs no history; without `best/...` where the run does not tell it."""
    tags, params, latest = data.tags, data.params, data.latest
    epoch = latest[TOP1][0] if TOP1 in latest else 0
    final = {
        key: value
        for key, (step, value) in latest.items()
        if epoch and step == epoch and not _is_summary(key)
    }
    summary: dict[str, float] = {}
    # without it, all are of the best epoch of c1
    if run.status == "FINISHED" and "best/epoch" in latest:
        summary = {key: value for key, (_, value) in latest.items() if key.startswith("best/")}
    commit = tags.get("dks.git_commit", "unknown")
    fingerprint = params.get("data.fingerprint", "None")
    return {
        "cell_id": run.cell_id,
        "config_id": tags.get("dks.config_id", ""),
        "seed": int(tags.get("dks.seed", 0)),
        "method": tags.get("dks.method", ""),
        "state": STATES.get(run.status, State.running).value,
        "epoch": epoch,
        "epochs": int(params.get("recipe.epochs", 0)),
        "git_commit": None if commit == "unknown" else commit,
        "data_fingerprint": None if fingerprint == "None" else fingerprint,
        "device": tags.get("dks.device"),
        "started": datetime.fromtimestamp(run.start / 1000, timezone.utc).isoformat(
            timespec="milliseconds"
        ),
        "mlflow_run_id": run.run_id,
        "mlflow_experiment_id": run.experiment_id,
        "place": place,
        "attempts": int(tags.get("dks.attempts", 1)),
        "extensions": cited(_list(tags.get("dks.extensions"))),
        "computed_by": _computed_by(tags),
        "schema_version": int(tags.get("dks.schema_version", 1)),
        **numbers("final", final),
        **summary,
        **{key: value for key, (_, value) in latest.items() if key.startswith("cost/")},
    }


def _computed_by(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """The `ComputedBy` of a run; of one that an older version sent, what its other tags say."""
    told = _list(tags.get("dks.computed_by"))
    with suppress(TypeError):  # somebody has changed it by hand
        made = [asdict(ComputedBy(**each)) for each in told]
        if "dks.computed_by" in tags and all(
            type(each["code"]) in (str, type(None)) for each in made
        ):
            return made
    commit = tags.get("dks.git_commit", "unknown")
    return [
        asdict(
            ComputedBy(
                None,
                None if commit == "unknown" else commit,
                device_model(tags.get("dks.device", "")),
            )
        )
    ]


def _list(tag: str | None) -> list[Any]:
    """What a tag holds; nothing where somebody has changed it by hand."""
    try:
        told = json.loads(tag or "[]")
    except ValueError:
        return []
    return told if isinstance(told, list) else []


def _absolute(uri: str) -> str:
    """The same from every folder, without passwords."""
    file = uri.removeprefix("sqlite:///")
    return without_password(uri) if file == uri else f"sqlite:///{Path(file).absolute()}"
