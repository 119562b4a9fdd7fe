"""`hydra/launcher=slurm`: submits cells as job arrays, writes down their ids and returns.

Hydra loads this module at each start, so everything heavy is imported when cells are launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dks.config.errors import RequestError
from dks.sweeps.launchers.slurm import Resources

if TYPE_CHECKING:
    from dks.config.schema import Config


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

    def launch_cells(self, folders: Sequence[Path], configs: Sequence[Config]) -> list[Exception]:
        """Submit the cells of these folders.

        Raises:
            RequestError: there is no SLURM here, or it refuses.
        """
        from rich.markup import escape

        from dks.runs.record import RunFolder
        from dks.runs.terminal import say
        from dks.sweeps.launchers.slurm import submit
        from dks.sweeps.launchers.worker import launch_of

        launch = launch_of(RunFolder(folders[0]))
        assert launch is not None, "cells are queued by a launch before they are handed over"
        jobs = submit(list(folders), launch, Resources(**self.resources))
        noun = "cell" if len(folders) == 1 else "cells"
        text = f"submitted {len(folders)} {noun} to SLURM: job {', '.join(jobs)}"
        say(escape(text))
        return []

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """What other sweepers would call; ours hands cells over, to `launch_cells`."""
        raise RequestError("hydra/launcher=slurm runs the cells of hydra/sweeper=dks alone")


# From the dataclass, so that Hydra checks the types of `hydra.launcher.KEY=value`.
_options = OmegaConf.structured(Resources)
with open_dict(_options):
    _options["_target_"] = f"{__name__}.{SlurmLauncher.__name__}"
ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=_options, provider="dks")
