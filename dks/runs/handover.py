"""How a launch's jobs get to what they are to run, also where the process that submitted them died
in between (`dks/sweeps/launchers/slurm.py` tells the whole way).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout

from dks.config.errors import RequestError
from dks.runs.launches import Array, LaunchFolder
from dks.runs.scheduler import Scheduler, SchedulerSilentError

# Seconds after which a submission whose process died and which SLURM does not know has surely not
# arrived.
ARRIVED = 120.0


def array_name(launch_id: str, number: int) -> str:
    """What SLURM calls an array of a launch."""
    return f"dks-{launch_id}-{number}"


def staging(launch: LaunchFolder) -> Path:
    """What jobs are to run lies here until their ids are known.

    The folder is there as long as a submission is not finished.
    """
    return launch.jobs_folder / "staged"


def recover(launch: LaunchFolder, scheduler: Scheduler) -> bool:
    """Finish a submission whose process died; did that change anything?

    Arrays that SLURM knows get their ids and are let go. Those that never arrived lose their cells,
    which nobody will run.
    """
    if not staging(launch).is_dir():
        return False
    try:
        launch.lock.acquire(blocking=False)
    except (Timeout, OSError):
        # the submitting process lives, or it is another user's, who will look
        return False
    try:
        content = launch.read()
        names = scheduler.named(array_name(content.id, 0).removesuffix("0"))
        for number, array in enumerate(content.arrays):
            array.job = array.job or names.get(array_name(content.id, number))
        submitted = [array for array in content.arrays if array.job is not None]
        if len(submitted) < len(content.arrays):
            if time.time() - staging(launch).stat().st_mtime < ARRIVED:
                return False
            for array in content.arrays:
                array.tasks = array.tasks if array.job is not None else []
        launch.write(content)
        let_go(content.arrays, launch, scheduler)
        return True
    except (SchedulerSilentError, RequestError):
        return False
    finally:
        launch.lock.release()


def let_go(arrays: Sequence[Array], launch: LaunchFolder, scheduler: Scheduler) -> None:
    """Put what each job is to run where submitit looks for it, and release the jobs."""
    from submitit.core.utils import JobPaths

    folder = staging(launch)
    for number, array in enumerate(arrays):
        for task in range(len(array.tasks)):
            staged = folder / str(number) / f"{task}.pkl"
            # as `Launch.jobs` has it
            job = f"{array.job}_{task}" if len(array.tasks) > 1 else array.job
            if staged.exists():
                staged.replace(JobPaths(launch.jobs_folder, job).submitted_pickle)
    scheduler.release([array.job for array in arrays if array.job is not None])
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
