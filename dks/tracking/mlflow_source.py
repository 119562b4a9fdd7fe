"""Runs read from an MLflow store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dks.config.secrets import without_password
from dks.runs.best import TOP1, best_epoch, classifier_ending
from dks.runs.states import State
from dks.tracking.addresses import HTTP
from dks.tracking.cache import RowCache
from dks.tracking.database import SQLITE
from dks.tracking.mlflow_stores import Point, StoreDatabase, StoredData, StoreServer
from dks.tracking.rows import (
    STATES,
    Row,
    StoredRun,
    histories_frame,
    is_summary,
    mlflow_row,
    runs_frame,
)


class MlflowSource:
    """One experiment in the store at `uri`.

    Runs that ended are read once, and then only when they change.

    Raises:
        RequestError: there is no store that can be read. So do its methods, where it cannot be, or
            has no such experiment.
    """

    def __init__(self, uri: str, experiment: str = "dks") -> None:
        self.name = without_password(uri)
        file = uri.removeprefix(SQLITE)  # the same from every folder
        place = self.name if file == uri else f"{SQLITE}{Path(file).absolute()}"
        self._cache = RowCache(f"mlflow {place} {experiment}")
        self._cells: dict[str, StoredRun] | None = None  # as they were when `runs` looked last
        kind = StoreServer if uri.startswith(HTTP) else StoreDatabase
        self._store: StoreServer | StoreDatabase = kind(uri, experiment)

    def runs(self, cell_ids: Collection[str] | None = None) -> pd.DataFrame:
        """As `dks.tracking.source.Source.runs`."""
        everything = self._store.runs()
        of_cell = self._cells = _one_a_cell(everything)
        wanted = sorted(of_cell) if cell_ids is None else dict.fromkeys(cell_ids)
        chosen = {of_cell[each].run_id: of_cell[each] for each in wanted if each in of_cell}
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
        """As `dks.tracking.source.Source.histories`."""
        of_cell = self._known()
        cells = {of_cell[cell_id].run_id: cell_id for cell_id in cell_ids if cell_id in of_cell}
        points = _newest(self._store.points(list(cells), sorted(set(metrics))))
        return histories_frame(
            ((cells[run_id], step, key, value) for (run_id, key, step), value in points.items()),
            cell_ids,
        )

    def config(self, cell_id: str) -> dict[str, Any]:
        """As `dks.tracking.source.Source.config`; all values are strings."""
        run = self._known().get(cell_id)
        return {} if run is None else dict(self._store.params(run.run_id))

    def _known(self) -> dict[str, StoredRun]:
        if self._cells is None:
            self._cells = _one_a_cell(self._store.runs())
        return self._cells

    def _read(self, runs: Sequence[StoredRun]) -> dict[str, Row]:
        """Run -> its row."""
        data = self._store.data([run.run_id for run in runs]) if runs else {}
        rows = {}
        for run in runs:
            of_run = data[run.run_id]
            rows[run.run_id] = mlflow_row(run, of_run.texts, of_run.latest, self._store.place(run))
        untold = [each for each, row in rows.items() if row["epoch"] and "best/epoch" not in row]
        for run_id, best in self._best(untold, data).items() if untold else ():
            rows[run_id] |= best
        return rows

    def _best(self, run_ids: Sequence[str], data: dict[str, StoredData]) -> dict[str, Row]:
        """The numbers of the best epochs of runs that do not tell them.

        Unfinished ones, and those of earlier versions.
        """
        names = {
            run_id: [name for name in data[run_id].latest if not is_summary(name)]
            for run_id in run_ids
        }
        judged = sorted({name for all_ in names.values() for name in all_ if name.startswith(TOP1)})
        # run, ending of the classifier
        errors: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        for (run_id, metric, epoch), value in _newest(self._store.points(run_ids, judged)).items():
            errors[run_id, classifier_ending(metric)].append((epoch, value))
        at: dict[int, set[tuple[str, str]]] = defaultdict(set)
        found: dict[str, Row] = defaultdict(dict)
        for (run_id, ending), known in errors.items():
            if (step := best_epoch(known)) is not None:
                at[step].add((run_id, ending))
                found[run_id][f"best/epoch{ending}"] = float(step)
        for step, members in at.items():
            runs = sorted({run_id for run_id, _ in members})
            metrics = {
                name
                for run_id in runs
                for name in names[run_id]
                if (run_id, classifier_ending(name)) in members
            }
            points = _newest(self._store.points(runs, sorted(metrics), step))
            for (run_id, metric, _), value in points.items():
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
