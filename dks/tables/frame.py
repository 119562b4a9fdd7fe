"""The runs of a sweep as a data frame: one row for every point of the grid, whatever its state."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from dks.sweeps.ledger import State, survey
from dks.sweeps.manifest import Manifest
from dks.tracking.record import RunFolder


def sweep_frame(manifest: Manifest, metric: str) -> pd.DataFrame:
    """One row a point: the swept labels, `cell_id`, `config_id`, `baseline_id`, `seed`, `method`, `state`, `value`, `best`,
    `git_commit`, `mlflow_run_id`, `folder`. `value` is the metric after the last epoch, `best` in the best one; NaN unless the
    run is done.
    """
    standings = survey(manifest.runs_dir, manifest.cell_ids)
    rows = []
    for cell in manifest.cells:
        state, record = standings[cell.cell_id].state, standings[cell.cell_id].record
        folder = RunFolder(Path(manifest.runs_dir) / cell.cell_id)
        done = record if record is not None and state is State.done else None
        rows.append(
            {
                **cell.labels,
                **{key: getattr(cell, key) for key in ("cell_id", "config_id", "baseline_id", "seed", "method")},
                "state": state.value,
                "value": done.final[metric] if done else float("nan"),
                "best": done.best[metric] if done else float("nan"),
                "git_commit": record.attempts[-1].git_commit if record and record.attempts else None,
                "mlflow_run_id": _mlflow_run(folder),
                "folder": str(folder.path),
            }
        )
    return pd.DataFrame(rows)


def _mlflow_run(folder: RunFolder) -> str | None:
    """The run in MLflow that its sink noted, if it came that far."""
    try:
        return str(json.loads(folder.mlflow_file.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
