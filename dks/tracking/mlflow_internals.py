"""What is used of MLflow that it does not promise to keep: private names, tables, wordings.

Nothing else in dks knows them. `pyproject.toml` has an upper bound on MLflow's version, and
`tests/tracking/test_mlflow_internals.py` names what another version has broken.
"""

from __future__ import annotations

from typing import Any


def latest_points(run: Any) -> dict[str, tuple[int, float]]:
    """Metric -> its last step and its value then; `run.data.metrics` has no steps."""
    return {metric.key: (metric.step, metric.value) for metric in run.data._metric_objs}


def error_code(error: BaseException) -> str | None:
    """MLflow's name for what went wrong, such as RESOURCE_DOES_NOT_EXIST."""
    return getattr(error, "error_code", None)
