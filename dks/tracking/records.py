"""Runs read from their own folders, `runs/<cell>/`: complete without any store."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dks.config.errors import RequestError
from dks.config.identity import flatten
from dks.config.reading import read_text
from dks.runs.record import CONFIG, RunFolder, Status
from dks.runs.states import State, survey
from dks.tracking.cache import RowCache
from dks.tracking.rows import Row, histories_frame, record_row, runs_frame

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, where it was built
# Another process may take them up at any time.
_OPEN = (Status.queued.value, Status.running.value)


class RecordSource:
    """The folders in `runs_dir`, one a cell.

    The records of runs that ended are read once, and then only when they change.
    """

    def __init__(self, runs_dir: Path | str) -> None:
        self.path = Path(runs_dir)
        self.name = f"{self.path}/"
        self._damaged: set[str] = set()  # runs whose record was read from other files

    def runs(self, cell_ids: Collection[str] | None = None) -> pd.DataFrame:
        """As `dks.tracking.source.Source.runs`.

        Raises:
            RequestError: a record cannot be read.
        """
        names = sorted(self._all()) if cell_ids is None else list(dict.fromkeys(cell_ids))
        stamps = {name: stamp for name in names if (stamp := self._stamp(name)) is not None}
        cache = RowCache(f"records {self.path.absolute()}")
        kept = cache.read(None if cell_ids is None else names)
        rows: dict[str, Row] = {}
        changed = set[str]()
        for name, stamp in stamps.items():
            if name in kept and kept[name][0] == stamp:
                rows[name] = row = kept[name][1]
                # MLflow may have taken it after its record was written
                if row["mlflow_run_id"] is None and (noted := self._mlflow(name))["mlflow_run_id"]:
                    row.update(noted)
                    changed.add(name)
            elif (read := self._read(name)) is not None:
                rows[name] = read
                changed.add(name)
        ended = {
            name: (stamps[name], rows[name])
            for name in changed
            if rows[name]["state"] not in _OPEN and name not in self._damaged
        }
        cache.write(ended, kept.keys() - stamps.keys() if cell_ids is None else ())
        self._set_states(rows)
        return runs_frame(list(rows.values()))

    def histories(self, cell_ids: Collection[str], metrics: Collection[str]) -> pd.DataFrame:
        """As `dks.tracking.source.Source.histories`."""
        return histories_frame(self._points(dict.fromkeys(cell_ids), frozenset(metrics)), cell_ids)

    def config(self, cell_id: str) -> dict[str, Any]:
        """As `dks.tracking.source.Source.config`, with the types that the values have."""
        try:
            tree = yaml.load(read_text(self.path / cell_id / "config.yaml", CONFIG), _YAML)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return flatten(tree) if isinstance(tree, dict) else {}

    def _all(self) -> Iterator[str]:
        """The folders that there are."""
        try:
            with os.scandir(self.path) as found:
                yield from (entry.name for entry in found if entry.is_dir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise RequestError(f"{self.path} cannot be read: {error.strerror}") from error

    def _stamp(self, name: str) -> str | None:
        """What changes whenever the record is written; None: there is none."""
        try:
            seen = os.stat(f"{self.path}/{name}/record.json")  # noqa: PTH116 (a Path for each of thousands takes longer)
        except OSError:
            return None
        return f"{seen.st_mtime_ns} {seen.st_size} {seen.st_ino}"

    def _read(self, name: str) -> Row | None:
        folder = RunFolder(self.path / name)
        record = folder.read_record()
        (self._damaged.add if folder.record_is_damaged else self._damaged.discard)(name)
        if record is None:
            return None
        try:
            text = read_text(folder.config_file, CONFIG)
            data, recipe = _section(text, "data"), _section(text, "recipe")
        except (OSError, ValueError, yaml.YAMLError):
            data, recipe = {}, {}
        return {**record_row(folder, record, data, recipe), **self._mlflow(name)}

    def _mlflow(self, name: str) -> Row:
        """The run in MLflow that `mlflow.json` names."""
        try:
            noted = json.loads(read_text(f"{self.path}/{name}/mlflow.json"))
            return {
                "mlflow_run_id": noted["run_id"],
                "mlflow_experiment_id": noted.get("experiment_id"),
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {"mlflow_run_id": None, "mlflow_experiment_id": None}

    def _set_states(self, rows: dict[str, Row]) -> None:
        """Of the runs that are not done; those that nobody began, or is about to, go."""
        unfinished = [name for name, row in rows.items() if row["state"] != State.done.value]
        standings = survey(str(self.path), unfinished) if unfinished else {}
        for name, standing in standings.items():
            if standing.state is State.missing:
                del rows[name]
            elif standing.state is State.done and (row := self._read(name)) is not None:
                # while one looked
                rows[name] = row
            else:
                rows[name]["state"] = standing.state.value

    def _points(
        self, cell_ids: Collection[str], metrics: frozenset[str]
    ) -> Iterator[tuple[str, int, str, float]]:
        for cell_id in cell_ids:
            newest = {entry.epoch: entry for entry in RunFolder(self.path / cell_id).journal.read()}
            for epoch, entry in newest.items():
                for metric in metrics & entry.metrics.keys():
                    yield cell_id, epoch, metric, entry.metrics[metric]


def _section(text: str, name: str) -> dict[str, Any]:
    """One key of the top level.

    The rest is not parsed, which would take most of the time for thousands of runs.
    """
    found = re.search(rf"^{name}:.*\n(?:[ #-].*\n|\n)*", text, re.MULTILINE)
    return _parsed(found[0]) if found else {}


@lru_cache(maxsize=256)
def _parsed(section: str) -> dict[str, Any]:
    """The runs of a sweep share most of their sections."""
    (value,) = yaml.load(section, _YAML).values()
    return value if isinstance(value, dict) else {}
