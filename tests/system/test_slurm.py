"""Cells on a real SLURM cluster of two nodes with two CPUs each, see `slurm_cluster`."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from dks.config.errors import RequestError
from dks.runs.handover import recover
from dks.runs.launches import LaunchFolder
from dks.runs.record import Record, RunFolder, Status
from dks.runs.scheduler import Job, Scheduler, Stage
from dks.sweeps.launch import queue
from dks.sweeps.launchers.slurm import Resources, log_file, submit
from dks.sweeps.plan import plan
from dks.sweeps.spec import Grid, Point
from tests.conftest import ROOT, TINY, composed, finished_run
from tests.support.slurm_cluster import Cluster
from tests.training.test_resume import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# A run of some five seconds.
LONG = ("data.train_images=256", "recipe.epochs=30")
SMALL = {"cpus_per_task": 1, "timeout_min": 10, "signal_delay_s": 60}


class Submitted:
    """Cells that were submitted, and questions to them."""

    def __init__(self, folder: Path, cells: Sequence[Sequence[str]], **resources: object) -> None:
        self.launch, self.runs = queued(folder, cells)
        self.resources = Resources(**{**SMALL, **resources})  # type: ignore[arg-type]

    def submit(self) -> Submitted:
        submit([run.path for run in self.runs], self.launch, self.resources)
        return self

    @property
    def ids(self) -> list[str]:
        """SLURM's id of each cell's job, as `launch.json` has it."""
        jobs = self.launch.read().jobs()
        return [jobs[str(run.path)] for run in self.runs]

    def jobs(self) -> list[Job]:
        found = Scheduler().jobs(self.ids)
        return [found[job] for job in self.ids]

    def states(self) -> list[str]:
        return [job.state for job in self.jobs()]

    def have_ended(self) -> bool:
        return all(job.stage is Stage.ended for job in self.jobs())

    def record(self, cell: int = 0) -> Record:
        record = self.runs[cell].read_record()
        assert record is not None
        return record

    def has_begun(self, cell: int = 0) -> bool:
        """Is it in its third epoch?"""
        return len(self.runs[cell].journal.read()) >= 2

    def story(self) -> str:
        """What the jobs printed, for a test that fails."""
        logs = [log_file(self.launch, job) for job in dict.fromkeys(self.ids)]
        return "\n".join([str(self.jobs()), *(log.read_text() for log in logs if log.exists())])


def queued(folder: Path, cells: Sequence[Sequence[str]]) -> tuple[LaunchFolder, list[RunFolder]]:
    """Cells with these overrides, queued by a launch whose process has gone."""
    fixed = (*TINY, "tracking=off", f"runs_dir={folder / 'runs'}")
    points = tuple(
        Point((*fixed, *overrides), {"cell": " ".join(overrides)}) for overrides in cells
    )
    planned = plan(Grid(("cell",), points, "some"), lambda given: composed(*given)).cells
    runs = [RunFolder(folder / "runs" / cell.cell_id) for cell in planned]
    launch = LaunchFolder.create(
        str(folder / "results"), "some", "slurm", [run.path for run in runs], None
    )
    for cell in planned:
        queue(cell, launch)
    launch.lock.release()
    return launch, runs


def seeds(count: int, *overrides: str) -> list[tuple[str, ...]]:
    return [(f"seed={seed}", *overrides) for seed in range(1, count + 1)]


def restarts(cluster: Cluster, job: str) -> int:
    """How often SLURM has started a job again."""
    found = re.search(r"Restarts=(\d+)", cluster.command("scontrol", "show", "job", job))
    assert found is not None
    return int(found.group(1))


def test_nine_cells_are_submitted_at_once_and_run_three_at_a_time(
    cluster: Cluster, in_folder: Path
) -> None:
    """The ids are on disk when `submit` returns; another process sees how the jobs do.

    All nine finish.
    """
    cells = Submitted(in_folder, seeds(9), parallel=3).submit()
    assert len(set(cells.ids)) == 9
    ask = f"from dks.runs.scheduler import Scheduler; print(Scheduler().jobs({cells.ids!r}))"
    seen = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert seen.count("Stage.pending") + seen.count("Stage.running") == 9
    busiest = 0

    def have_ended() -> bool:
        nonlocal busiest
        busiest = max(busiest, cells.states().count("RUNNING"))
        return cells.have_ended()

    cluster.until(have_ended, 200, cells.story)
    assert busiest == 3
    assert cells.states() == ["COMPLETED"] * 9
    for cell, job in enumerate(cells.ids):
        record = cells.record(cell)
        assert record.status is Status.done
        assert [attempt.job for attempt in record.attempts] == [job]


def preempt(cluster: Cluster, job: str) -> None:
    """A job in the other partition wants both nodes for itself."""
    cluster.command(
        "sbatch",
        "--partition=high",
        "--nodes=2",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    )


def terminate(cluster: Cluster, job: str) -> None:
    """What preemption comes down to on a cluster that sends no other signal before."""
    cluster.command("scancel", "--signal=TERM", job)


@pytest.mark.parametrize(("end", "name"), [(preempt, "SIGUSR2"), (terminate, "SIGTERM")])
def test_a_preempted_job_is_requeued_and_ends_as_one_that_was_not(
    cluster: Cluster, in_folder: Path, end: Callable[[Cluster, str], None], name: str
) -> None:
    cells = Submitted(in_folder, [LONG]).submit()
    cluster.until(cells.has_begun, 60, cells.story)
    end(cluster, cells.ids[0])
    cluster.until(lambda: cells.record().status is Status.killed, 30, cells.story)
    assert cells.record().error == {"type": "Interrupted", "message": name}
    straight = finished_run(in_folder / "straight", *LONG)
    cluster.until(lambda: cells.record().status is Status.done, 90, cells.story)
    cluster.until(cells.have_ended, 30)
    assert cells.states() == ["COMPLETED"]
    assert restarts(cluster, cells.ids[0]) == 1
    attempts = cells.record().attempts
    assert [attempt.status for attempt in attempts] == ["killed", "done"]
    assert attempts[1].first_epoch > 2
    assert_same(cells.runs[0], straight)


def test_a_job_that_hits_its_time_limit_goes_on_until_it_is_done(
    cluster: Cluster, in_folder: Path
) -> None:
    """SLURM looks every 30 s which jobs are near their limit, and of one minute every moment is
    near.
    """
    cells = Submitted(in_folder, [LONG], timeout_min=1, signal_delay_s=30).submit()
    cluster.until(cells.has_begun, 90, cells.story)
    # However fast the machine, the run is not over before; what SLURM sends beside its signal lets
    # it go on.
    with suppress(ProcessLookupError):
        os.kill(cells.record().attempts[-1].pid, signal.SIGSTOP)
    cluster.until(lambda: restarts(cluster, cells.ids[0]) >= 1, 60, cells.story)
    straight = finished_run(in_folder / "straight", *LONG)
    cluster.until(cells.have_ended, 120, cells.story)
    assert cells.states() == ["COMPLETED"], cells.story()
    assert "this job is timed-out" in cells.story()
    assert_same(cells.runs[0], straight)


def test_a_job_may_hit_its_time_limit_only_so_often(cluster: Cluster, in_folder: Path) -> None:
    """Every signal in a job of one minute counts as its time limit."""
    cells = Submitted(
        in_folder, [LONG], timeout_min=1, signal_delay_s=10, max_num_timeout=0
    ).submit()
    cluster.until(cells.has_begun, 60, cells.story)
    cluster.command("scancel", "--signal=USR2", cells.ids[0])
    cluster.until(cells.have_ended, 60, cells.story)
    assert cells.states() == ["FAILED"]
    assert cells.record().status is Status.killed
    assert "timed-out too many times" in cells.story()


def test_a_signal_before_python_has_started_requeues_the_job(
    cluster: Cluster, in_folder: Path
) -> None:
    """Nothing handles the signal then; without more it would end the job for good."""
    python = f'bash -c \'sleep 4; exec "$0" "$@"\' {shlex.quote(sys.executable)}'
    cells = Submitted(in_folder, seeds(1), python=python).submit()
    cluster.until(
        lambda: (
            f"{cells.ids[0]}.0" in cluster.command("squeue", "--steps", "--noheader", "--format=%i")
        ),
        30,
    )
    cluster.command("scancel", "--signal=USR2", cells.ids[0])
    cluster.until(lambda: cells.record().status is Status.done, 90, cells.story)
    assert restarts(cluster, cells.ids[0]) == 1
    assert len(cells.record().attempts) == 1


def test_a_worker_that_is_killed_fails_alone(cluster: Cluster, in_folder: Path) -> None:
    cells = Submitted(in_folder, [LONG, *seeds(3)[1:]]).submit()
    cluster.until(cells.has_begun, 90, cells.story)
    os.kill(cells.record().attempts[-1].pid, signal.SIGKILL)
    cluster.until(cells.have_ended, 120, cells.story)
    assert cells.states() == ["FAILED", "COMPLETED", "COMPLETED"]
    assert [cells.record(cell).status for cell in range(3)] == [
        Status.running,
        Status.done,
        Status.done,
    ]
    assert not cells.runs[0].is_claimed(), "its record says running, but nobody is"


def test_the_cells_of_a_node_that_goes_down_are_done_elsewhere(
    cluster: Cluster, in_folder: Path
) -> None:
    cells = Submitted(in_folder, seeds(2, *LONG), cpus_per_task=2).submit()
    cluster.until(lambda: cells.has_begun(0) and cells.has_begun(1), 90, cells.story)
    lost = next(cell for cell, job in enumerate(cells.jobs()) if job.node == "n2")
    cluster.command("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        cluster.until(cells.have_ended, 150, cells.story)
        assert cells.states() == ["COMPLETED"] * 2, cells.story()
        assert restarts(cluster, cells.ids[lost]) == 1
        assert cells.jobs()[lost].node == "n1"
    finally:
        cluster.command("scontrol", "update", "NodeName=n2", "State=RESUME")
    cluster.until(lambda: cluster.node_states()["n2"] == "idle", 30, cluster.node_states)
    assert [cells.record(cell).status for cell in range(2)] == [Status.done] * 2
    assert_same(cells.runs[lost], finished_run(in_folder / "straight", f"seed={lost + 1}", *LONG))


def test_a_job_waits_for_a_cell_whose_former_process_is_still_ending(
    cluster: Cluster, in_folder: Path
) -> None:
    """On a node that was lost it may live longer than its job."""
    cells = Submitted(in_folder, seeds(2), cells_per_job=2)
    assert cells.runs[0].claim()
    try:
        cells.submit()
        cluster.until(lambda: cells.record(1).status is Status.done, 60, cells.story)
        assert cells.states() == ["RUNNING"] * 2
    finally:
        cells.runs[0].release()
    cluster.until(cells.have_ended, 60, cells.story)
    assert cells.states() == ["COMPLETED"] * 2
    assert cells.record().status is Status.done


def test_cancelled_jobs_stop_between_two_steps_and_do_not_come_back(
    cluster: Cluster, in_folder: Path
) -> None:
    cells = Submitted(in_folder, seeds(3, *LONG), parallel=1).submit()
    cluster.until(cells.has_begun, 60, cells.story)
    assert cells.states() == ["RUNNING", "PENDING", "PENDING"]
    Scheduler().cancel(cells.ids)
    cluster.until(lambda: cells.jobs()[0].stage is Stage.ended, 30, cells.story)
    assert cells.states()[0] == "CANCELLED"
    assert {job.stage for job in cells.jobs()[1:]} <= {Stage.ended, Stage.unknown}, (
        "SLURM forgets jobs that never began"
    )
    assert [cells.record(cell).status for cell in range(3)] == [
        Status.killed,
        Status.queued,
        Status.queued,
    ]
    assert restarts(cluster, cells.ids[0]) == 0
    assert cells.runs[0].checkpoints.exists(), "it can go on later"


DIES = """
import os, sys
from pathlib import Path
from dks.sweeps.launchers import slurm
from dks.runs.launches import LaunchFolder

def dies(*arguments, submit=slurm._submit_held):
    submit(*arguments)
    os._exit(9)

slurm._submit_held = dies
launch = LaunchFolder(sys.argv[1])
slurm.submit([Path(cell) for cell in launch.read().cells], launch, slurm.Resources(cpus_per_task=1, cells_per_job=2))
"""  # noqa: E501


def test_jobs_of_a_process_that_died_before_it_wrote_their_ids_are_found(
    cluster: Cluster, in_folder: Path
) -> None:
    cells = Submitted(in_folder, seeds(4))
    died = subprocess.run(
        [sys.executable, "-c", DIES, str(cells.launch.path)], cwd=ROOT, timeout=60, check=False
    )
    assert died.returncode == 9
    assert cells.launch.read().jobs() == {}, "the id is not known"
    waiting = cluster.command(
        "squeue",
        "--noheader",
        "--array",
        "--format=%T %r",
        f"--name=dks-{cells.launch.read().id}-0",
    )
    assert waiting.splitlines() == ["PENDING JobHeldUser"] * 2
    assert recover(cells.launch, Scheduler()) is True
    assert len(set(cells.ids)) == 2, "two cells in each job"
    cluster.until(cells.have_ended, 90, cells.story)
    assert cells.states() == ["COMPLETED"] * 4
    assert [cells.record(cell).status for cell in range(4)] == [Status.done] * 4
    assert recover(cells.launch, Scheduler()) is False


def test_a_cell_that_fails_fails_its_job_and_not_the_next_cell(
    cluster: Cluster, in_folder: Path
) -> None:
    cells = Submitted(in_folder, [("recipe.lr=1e30",), ("seed=2",)], cells_per_job=2).submit()
    assert len(set(cells.ids)) == 1
    cluster.until(cells.have_ended, 60, cells.story)
    assert cells.states() == ["FAILED"] * 2
    assert [cells.record(cell).status for cell in range(2)] == [Status.failed, Status.done]
    assert (
        f"1 of 2 cells failed, see run.log in the folder of {cells.runs[0].cell_id}"
        in cells.story()
    )


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 2), (2, 1)])
def test_the_tasks_of_a_job_train_one_network_and_go_on_together(
    cluster: Cluster, in_folder: Path, nodes: int, tasks: int
) -> None:
    """On one node, and on two; a signal to all of them stops and requeues the job once."""
    cells = Submitted(in_folder, [LONG], nodes=nodes, tasks_per_node=tasks).submit()
    cluster.until(cells.has_begun, 90, cells.story)
    cluster.command("scancel", "--signal=USR2", cells.ids[0])
    cluster.until(lambda: cells.record().status is Status.done, 120, cells.story)
    cluster.until(cells.have_ended, 30)
    assert cells.states() == ["COMPLETED"], cells.story()
    attempts = cells.record().attempts
    assert [(attempt.processes, attempt.status) for attempt in attempts] == [
        (2, "killed"),
        (2, "done"),
    ]
    assert [entry.epoch for entry in cells.runs[0].journal.read()] == list(range(1, 31)), (
        "one record"
    )


def test_more_jobs_than_an_array_may_have_become_several_that_share_the_limit(
    cluster: Cluster, in_folder: Path
) -> None:
    """`MaxArraySize` is 10 here."""
    folders = [in_folder / "runs" / str(number) for number in range(25)]
    limits = []
    for parallel in (2, 5):
        launch = LaunchFolder.create(str(in_folder / "results"), "some", "slurm", folders, None)
        jobs = submit(
            folders, launch, Resources(partition="high", cpus_per_task=2, parallel=parallel)
        )
        shown = [cluster.command("scontrol", "show", "job", "--oneliner", job) for job in jobs]
        Scheduler().cancel(jobs)
        assert [len(array.tasks) for array in launch.read().arrays] == [10, 10, 5]
        limits.append([int(re.findall(r"ArrayTaskThrottle=(\d+)", text)[0]) for text in shown])
        waits = [re.findall(r"Dependency=(\S+)", text)[0] for text in shown]
        after = f"afterany:{jobs[0]}_*(unfulfilled)" if parallel == 2 else "(null)"
        assert waits == ["(null)", "(null)", after]
    assert limits == [[1, 1, 1], [2, 2, 1]]
    cluster.until(lambda: not cluster.command("squeue", "--noheader"), 60)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"partition": "nope"}, "SLURM refuses the jobs: invalid partition specified: nope"),
        (
            {"additional_parameters": {"no-such-option": 1}},
            "SLURM refuses the jobs: .*no-such-option",
        ),
        ({"cpus_per_task": 3}, "Requested node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_own_words(
    cluster: Cluster,
    in_folder: Path,
    capfd: pytest.CaptureFixture[str],
    wrong: dict[str, object],
    message: str,
) -> None:
    cells = Submitted(in_folder, seeds(1), **wrong)
    with pytest.raises(RequestError, match=message) as refused:
        cells.submit()
    assert len(refused.value.problems) == 1 and "\n" not in refused.value.problems[0]
    assert capfd.readouterr().err == "", "it is said once"
    assert cells.launch.read().arrays == []
