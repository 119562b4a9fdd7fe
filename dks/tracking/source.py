"""Where the runs of a table are read from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import pandas as pd


class Source(Protocol):
    """The run folders, or an MLflow store."""

    @property
    def name(self) -> str:
        """What a person calls it: the folder, or the store's URI without passwords."""

    def runs(self, cell_ids: Collection[str] | None = None) -> pd.DataFrame:
        """One row a run, in the order of `cell_ids`, or of all runs there are.

        A cell that nobody began has no row.

        Columns: `cell_id`, `config_id`, `seed`, `method`, `state` (a value of
        `dks.runs.states.State`), `epoch` (the last one with metrics, 0: none), `epochs` (asked
        for), `git_commit`, `data_fingerprint`, `device`, `started`, `mlflow_run_id`,
        `mlflow_experiment_id`, `place` (folder or URI of the run), `attempts`, `extensions` (a
        list, as `dks.config.extensions.cited` makes it), `computed_by` (a list of
        `dks.runs.attempts.ComputedBy`, as dicts), `schema_version` (of its ids); and numbers, NaN
        where there is none: `final/<metric>` after the last epoch; `best/<metric>` in the one with
        its classifier's lowest top-1 test error, and that epoch itself, `best/epoch`
        (`best/epoch_c2`, ...); `cost/<name>`.
        """

    def histories(self, cell_ids: Collection[str], metrics: Collection[str]) -> pd.DataFrame:
        """The curves: columns `cell_id`, `epoch`, `metric`, `value`.

        A step written twice is there once, as written last.
        """

    def config(self, cell_id: str) -> dict[str, Any]:
        """Dotted key -> value of the configuration of a run; empty where it is not known."""
