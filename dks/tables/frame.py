"""The runs of a sweep as a data frame: one row for every point of the grid, whatever its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from dks.config.errors import RequestError
from dks.sweeps.ledger import State, look_up
from dks.tracking.record import RunFolder


def read_manifest(results_dir: str, sweep: str) -> dict[str, Any]:
    """`results/<sweep>/sweep.json`.

    Raises:
        RequestError: there is no such sweep, or its file is damaged.
    """
    path = Path(results_dir) / sweep / "sweep.json"
    if not path.is_file():
        known = sorted(found.parent.name for found in Path(results_dir).glob("*/sweep.json"))
        raise RequestError(f"no sweep {sweep!r} in {results_dir}; there are {', '.join(known) or 'none yet'}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path} is damaged ({error}); type the sweep's command again") from error
    return manifest


def sweep_frame(manifest: dict[str, Any], metric: str) -> pd.DataFrame:
    """One row a point: the swept labels, `cell_id`, `config_id`, `baseline_id`, `seed`, `method`, `state`, `value`, `best`,
    `git_commit`, `mlflow_run_id`, `folder`. `value` is the metric after the last epoch, `best` in the best one; NaN unless the
    run is done.
    """
    rows = []
    for cell in manifest["cells"]:
        state, record = look_up(manifest["runs_dir"], cell["cell_id"])
        folder = RunFolder(Path(manifest["runs_dir"]) / cell["cell_id"])
        done = record if record is not None and state is State.done else None
        rows.append(
            {
                **cell["labels"],
                **{key: cell[key] for key in ("cell_id", "config_id", "baseline_id", "seed", "method")},
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
