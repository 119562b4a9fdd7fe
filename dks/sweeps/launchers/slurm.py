"""Cells as SLURM jobs: submitted through submitit, and what runs in such a job.

Before anything is submitted, `launch.json` says which task of which array runs which cells. Arrays
are submitted held. When SLURM has given the ids of all, these are written there, the jobs find what
they are to run, and only then are they let go. A process that dies in between leaves held jobs;
their names hold the launch's id, and `recover` does the rest. Where one array is refused, the
others are taken back.

A job goes on until its cells are done. On submitit's signal (USR2: preemption where the cluster is
told to send it, or the time limit is near) the run saves, and submitit requeues the job. On SIGTERM
alone the run saves and leaves; SLURM would count such a job as completed, so the batch script
requeues it, unless SLURM itself has ended it: the state of a cancelled job is no longer RUNNING by
then.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Any

from dks.config.errors import RequestError
from dks.config.files import python_path
from dks.config.registry import VARIABLE, origins_named
from dks.runs.handover import array_name, let_go, staging
from dks.runs.launches import Array, LaunchFolder
from dks.runs.scheduler import Scheduler, SchedulerSilentError
from dks.tracking import addresses

if TYPE_CHECKING:
    from submitit import SlurmExecutor

# Seconds that a job waits for a cell whose former process, on a node that was lost, is still
# ending.
STILL_ENDING = 120.0


@dataclass
class Resources:
    """What a job asks for, and how cells are put into jobs. None: the cluster's own default."""

    partition: str | None = None  # as sbatch's --partition; so the next three
    account: str | None = None  # who pays
    qos: str | None = None  # quality of service
    constraint: str | None = None  # features that a node must have
    timeout_min: int = 1440  # of one job; one that needs longer goes on in a requeued job
    nodes: int = 1  # nodes that train one network together
    tasks_per_node: int = 1  # processes that train one network together
    cpus_per_task: int = 4  # cores of each process
    gpus_per_node: int | None = None  # GPUs of a job on each node
    mem_gb: float | None = None  # memory of a job on each node, GB
    parallel: int = 100  # jobs of the launch that run at a time
    cells_per_job: int = 1  # run one after another
    max_num_timeout: int = 100  # how often a job that hits its time limit is requeued
    signal_delay_s: int = 120  # seconds before the time limit at which a run is told to save
    # shell lines before the job, for example "module load cuda"
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # further options of sbatch
    python: str | None = None  # interpreter on the nodes, as a shell command; None: this one


_AT_LEAST = {
    "timeout_min": 1,
    "nodes": 1,
    "tasks_per_node": 1,
    "cpus_per_task": 1,
    "gpus_per_node": 0,
    "parallel": 1,
    "cells_per_job": 1,
    "max_num_timeout": 0,
    "signal_delay_s": 1,
}


def submit(folders: Sequence[Path], launch: LaunchFolder, resources: Resources) -> list[str]:
    """Submit queued cells as job arrays; returns the ids of the arrays.

    Raises:
        RequestError: there is no SLURM here, or it refuses; then none of the cells is submitted.
    """
    check(resources)
    scheduler = Scheduler()
    try:
        most = scheduler.max_array_size()
    except SchedulerSilentError as error:
        raise RequestError(
            f"no job can be submitted: {error}; log in where SLURM is, or choose --launcher local"
        ) from error
    content = launch.read()
    content.arrays = arrays_of(
        [str(folder.absolute()) for folder in folders], resources.cells_per_job, most
    )
    launch.write(content)
    lanes = min(resources.parallel, len(content.arrays))
    try:
        for number, array in enumerate(content.arrays):
            _stage(array, number, launch, resources)
            # Limits are SLURM's for each array, ours for all: arrays share it, and more arrays than
            # that wait for one another.
            limit = resources.parallel // lanes + (number % lanes < resources.parallel % lanes)
            before = content.arrays[number - lanes].job if number >= lanes else None
            array.job = _submit_held(
                array, array_name(content.id, number), launch, resources, limit, before
            )
            launch.write(content)
        let_go(content.arrays, launch, scheduler)
    except (RequestError, SchedulerSilentError) as error:
        with suppress(SchedulerSilentError):
            scheduler.cancel([array.job for array in content.arrays if array.job is not None])
        content.arrays = []
        launch.write(content)
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"no job was submitted: {error}") from error
    return [array.job for array in content.arrays if array.job is not None]


def arrays_of(cells: Sequence[str], cells_per_job: int, most: int) -> list[Array]:
    """Cells as tasks of `cells_per_job` cells each, and these as arrays of at most `most` tasks
    each.
    """
    tasks = [
        list(cells[begin : begin + cells_per_job]) for begin in range(0, len(cells), cells_per_job)
    ]
    return [Array(tasks[begin : begin + most]) for begin in range(0, len(tasks), most)]


def log_file(launch: LaunchFolder, job: str) -> Path:
    """What a job ("12", or "12_3" of an array) printed, and why it ended, as far as it could say
    so.
    """
    return launch.jobs_folder / f"{job}_0_log.out"


def check(resources: Resources) -> None:
    """Raises a RequestError if a value is out of range."""
    problems = [
        f"hydra.launcher.{name}={value} must be at least {_AT_LEAST[name]}"
        for name, value in asdict(resources).items()
        if name in _AT_LEAST and value is not None and value < _AT_LEAST[name]
    ]
    if resources.mem_gb is not None and resources.mem_gb <= 0:
        problems.append(f"hydra.launcher.mem_gb={resources.mem_gb} must be above 0")
    if resources.signal_delay_s >= 60 * resources.timeout_min:
        problems.append(
            f"hydra.launcher.signal_delay_s={resources.signal_delay_s} must be below the time "
            f"limit of a job, "
            f"which is {resources.timeout_min} min (hydra.launcher.timeout_min)"
        )
    if problems:
        raise RequestError(*problems)


def _stage(array: Array, number: int, launch: LaunchFolder, resources: Resources) -> None:
    from submitit.core.utils import DelayedSubmission

    folder = staging(launch) / str(number)
    folder.mkdir(parents=True)
    for task, cells in enumerate(array.tasks):
        submission = DelayedSubmission(Cells(cells))
        submission.set_timeout(resources.timeout_min, resources.max_num_timeout)
        submission.dump(folder / f"{task}.pkl")


def _submit_held(
    array: Array,
    name: str,
    launch: LaunchFolder,
    resources: Resources,
    limit: int,
    before: str | None,
) -> str:
    """Submit an array that does not start before it is let go, nor before array `before` has ended.

    Returns its id.

    Raises:
        RequestError: SLURM refuses it.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    optional = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "gpus_per_node": resources.gpus_per_node,
        "mem": None if resources.mem_gb is None else f"{round(1024 * resources.mem_gb)}M",
        "dependency": None if before is None else f"afterany:{before}",
    }
    launch.jobs_folder.mkdir(parents=True, exist_ok=True)
    executor = SlurmExecutor(launch.jobs_folder, python=resources.python)
    executor.update_parameters(
        job_name=name,
        time=resources.timeout_min,
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks_per_node,
        cpus_per_task=resources.cpus_per_task,
        array_parallelism=limit,
        signal_delay_s=resources.signal_delay_s,
        stderr_to_stdout=True,
        setup=[*_importable(), *resources.setup],
        srun_args=_srun_options(resources),
        teardown=_requeue_if_stopped(resources.max_num_timeout),
        additional_parameters={**resources.additional_parameters, "hold": True, "requeue": True},
        **{key: value for key, value in optional.items() if value is not None},
    )
    try:
        return _sbatch(executor, len(array.tasks), resources.partition)
    except (FailedJobError, FailedSubmissionError, OSError, SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        lines = [
            line.removeprefix("sbatch: ").removeprefix("error: ").strip()
            for line in said.splitlines()
        ]
        why = "; ".join(filter(None, lines)) or type(error).__name__
        raise RequestError(f"SLURM refuses the jobs: {why}") from error


def _sbatch(executor: SlurmExecutor, tasks: int, partition: str | None) -> str:
    """Submit an array of so many tasks; returns its id.

    The only place that uses private names of submitit, hence the upper bound of its version in
    pyproject.toml: its public way submits before anybody could write down what the jobs are to
    run, and not held.
    """
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    command = executor._submitit_command_str
    # SLURM says only when a held job is let go whether it could ever run.
    tried = subprocess.run(
        ["sbatch", "--test-only"],
        input=executor._make_submission_file_text(command, ""),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # While all nodes are drained, for maintenance for example, it finds none for any job.
    if "node configuration is not available" not in tried.stderr or Scheduler().has_nodes(
        partition
    ):
        tried.check_returncode()
    with redirect_stderr(io.StringIO()):  # submitit prints what it raises as well
        return str(executor._submit_command(command).job_id)


def _importable() -> list[str]:
    """Shell lines for a job: where this package is, the files of extensions, and the MLflow server
    that this user named.
    """
    path, files = python_path(), origins_named(os.environ.get(VARIABLE, ""))
    lines = [f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}"] if path else []
    lines += [f"export {VARIABLE}={shlex.quote(os.pathsep.join(map(str, files)))}"] if files else []
    return lines + [
        f"export MLFLOW_TRACKING_URI={shlex.quote(uri)}" for uri in addresses.named()[:1]
    ]


def _srun_options(resources: Resources) -> list[str]:
    # Since SLURM 22.05 srun does not take the number of CPUs from the job. Where jobs inherit no
    # environment, steps would have nothing of what the setup lines export either.
    options = [f"--cpus-per-task={resources.cpus_per_task}", "--export=ALL"]
    if resources.nodes * resources.tasks_per_node > 1:
        # A process that failed leaves others that wait for it; they get a minute to write down what
        # happened.
        options.append("--wait=60")
    return options


def _requeue_if_stopped(max_num_timeout: int) -> list[str]:
    """The end of the batch script.

    A step that ended by a signal meaning "go on elsewhere" has its job requeued.

    138, 140 and 143 are USR1, USR2 and TERM. USR2 itself ends only a process that was still
    starting; should the time limit be so short that it always does, the job does not begin again
    for ever.
    """
    return [
        "status=$?",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "job=${job:-$SLURM_JOB_ID}",
        'case "$status" in',
        f'140) [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_num_timeout} ] ;;',
        "138 | 143) true ;;",
        "*) false ;;",
        'esac && [ "$(squeue --noheader --format=%T --jobs="$job")" = RUNNING ] && scontrol '
        'requeue "$job"',
        'exit "$status"',
    ]


class Cells:
    """What one job runs: cells, one after another. Nothing but their folders is pickled with it."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = tuple(folders)

    def __call__(self) -> None:
        """Run in the job.

        Raises:
            CellsFailedError: some cell failed, so that SLURM as well calls the job failed.
            SystemExit: a signal came, the run is saved, and the job is requeued.
        """
        from submitit import JobEnvironment

        from dks.machine import output

        output.outlive_readers()
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ.setdefault("OMP_NUM_THREADS", cpus)
        job = JobEnvironment()
        if job.num_tasks > 1:
            _describe_world(job)
        from dks.machine.interruption import Interrupted

        try:
            if job.global_rank:
                from dks.training.run import follow

                follow()
            else:
                self._run()
        except Interrupted as stopped:
            if job.global_rank == 0 and stopped.signal is not None:
                handler = signal.getsignal(stopped.signal)
                if stopped.signal.name == f"SIG{job.USR_SIG}" and callable(handler):
                    handler(stopped.signal, None)  # submitit's, which requeues the job and leaves
                raise SystemExit(128 + stopped.signal) from stopped

    def checkpoint(self) -> Any:
        """What submitit puts into the requeued job: the same cells.

        Those that are done are passed over.
        """
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> None:
        from dks.machine.world import leading
        from dks.runs.record import RunFolder, Status
        from dks.sweeps.launchers.worker import run_cells

        cells = [RunFolder(folder) for folder in self.folders]
        with leading():
            run_cells([cell.path for cell in cells])
            deadline = time.monotonic() + STILL_ENDING
            while (
                busy := [cell for cell in cells if cell.is_claimed()]
            ) and time.monotonic() < deadline:
                time.sleep(1)
                run_cells([cell.path for cell in busy if not cell.is_claimed()])
        if busy:
            raise CellsFailedError(
                f"another process is working on {', '.join(cell.cell_id for cell in busy)}"
            )
        records = [record for cell in cells if (record := cell.read_record()) is not None]
        failed = [record.cell_id for record in records if record.status is Status.failed]
        if failed:
            raise CellsFailedError(
                f"{len(failed)} of {len(cells)} cells failed, see run.log in the folder of "
                f"{', '.join(failed)}"
            )


class CellsFailedError(Exception):
    """Some cells of a job did not end well. Their records say more."""


def _describe_world(job: Any) -> None:
    """The processes of the job, in the words of torch.distributed."""
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(job.global_rank), str(job.num_tasks)
    os.environ["LOCAL_RANK"] = str(job.local_rank)
    # Where srun was called, which is where rank 0 runs; the names of nodes need not be known to the
    # resolver.
    os.environ["MASTER_ADDR"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or job.hostnames[0]
    # below the ports that systems give out themselves
    os.environ["MASTER_PORT"] = str(10_001 + int(job.raw_job_id) % 20_000)
