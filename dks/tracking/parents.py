"""The runs that stand for sweeps: parents of their cells' runs, found by the sweep's name."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dks.runs.record import Status

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tell_sweep(client: MlflowClient, experiment: str, sweep: str, status: str) -> None:
    """Give the run of a sweep a status; a sweep of the same name goes on in the same run.

    Args:
        experiment: its id.
        status: as MLflow names it.
    """
    found = _search(client, experiment, sweep_condition(sweep))
    if found is None:
        found = client.create_run(
            experiment, tags={"dks.sweep": sweep, "dks.role": "sweep"}, run_name=sweep
        )
    if found.info.status == status:
        return
    if status == "RUNNING":
        client.update_run(found.info.run_id, status=status)
    else:
        client.set_terminated(found.info.run_id, status)


def status_of(cells: Collection[Status]) -> str:
    """What a sweep is, as MLflow names it, by what its cells are."""
    for status, name in (
        (Status.running, "RUNNING"),
        (Status.queued, "RUNNING"),
        (Status.failed, "FAILED"),
        (Status.killed, "KILLED"),
    ):
        if status in cells:
            return name
    return "FINISHED"


def find_run(client: MlflowClient, experiment: str, condition: str) -> str | None:
    """The run of an experiment for which this holds."""
    found = _search(client, experiment, condition)
    return None if found is None else str(found.info.run_id)


def sweep_condition(sweep: str) -> str:
    """What holds for the run of a sweep alone."""
    return f"tags.`dks.sweep` = '{sweep}' and tags.`dks.role` = 'sweep'"


def _search(client: MlflowClient, experiment: str, condition: str) -> Any:
    found = client.search_runs([experiment], condition, max_results=1)
    return found[0] if found else None
