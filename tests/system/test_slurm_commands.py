"""What a user types on a real SLURM cluster.

Submit and return, then status, wait, retry and cancel from other processes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY, start
from tests.support.slurm_cluster import Cluster
from tests.support.tracking_services import mlflow_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = (*TINY, "tracking=off", "seed=1,2")
SLURM = ("--launcher", "slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10")
LONG = ("recipe.epochs=4000", "data.train_images=640")


@pytest.fixture(autouse=True)
def no_jobs_left(cluster: Cluster) -> Iterator[None]:
    """A test that fails leaves the cluster idle for the next one."""
    yield
    cluster.cancel_all()


def dks(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """`dks ARGUMENTS` in a process of its own."""
    process = start(["-m", "dks", *arguments], folder)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def records(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(folder.glob("runs/*/record.json"))
    }


def states(folder: Path, *overrides: str) -> dict[str, int]:
    status, out, err = dks(folder, "sweep", "status", "methods", *overrides, "--json")
    assert status == 0, err
    found: dict[str, int] = json.loads(out)["counts"]
    return found


def test_a_sweep_is_submitted_and_waited_for_by_another_process(
    cluster: Cluster, in_folder: Path
) -> None:
    tracked = (*SMALL, "tracking=local")
    status, _, err = dks(
        in_folder, "sweep", "run", "methods", *SLURM, "method=baseline,dks", *tracked
    )
    assert status == 0, err
    assert "submitted 4 cells to SLURM: job" in err
    assert "dks sweep status methods-" in err
    assert sum(states(in_folder).values()) == 4
    # The same command again leaves alone what is queued or runs.
    status, _, err = dks(
        in_folder, "sweep", "run", "methods", *SLURM, "method=baseline,dks", *tracked
    )
    assert status == 0, err
    assert "submitted" not in err
    status, out, err = dks(in_folder, "sweep", "wait", "methods", "--every", "1")
    assert status == 0, (err, states(in_folder))
    assert "baseline" in out
    assert states(in_folder) == {"done": 4}
    client = mlflow_client(f"sqlite:///{in_folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("dks").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 5, "four cells and their parent"
    made = records(in_folder)
    assert [len(record["attempts"]) for record in made.values()] == [1] * 4
    jobs = {record["attempts"][0]["job"] for record in made.values()}
    assert len(jobs) == 4
    assert len({job.partition("_")[0] for job in jobs}) == 1, "one array"
    status, _, err = dks(
        in_folder, "sweep", "run", "methods", *SLURM, "method=baseline,dks", *tracked
    )
    assert status == 0
    assert "all 4 cells are done, nothing to launch" in err


def test_a_killed_worker_is_reported_as_failed_and_its_sibling_is_not(
    cluster: Cluster, in_folder: Path
) -> None:
    overrides = ("method=dks", *SMALL, *LONG)
    status, _, err = dks(in_folder, "sweep", "run", "methods", *SLURM, *overrides)
    assert status == 0, err
    cluster.until(
        lambda: (
            len([record for record in records(in_folder).values() if record["status"] == "running"])
            == 2
        ),
        120,
        lambda: states(in_folder),
    )
    assert states(in_folder) == {"running": 2}
    first, second = records(in_folder).values()
    second_journal = in_folder / "runs" / second["cell_id"] / "metrics.jsonl"
    # Its speed is known once an epoch of it is over.
    cluster.until(lambda: second_journal.exists() and second_journal.read_text(), 120)
    os.kill(first["attempts"][-1]["pid"], signal.SIGKILL)
    cluster.until(
        lambda: states(in_folder) == {"running": 1, "failed": 1}, 60, lambda: states(in_folder)
    )
    _, out, _ = dks(in_folder, "sweep", "status", "methods")
    assert f"job {first['attempts'][-1]['job']} ended: FAILED" in out
    assert "images/s" in out
    # Cancelled, the other one saves and stops; it is not requeued.
    status, out, err = dks(in_folder, "sweep", "cancel", "methods")
    assert status == 0, err
    cluster.until(
        lambda: states(in_folder) == {"failed": 1, "killed": 1}, 60, lambda: states(in_folder)
    )
    (name,) = [path.name for path in (in_folder / "results").iterdir()]
    epochs = len(second_journal.read_text().splitlines())
    # Both go on with `retry`, which knows what the sweep was asked for.
    status, _, err = dks(in_folder, "sweep", "retry", name, *SLURM)
    assert status == 0, err
    assert "submitted 2 cells" in err
    cluster.until(lambda: states(in_folder).get("running") == 2, 120, lambda: states(in_folder))
    cluster.until(lambda: len(second_journal.read_text().splitlines()) > epochs, 60)
    dks(in_folder, "sweep", "cancel", name)
    cluster.until(lambda: states(in_folder) == {"killed": 2}, 60, lambda: states(in_folder))
    goes_on = records(in_folder)[second["cell_id"]]
    assert goes_on["attempts"][1]["first_epoch"] > epochs


def test_queued_cells_are_withdrawn(cluster: Cluster, in_folder: Path) -> None:
    cluster.command("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        status, _, err = dks(
            in_folder, "sweep", "run", "methods", *SLURM, "method=baseline", *SMALL
        )
        assert status == 0, err
        assert states(in_folder) == {"queued": 2}
        _, out, _ = dks(in_folder, "sweep", "status", "methods")
        assert "queued at SLURM: 2" in out
        status, out, _ = dks(in_folder, "sweep", "cancel", "methods")
        assert "2 queued cells withdrawn" in out
        assert states(in_folder) == {"killed": 2}
        assert cluster.command("squeue", "--noheader") == ""
    finally:
        cluster.command("scontrol", "update", "NodeName=n1,n2", "State=RESUME")


@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_hydras_own_launchers_go_the_same_way(
    cluster: Cluster, in_folder: Path, launcher: str
) -> None:
    process = start(
        [
            str(ROOT / "train.py"),
            "-m",
            f"hydra/launcher={launcher}",
            "hydra.launcher.cpus_per_task=1",
            *SMALL,
        ],
        in_folder,
    )
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "n = 2 seeds" in out
    assert [record["status"] for record in records(in_folder).values()] == ["done", "done"]
