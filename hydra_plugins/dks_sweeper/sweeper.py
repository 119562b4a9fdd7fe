"""Hydra's door to the sweep engine: every `python train.py` and every launcher goes through here.

Hydra imports this module at each start, so everything heavy is imported when a sweep begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from dks.config.compose import Composed
    from dks.sweeps.engine import Cell


class DksSweeper(Sweeper):
    """Expands, validates all, looks up what is done, launches the rest through the chosen launcher, and shows the table."""

    def __init__(self, named: str | None, show: str | None) -> None:
        """`named`: a sweep of the folder `sweeps/`. `show`: print the plan as "text" or "json", and launch nothing."""
        self.named, self.show = named, show
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep of these overrides. Leaves the program with its exit status unless that is 0.

        Raises:
            RequestError: something is wrong with a cell; nothing was launched.
        """
        from dks.sweeps import engine
        from dks.sweeps.files import grid_of, read
        from dks.sweeps.grid import expand

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        grid = grid_of(read(self.named), arguments, parser) if self.named else expand(parser.parse_overrides(arguments))
        plan = engine.plan(grid, self._compose)
        if self.show is not None:
            print(engine.plan_json(plan) if self.show == "json" else engine.plan_text(plan))
            return
        if status := engine.execute(plan, self._launch):
            raise SystemExit(status)

    def _compose(self, overrides: Sequence[str]) -> Composed:
        from dks.config.compose import HYDRA_ERRORS, explain, from_hydra
        from dks.config.errors import RequestError

        assert self.hydra_context is not None and self.config is not None
        try:
            return from_hydra(self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides)))
        except HYDRA_ERRORS as error:
            raise RequestError(explain(error)) from error

    def _launch(self, cells: list[Cell]) -> list[Exception]:
        assert self.launcher is not None
        # Quoted: a cell's name may look like a number.
        jobs = [[*cell.point.overrides, f"hydra.sweep.subdir='{cell.cell_id}'"] for cell in cells]
        returned = self.launcher.launch(jobs, initial_job_idx=0)
        # A run that fails says so in its record and returns; what is raised here went wrong before there was a run.
        return [job._return_value for job in returned if isinstance(job._return_value, Exception)]


# Hydra loads a plugin by the name of its class; in the store, not in a config file, which holds data only.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="dks",
    node={"_target_": f"{__name__}.{DksSweeper.__name__}", "named": None, "show": None},
    provider="dks",
)
