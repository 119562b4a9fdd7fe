"""The one way in: plan, launch what is missing, show the table.

`python train.py -m ...`, `dks sweep run` and every launcher go through `execute`; a dry run is the
same without the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.markup import escape

from dks.config.errors import RequestError
from dks.config.schema import TrackingKind
from dks.config.secrets import without_password
from dks.machine import interruption, output
from dks.runs.best import classifier_ending
from dks.runs.record import Record, RunFolder, Status
from dks.runs.states import State, look_up, survey_all, to_launch
from dks.runs.terminal import Display, console, error_head, error_text
from dks.runs.unfinished import on_other_files
from dks.sweeps import manifest
from dks.sweeps.cell import Cell
from dks.sweeps.launch import Launch, mend
from dks.sweeps.manifest import Manifest
from dks.sweeps.plan import Plan
from dks.sweeps.refusals import other_ways, unwritable
from dks.sweeps.summary import plan_json, plan_text, single, summary
from dks.tracking.destination import status_of
from dks.tracking.sender import sending


class Launcher(Protocol):
    """Sets cells going."""

    @property
    def name(self) -> str:
        """The choice of hydra/launcher."""

    @property
    def detached(self) -> bool:
        """Does it return as soon as the cells are handed over, and not when they are done?"""

    @property
    def processes(self) -> int:
        """How many train a network together."""

    def launch(self, cells: list[Cell]) -> list[Exception]:
        """Run these cells, or hand them over.

        Returns the errors of cells that could not even begin.
        """


class Estimating(Launcher, Protocol):
    """A launcher whose plans can be shown."""

    def check(self) -> None:
        """Raises a RequestError if an option is wrong; called before anything is written."""

    def ready(self) -> AbstractContextManager[None]:
        """Inside this context cells begin sooner."""

    def choose(self, cells: list[Cell], measure: bool = True) -> str | None:
        """Decide how many of these cells run at a time, if that is to be decided.

        Returns a line that says so, and why.
        """

    def slots_for(self, cells: int) -> int:
        """How many of that many cells run at a time."""


@dataclass(frozen=True)
class Policy:
    """What is done about failures."""

    retries: int = 0  # how often a cell that fails is tried again
    # begin no further cell when so many have failed; None: go on, whatever fails
    max_failures: int | None = None
    # launch only cells in one of these states; None: whatever is to run
    only: frozenset[State] | None = None


# What `dks sweep retry` launches again.
UNSUCCESSFUL = frozenset({State.failed, State.killed, State.lost})


def show(plan: Plan, launcher: Estimating, policy: Policy, probe: float, as_json: bool) -> str:
    """What would run, and how long it would take; nothing is launched.

    Args:
        probe: seconds spent on measuring networks.
    """
    from dks.sweeps.estimate.forecast import forecast  # it imports torch, which a launch does later

    new = plan.launches(policy.only)
    launcher.check()
    why = launcher.choose(new, measure=probe > 0)
    slots, cost = launcher.slots_for(len(new)), None
    if new:
        configs, done = [cell.config for cell in new], [cell.done_epochs for cell in new]
        cost = forecast(configs, new[0].config.runs_dir, probe, slots, done_epochs=done)
    return (plan_json if as_json else plan_text)(plan, cost, why)


def execute(
    make: Callable[[], Plan],
    launcher: Launcher,
    policy: Policy,
    present: Callable[[str, Manifest], None],
) -> int:
    """Run what is missing, then show the table, or for a single run its errors.

    Returns the exit status.

    A failed cell does not stop the others, unless the policy says so. Ctrl-C stops all; what is
    there by then is shown, and the same command goes on. Where a hyper-parameter is chosen by runs
    of the sweep itself, the cells that use it follow once they are done; runs that diverged are
    done with then, and no failures.

    Args:
        make: plans the sweep, as things stand when it is called.
        present: shows the table of a sweep, given `results_dir` and what was asked for, and writes
            it there.

    Raises:
        RequestError: data is missing, a run that is under way was begun on other data, a folder
            cannot be written, or the launcher refuses; nothing was launched, or stays.
    """
    sweep, begun, interrupted = make(), set[str](), False
    say = Display().say
    launches = sweep.launches(policy.only)
    if sweep.absent and launches and not launcher.detached:
        raise RequestError(*sweep.absent)  # where cells run elsewhere, it may be there
    new = [cell.config for cell in launches if cell.state is State.missing]
    if problems := [
        *unwritable(sweep, launches, launcher.detached),
        *other_ways(launches, launcher.processes, launcher.detached),
        *on_other_files(new),
    ]:
        raise RequestError(*problems)
    for line in sweep.notes:
        say(escape(line))
    while True:
        launches = [cell for cell in sweep.launches(policy.only) if cell.cell_id not in begun]
        if not begun or launches:
            is_sweep = sweep.has_table or launcher.detached
            say(summary(sweep, policy.only) if is_sweep else single(sweep))
            for line in _decisions(sweep, launches):
                Display().explain(escape(line))
        if not launches:
            for each in sweep.manifests() if sweep.has_table else ():
                manifest.write(each, sweep.cells[0].config.results_dir)
            break
        interrupted = not _launch(sweep, launches, launcher, policy)
        begun |= {cell.cell_id for cell in launches}
        if interrupted or launcher.detached or not sweep.undecided:
            break
        sweep = make()
    if launcher.detached and begun:
        say(_how_to_follow(sweep))
        return 0
    with output.kept_elsewhere():
        _show(sweep, present)
    if interrupted:
        say("[yellow]interrupted[/]: the same command goes on from here", urgent=True)
        return interruption.STATUS
    standings = survey_all((cell.config.runs_dir, cell.cell_id) for cell in sweep.counting)
    for cell in sweep.counting:
        standing = standings[cell.cell_id]
        if standing.state is State.done and (
            standing.folder.record_is_damaged or not standing.folder.config_is_whole()
        ):
            mend(cell, standing.folder)
    return 1 if any(to_launch(standing.state) for standing in standings.values()) else 0


def _decisions(sweep: Plan, launches: list[Cell]) -> Iterator[str]:
    """What becomes of every cell, and why."""
    begun = {cell.cell_id for cell in launches}
    for cell in sweep.cells:
        what = "is run" if cell.cell_id in begun else "is left alone"
        if cell.cell_id in begun and cell.done_epochs:
            what += f", goes on after epoch {cell.done_epochs}"
        yield f"  {cell.cell_id}  {cell.state.value}: {what}  {cell.place}"


def _launch(sweep: Plan, launches: list[Cell], launcher: Launcher, policy: Policy) -> bool:
    """Set these cells going, and wait for them unless the launcher does not.

    False if it was interrupted.
    """
    tracking, display = launches[0].config.tracking, Display(len(launches))
    launch = Launch(sweep, launches, recorded=sweep.has_table or launcher.detached)

    def go() -> None:
        launch.queue()
        errors = launcher.launch(launches)
        launch.is_taken()
        for error in errors:
            display.say(f"[red]error[/]: {escape(str(error))}", urgent=True)

    try:
        launch.begin(launcher.name, policy.retries, policy.max_failures)
        # who cells are handed over to may refuse them, before a store is told
        if launcher.detached:
            go()
        with sending(tracking, partial(display.say, urgent=True)) as sender:
            if tracking.kind is not TrackingKind.off:
                name = without_password(str(tracking.uri))
                display.say(escape(f"tracking to {name}"))
                if silence := sender.open(tracking):
                    line = f"{name}: {silence}; the runs do without, and dks sync sends them later"
                    display.say(f"[yellow]tracking[/]: {escape(line)}", urgent=True)
            if sweep.has_table:
                sender.sweep(sweep.name, "RUNNING", tracking)
            if not launcher.detached:
                try:
                    with display:
                        go()
                finally:
                    if sweep.has_table:
                        sender.sweep(sweep.name, _standing(sweep), tracking)
    except KeyboardInterrupt:
        interruption.check()  # one that came while nothing was under way: there is nothing to show
        return False
    except Exception:
        launch.take_back()
        raise
    finally:
        launch.release()
    return True


def _standing(sweep: Plan) -> str:
    """How a sweep stands that is over for now, as MLflow names it."""
    records = [cell.folder.read_record() for cell in sweep.counting]
    unfinished = (Status.queued, Status.running)
    return status_of(
        {
            Status.killed if record is None or record.status in unfinished else record.status
            for record in records
        }
    )


def _how_to_follow(sweep: Plan) -> str:
    more = (
        "; the cells that use what is still to be chosen follow with the same command"
        if sweep.undecided
        else ""
    )
    return (
        f"dks sweep status {sweep.name} shows how they do, wait and cancel do what they say{more}"
    )


def _show(sweep: Plan, present: Callable[[str, Manifest], None]) -> None:
    if sweep.has_table:
        for part in sweep.parts:
            present(sweep.cells[0].config.results_dir, part.manifest())
        return
    cell = sweep.cells[0]
    state, record = look_up(cell.config.runs_dir, cell.cell_id)
    console().print(run_summary(state, record, cell.folder.path), soft_wrap=True)


def run_summary(state: State, record: Record | None, folder: Path) -> str:
    """The errors of every classifier of a single run."""
    if record is None or state is not State.done:
        return f"{folder}: {state.value}"
    best = RunFolder(folder).best(record)
    lines = [f"{folder}  {error_head(record.final)} test error in %, last epoch (its best epoch)"]
    for key in record.final:
        if key.startswith("test/top1_error"):
            ending = classifier_ending(key)
            name = ending.lstrip("_") or "c1"
            lines.append(f"  {name}  {error_text(record.final, ending, width=6)}")
            if key in best:
                lines[-1] += (
                    f"   ({error_text(best, ending)} in epoch {best[f'epoch{ending}']:.0f})"
                )
    return "\n".join(lines)
