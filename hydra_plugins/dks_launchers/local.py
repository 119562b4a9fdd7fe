"""`hydra/launcher=local`: several cells at a time on this machine.

Hydra loads this module at each start, so everything heavy is imported when cells are launched.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dks.config.errors import RequestError

if TYPE_CHECKING:
    from dks.config.schema import Config
    from dks.sweeps.estimate.packing import Choice
    from dks.sweeps.launchers.local import Layout


class LocalLauncher(Launcher):
    """Runs a single cell in this process, and several in worker processes."""

    detached = False  # returns when the cells are over

    def __init__(self, slots: Any, slots_per_gpu: int) -> None:
        """`slots` and `slots_per_gpu` as in `LocalOptions`."""
        self.slots, self.slots_per_gpu = slots, slots_per_gpu
        self.device = "auto"
        self._chosen: Choice | None = None  # with slots=auto

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra; the cells' configurations are frozen in their folders."""
        self.device = config.device

    def check(self) -> None:
        """Raises a RequestError if an option is wrong; called before anything is written."""
        from dks.config.errors import RequestError
        from dks.sweeps.launchers.local import lay_out

        if not (self.slots in (None, "auto") or type(self.slots) is int):
            raise RequestError(
                f"hydra.launcher.slots={self.slots}: it must be a whole number of at least 1, "
                f"auto, or null"
            )
        lay_out(1, 1, (), None if self.slots == "auto" else self.slots, self.slots_per_gpu)

    def choose(
        self, cells: "Sequence[Config]", done_epochs: Sequence[int], measure: bool = True
    ) -> str | None:
        """With slots=auto decide how many of these cells run at a time.

        Returns a line that says so, and why.

        Args:
            done_epochs: for each cell, whole epochs that earlier attempts have trained.
            measure: try it out, unless that was done in the last days.
        """
        if self.slots != "auto" or len(cells) < 2 or _together():
            return None
        from dks.machine.environment import available_threads
        from dks.sweeps.estimate.packing import Division, choose
        from dks.sweeps.launchers.local import Layout, environment

        cores, (gpus, numbered) = available_threads(), self._gpus({cell.device for cell in cells})
        variables = environment(os.environ, Layout(1, cores, cores, gpus), 0)
        self._chosen = choose(
            cells, done_epochs, Division(cores, len(gpus) or int(numbered), variables), measure
        )
        return str(self._chosen)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside this context workers are at hand sooner.

        What they need is imported while cells are planned.
        """
        if _together():
            yield
            return
        from dks.sweeps.launchers.fork_server import fork_server

        with fork_server():
            yield

    def slots_for(self, cells: int) -> int:
        """How many of that many cells would run at a time."""
        return self._layout(cells, {self.device}).slots if cells > 1 else 1

    def launch_cells(
        self, folders: "Sequence[Path]", configs: "Sequence[Config]"
    ) -> list[Exception]:
        """Run the cells of these folders.

        Returns the errors of those that could not even begin.

        Raises:
            RequestError: an option is wrong.
            KeyboardInterrupt: a signal came; the runs under way have saved, the other cells stay
                queued.
        """
        from dks.runs.terminal import Display
        from dks.sweeps.launchers.local import run_in_slots
        from dks.sweeps.launchers.worker import run_cells

        layout = self._layout(len(folders), {config.device for config in configs})
        if not _together() and (len(folders) > 1 or self.slots not in (None, "auto", 1)):
            display = Display.current()
            assert isinstance(display, Display), "a worker launches nothing"
            return list(run_in_slots(list(folders), layout, display).values())
        errors: list[Exception] = []
        for folder in folders:
            try:
                run_cells([folder])
            except Exception as error:
                errors.append(error)
        return errors

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """What other sweepers would call; ours hands cells over, to `launch_cells`."""
        raise RequestError("hydra/launcher=local runs the cells of hydra/sweeper=dks alone")

    def _layout(self, cells: int, devices: set[str]) -> "Layout":
        from dks.machine.environment import available_threads
        from dks.sweeps.launchers.local import lay_out

        gpus, numbered = self._gpus(devices)
        slots, a_gpu = (None if self.slots == "auto" else self.slots), self.slots_per_gpu
        if self._chosen is not None and self._chosen.cells is not None:
            slots, a_gpu = (None, self._chosen.cells) if gpus else (self._chosen.cells, a_gpu)
        slots = a_gpu if numbered and slots is None else slots
        return lay_out(cells, available_threads(), gpus, slots, a_gpu)

    def _gpus(self, devices: set[str]) -> tuple[tuple[str, ...], bool]:
        """The GPUs to deal out, and whether all cells share one.

        One with a number, such as cuda:1, is the user's choice.
        """
        from dks.sweeps.launchers.local import visible_gpus

        numbered = any(":" in device for device in devices)
        return (visible_gpus() if not numbered and devices & {"auto", "cuda"} else ()), numbered


def _together() -> bool:
    """Do torchrun's processes train every cell together?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@dataclass
class LocalOptions:
    """What can be set with `hydra.launcher.KEY=value`."""

    _target_: str = f"{__name__}.{LocalLauncher.__name__}"
    # cells at a time; None: one for every core, or with GPUs slots_per_gpu for each; auto: what is
    # fastest
    slots: Any = None
    slots_per_gpu: int = 1  # cells that share a GPU, unless slots=auto decides that as well


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalOptions, provider="dks"
)
