"""An MLflow tracking server, read through its own interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dks.config.errors import RequestError
from dks.config.secrets import without_password
from dks.tracking.addresses import point_at, warn_if_exposed
from dks.tracking.mlflow_store import Point, StoredData, StoredRun, chunks, no_experiment, restored
from dks.tracking.store import all_cells, load_mlflow, reason, said
from dks.tracking.upload import SUPERSEDED

# seconds that a server has for a word, and for an answer that may be long
GREETING, PATIENCE = 15, 60


class Server:
    """A tracking server, through MLflow's client."""

    # that the server takes and gives at most in one answer about histories
    RUNS, POINTS = 100, 25_000

    def __init__(self, uri: str, experiment: str) -> None:
        point_at(uri)
        warn_if_exposed(uri)
        self.uri = uri.rstrip("/")
        self.name = without_password(uri).rstrip("/")
        self.experiment = experiment
        self._known: dict[str, StoredData] = {}  # run -> what came with the list of runs

    def runs(self) -> list[StoredRun]:
        with self._asking() as client:
            self._greet()
            found = client.get_experiment_by_name(self.experiment)
            if found is None or found.lifecycle_stage != "active":
                raise no_experiment(
                    self.name, self.experiment, {each.name for each in client.search_experiments()}
                )
            runs = list(all_cells(client, found.experiment_id))
        self._known = {run.info.run_id: self._data(run.data) for run in runs}
        return [
            StoredRun(
                run.info.run_id,
                run.data.tags["dks.cell_id"],
                str(run.info.experiment_id),
                run.info.status,
                run.info.start_time or 0,
                run.info.end_time,
            )
            for run in runs
            if "dks.cell_id" in run.data.tags and SUPERSEDED not in run.data.tags
        ]

    def data(self, run_ids: Sequence[str]) -> dict[str, StoredData]:
        return {run_id: self._known[run_id] for run_id in run_ids}

    def points(
        self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None
    ) -> Iterator[Point]:
        for metric in metrics:
            for chunk in chunks(run_ids, self.RUNS):
                for run_id, at, when, value in self._histories(chunk, metric):
                    if step is None or at == step:
                        yield run_id, metric, at, when, restored(value)

    def params(self, run_id: str) -> dict[str, str]:
        return dict(sorted(self._known[run_id].params.items()))

    def place(self, run: StoredRun) -> str:
        return f"{self.name}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    @staticmethod
    def _data(data: Any) -> StoredData:
        # `data.metrics` has no steps.
        latest = {metric.key: (metric.step, restored(metric.value)) for metric in data._metric_objs}
        return StoredData(dict(data.tags), dict(data.params), latest)

    def _histories(self, run_ids: Sequence[str], metric: str) -> list[tuple[str, int, int, float]]:
        """Run, step, time and value.

        What the server cuts off is asked for again, in smaller pieces.
        """
        query = {"run_id": run_ids, "metric_key": metric, "max_results": self.POINTS}
        path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
        with self._asking():
            answer = self._get(path, params=query)
        if answer.status_code != 200:
            raise RequestError(
                f"{self.name} answers {answer.status_code} to {path}: {said(answer.text)}"
            )
        points = answer.json()["metrics"]
        if len(points) < self.POINTS:
            return [
                (point["run_id"], point["step"], point["timestamp"], point["value"])
                for point in points
            ]
        if len(run_ids) > 1:
            half = len(run_ids) // 2
            return self._histories(run_ids[:half], metric) + self._histories(run_ids[half:], metric)
        with self._asking() as client:
            history = client.get_metric_history(run_ids[0], metric)
        return [(run_ids[0], point.step, point.timestamp, point.value) for point in history]

    def _greet(self) -> None:
        """A server that does not answer is noticed at once."""
        self._get("/version", timeout=GREETING)

    def _get(self, path: str, **options: Any) -> Any:
        """The answer, whatever its status."""
        load_mlflow(PATIENCE)
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        return http_request(get_default_host_creds(self.uri), path, "GET", **options)

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """MLflow's client."""
        load_mlflow(PATIENCE)
        from mlflow import MlflowClient

        try:
            yield MlflowClient(tracking_uri=self.uri)
        except RequestError:
            raise
        except Exception as error:  # of many kinds, all of them about this server
            raise RequestError(f"{self.name} cannot be read: {reason(error)}") from error
