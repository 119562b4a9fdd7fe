"""`hydra/launcher=slurm`: submits cells as job arrays, writes down their ids and returns.

Hydra loads this module at each start, so everything heavy is imported when cells are launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dks.sweeps.launchers.slurm import Resources


class SlurmLauncher(Launcher):
    """Hands cells over to SLURM."""

    detached = True  # returns when the jobs are submitted

    def __init__(self, **resources: Any) -> None:
        """`resources`: the fields of `dks.sweeps.launchers.slurm.Resources`."""
        self.resources: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in resources.items()
        }

    @property
    def processes(self) -> int:
        """How many train a network together."""
        asked = Resources(**self.resources)
        return asked.nodes * asked.tasks_per_node

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra.

        The cells' configurations are frozen in their folders, so nothing is kept.
        """

    def check(self) -> None:
        """Raises a RequestError if an option is wrong or there is no SLURM here.

        Called before anything is written.
        """
        from dks.sweeps.launchers.slurm import check

        check(Resources(**self.resources))

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit; the cells' folders are in `hydra.sweep.dir` and `hydra.sweep.subdir` of each job.

        Raises:
            RequestError: there is no SLURM here, or it refuses.
        """
        from rich.markup import escape

        from dks.runs.launches import cell_folders
        from dks.runs.record import RunFolder
        from dks.runs.terminal import say
        from dks.sweeps.launchers.slurm import submit
        from dks.sweeps.launchers.worker import launch_of

        folders = cell_folders(job_overrides)
        launch = launch_of(RunFolder(folders[0]))
        assert launch is not None, "cells are queued by a launch before they are handed over"
        jobs = submit(folders, launch, Resources(**self.resources))
        noun = "cell" if len(folders) == 1 else "cells"
        text = f"submitted {len(folders)} {noun} to SLURM: job {', '.join(jobs)}"
        say(escape(text))
        return [
            JobReturn(overrides=list(each), status=JobStatus.COMPLETED) for each in job_overrides
        ]


# From the dataclass, so that Hydra checks the types of `hydra.launcher.KEY=value`.
_options = OmegaConf.structured(Resources)
with open_dict(_options):
    _options["_target_"] = f"{__name__}.{SlurmLauncher.__name__}"
ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=_options, provider="dks")
