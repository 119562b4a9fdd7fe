"""Where runs are uploaded to: one experiment of an opened store, and the runs that it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dks.runs.record import Status
from dks.tracking.addresses import HTTP, how_to_allow, is_pointed_at
from dks.tracking.mlflow_internals import error_code
from dks.tracking.store import Unavailable, said

if TYPE_CHECKING:
    from mlflow import MlflowClient

CELL_ID = "dks.cell_id"
# the tag of a run whose place another execution of the cell has taken; it enters no mean
SUPERSEDED = "dks.superseded"


@dataclass
class Destination:
    """One experiment of a store that is prepared.

    Args:
        experiment: its id.
        known: runs of the store by their ids, as they were a moment ago; others are asked for.
        parents: sweep -> the id of its run, as far as they were looked up.
    """

    client: MlflowClient
    uri: str
    experiment: str
    known: Mapping[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    def run(self, run_id: str) -> Any:
        """A run; None where the store has none, for it was made anew."""
        if run_id in self.known:
            return self.known[run_id]
        try:
            return self.client.get_run(run_id)
        except Exception as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def find(self, uid: str) -> Any:
        """The run of the record with this `uid`; None where there is none."""
        return self._search(f"tags.`dks.uid` = '{uid}'") if uid else None

    def parent(self, sweep: str | None) -> str | None:
        """The id of the run that stands for a sweep, as soon as there is one."""
        if sweep is not None and sweep not in self.parents and (found := self._sweep_run(sweep)):
            self.parents[sweep] = found.info.run_id
        return self.parents.get(sweep or "")

    def set_sweep_status(self, sweep: str, status: str) -> None:
        """Give the run that stands for a sweep a status, as MLflow names it.

        A sweep of the same name goes on in the same run.
        """
        run = self._sweep_run(sweep) or self.client.create_run(
            self.experiment, tags={"dks.sweep": sweep, "dks.role": "sweep"}, run_name=sweep
        )
        if run.info.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(run.info.run_id, status=status)
        else:
            self.client.set_terminated(run.info.run_id, status)

    def check_artifacts(self, run_id: str) -> None:
        """A server that is named only in the folder of a run must take files itself.

        It may not name another place for them, such as a folder of this machine.

        Raises:
            Unavailable: it does.
        """
        if self.uri.startswith(HTTP) and not is_pointed_at(self.uri):
            place = self.client.get_run(run_id).info.artifact_uri
            if not place.startswith(("mlflow-artifacts:", *HTTP)):
                raise Unavailable(
                    f"it wants the files of runs at {said(place)}; {how_to_allow(self.uri)}"
                )

    def _sweep_run(self, sweep: str) -> Any:
        return self._search(f"tags.`dks.sweep` = '{sweep}' and tags.`dks.role` = 'sweep'")

    def _search(self, condition: str) -> Any:
        found = self.client.search_runs([self.experiment], condition, max_results=1)
        return found[0] if found else None


def status_of(cells: Collection[Status]) -> str:
    """The status of a sweep, as MLflow names it, by those of its cells."""
    for status, name in (
        (Status.running, "RUNNING"),
        (Status.queued, "RUNNING"),
        (Status.failed, "FAILED"),
        (Status.killed, "KILLED"),
    ):
        if status in cells:
            return name
    return "FINISHED"
