"""Hydra's door to the sweep engine.

`hydra/sweeper=dks`, the default of every configuration of this project.

Hydra loads this module at each start, so everything heavy is imported when a sweep begins.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from dks.config.compose import Composed
    from dks.sweeps.cell import Cell
    from dks.sweeps.manifest import Manifest


class DksSweeper(Sweeper):
    """Expands, validates all, looks up what is done, launches the rest through the chosen launcher,
    and shows the table.
    """

    def __init__(
        self,
        named: str | None,
        show: str | None,
        probe: float,
        retries: int,
        max_failures: int | None,
        only_unsuccessful: bool,
        code: str | None,
    ) -> None:
        """
        named: a sweep of the folder `sweeps/`.
        show: print the plan as "text" or "json", and launch nothing.
        probe: seconds spent on measuring networks for the forecast of a plan.
        retries: how often a cell that fails is tried again.
        max_failures: begin no further cell when so many have failed; None: go on, whatever fails.
        only_unsuccessful: launch what has failed, was killed or got lost, and nothing new.
        code: "same" trains again what another code than today's has computed; None: it is left as
            it is, and told.
        """
        self.named, self.show, self.probe = named, show, probe
        self.retries = retries
        self.max_failures = max_failures
        self.only_unsuccessful = only_unsuccessful
        self.code = code
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep of these overrides.

        Leaves the program with its exit status unless that is 0.

        Raises:
            RequestError: something is wrong with a cell; nothing was launched.
        """
        from dks.config.compose import Composer
        from dks.config.errors import RequestError
        from dks.machine import interruption
        from dks.sweeps import engine
        from dks.sweeps.files import read
        from dks.sweeps.plan import plan
        from dks.sweeps.spec import expand, grid_of

        interruption.check()  # Hydra may have lost it
        assert self.hydra_context is not None and self.config is not None
        if self.code not in (None, "same"):
            raise RequestError(
                f"hydra.sweeper.code={self.code}: choose same, or null, which trains nothing again"
            )
        only = engine.UNSUCCESSFUL if self.only_unsuccessful else None
        policy = engine.Policy(self.retries, self.max_failures, only)
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        compose = Composer(partial(_compose, loader, self.config))
        if self.named:
            grid = grid_of(read(self.named), arguments, parser, compose)
        else:
            grid = expand(parser.parse_overrides(arguments))
        make = partial(plan, grid, compose, absent_ok=True, same_code=self.code == "same")
        launcher = HydraLauncher(self.launcher, self.config.hydra.runtime.choices["hydra/launcher"])
        if self.show is not None:
            gc.disable()  # thousands of cells are looked through again and again, none is garbage
            print(engine.show(make(), launcher, policy, self.probe, self.show == "json"))
            return
        launcher.check()
        with launcher.ready() if grid.axes or grid.named else nullcontext():
            status = engine.execute(make, launcher, policy, _present)
        if status:
            raise SystemExit(status)


class HydraLauncher:
    """A launcher of Hydra as the engine sees it.

    Ours take cells, and have more to ask for than others.
    """

    def __init__(self, launcher: Launcher | None, name: str) -> None:
        self._launcher, self.name = launcher, name
        # returns as soon as it has handed the cells over
        self.detached = bool(getattr(launcher, "detached", False))

    @property
    def processes(self) -> int:
        """How many train a network together.

        Jobs of SLURM bring their own, all others are those of torchrun.
        """
        return int(getattr(self._launcher, "processes", os.environ.get("WORLD_SIZE", "1")))

    def check(self) -> None:
        """Raises a RequestError if an option is wrong; called before anything is written."""
        getattr(self._launcher, "check", lambda: None)()

    def ready(self) -> AbstractContextManager[None]:
        """Inside this context cells begin sooner."""
        ready: AbstractContextManager[None] = getattr(self._launcher, "ready", nullcontext)()
        return ready

    def slots_for(self, cells: int) -> int:
        """How many of that many cells run at a time."""
        return int(getattr(self._launcher, "slots_for", lambda cells: 1)(cells))

    def choose(self, cells: list[Cell], measure: bool = True) -> str | None:
        """Have it decide how many of these cells run at a time; a line says so, and why."""
        configs, done = [cell.config for cell in cells], [cell.done_epochs for cell in cells]
        choose = getattr(self._launcher, "choose", lambda *given: None)
        line: str | None = choose(configs, done, measure)
        return line

    def launch(self, cells: list[Cell]) -> list[Exception]:
        """Run these cells, or hand them over.

        Returns the errors of those that could not even begin.
        """
        from rich.markup import escape

        from dks.config.files import python_path
        from dks.runs.terminal import Display

        # for whatever the launcher starts
        os.environ["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH", ""))
        if (why := self.choose(cells)) is not None:
            Display.current().say(escape(why))
        launcher = self._launcher
        assert launcher is not None
        if (ours := getattr(launcher, "launch_cells", None)) is not None:
            return list(ours([cell.folder.path for cell in cells], [cell.config for cell in cells]))
        # Quoted: a cell's name may look like a number.
        jobs = [
            [
                *cell.point.overrides,
                f"hydra.sweep.dir='{cell.config.runs_dir}'",
                f"hydra.sweep.subdir='{cell.cell_id}'",
            ]
            for cell in cells
        ]
        returned = launcher.launch(jobs, initial_job_idx=0)
        # A run that fails says so in its record and returns; what is raised here went wrong before
        # there was a run.
        return [job._return_value for job in returned if isinstance(job._return_value, Exception)]


def _compose(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> Composed:
    """One cell, from what Hydra has composed for the whole sweep, `master`."""
    from dks.config.compose import from_hydra
    from dks.config.errors import RequestError
    from dks.config.explain import HYDRA_ERRORS, explain
    from dks.config.overrides import checked

    checked(overrides)  # Hydra does not say the name of every one that is wrong
    try:
        composed = loader.load_sweep_config(master, list(overrides))
        found = from_hydra(composed)
    except HYDRA_ERRORS as error:
        raise RequestError(explain(error)) from error
    for part in ("launcher", "sweeper"):
        if composed.hydra[part] != master.hydra[part]:
            raise RequestError(
                f"hydra.{part} is set in a file that not all cells have, but a sweep has one "
                f"for all of them: type it "
                f"beside the sweep, as in hydra/launcher=NAME or hydra.{part}.KEY=VALUE"
            )
    return found


# Hydra loads a plugin by the name of its class; in the store, not in a config file, which holds
# data only.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="dks",
    node={
        "_target_": f"{__name__}.{DksSweeper.__name__}",
        "named": None,
        "show": None,
        "probe": 5.0,
        "retries": 0,
        "max_failures": None,
        "only_unsuccessful": False,
        "code": None,
    },
    provider="dks",
)


def _present(results_dir: str, sweep: Manifest) -> None:
    from dks.results.results import present  # pandas has time until the runs are over

    present(results_dir, sweep)
