"""Launches that are refused before anything is written, and the commands that would be right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dks.runs.attempts import begun_with, cannot_go_on
from dks.runs.disk import refusal
from dks.sweeps.cell import Cell
from dks.sweeps.command_line import command_with
from dks.sweeps.plan import Plan


def unwritable(sweep: Plan, launches: Sequence[Cell], is_detached: bool) -> Iterator[str]:
    """The first output folder that cannot be written; only the user can set that right."""
    first = sweep.cells[0].config
    for key, name, needed in (
        ("runs_dir", first.runs_dir, bool(launches)),
        ("results_dir", first.results_dir, sweep.has_table),
    ):
        if needed and (why := refusal(Path(name))):
            advice = (
                f"choose another one with {key}=FOLDER"
                if launches
                else f"dks table {sweep.name} only reads"
            )
            yield f"{key}={name} cannot be written: {why}; {advice}"
            return
    theirs = [cell.folder.path for cell in launches]
    if sweep.has_table or (is_detached and launches):
        theirs += [
            Path(first.results_dir) / name
            for name in (*(part.name for part in sweep.parts), sweep.name)
        ]
    for folder in theirs:
        if why := refusal(folder):
            yield (
                f"{folder} cannot be written: {why}; who made it can let others write (umask 002 "
                f"and a common group), or choose other folders with runs_dir=FOLDER "
                f"results_dir=FOLDER"
            )
            return


def other_ways(cells: Iterable[Cell], processes: int, is_detached: bool) -> Iterator[str]:
    """A line for each way in which some of these cells were begun and would not go on.

    Args:
        processes: that train a network together.
        is_detached: the cells are handed over; which device they get is not known here.
    """
    found: dict[tuple[tuple[int, str], tuple[int, str]], list[str]] = {}
    for cell in cells:
        record = cell.folder.read_record() if cell.goes_on and not cell.anew else None
        if record is None or (begun := begun_with(record.attempts)) is None:
            continue
        now = processes, begun[1] if is_detached else _device(cell)
        if begun != now:
            found.setdefault((begun, now), []).append(cell.cell_id)
    for (begun, now), cell_ids in found.items():
        runs = (
            f"run {cell_ids[0]} was"
            if len(cell_ids) == 1
            else f"{len(cell_ids)} runs ({cell_ids[0]}, ...) were"
        )
        yield f"{runs} {cannot_go_on(begun, now)}; go on with: {_command(begun, now, is_detached)}"


def _device(cell: Cell) -> str:
    from dks.machine.environment import pick_device  # it imports torch, which takes a while

    return pick_device(cell.config.device).type


def _command(begun: tuple[int, str], now: tuple[int, str], is_detached: bool) -> str:
    (processes, device), changed = begun, dict[str, str]()
    if device != now[1]:
        changed["device"] = device
    if not is_detached:
        return command_with(changed, processes)
    changed |= {"hydra.launcher.nodes": "1", "hydra.launcher.tasks_per_node": str(processes)}
    return command_with(changed)
