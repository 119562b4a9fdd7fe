"""Runs that a command would go on with in another way than they were begun, which is refused before
anything is launched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dks.runs.attempts import begun_with, cannot_go_on
from dks.runs.record import RunFolder
from dks.sweeps.command_line import command_with
from dks.sweeps.plan import Cell


def other_ways(cells: Iterable[Cell], processes: int, is_detached: bool) -> Iterator[str]:
    """A line for each way in which some of these cells were begun and would not go on, with the
    command that would be right.

    Args:
        processes: that train a network together.
        is_detached: the cells are handed over; which device they get is not known here.
    """
    found: dict[tuple[tuple[int, str], tuple[int, str]], list[str]] = {}
    for cell in cells:
        record = (
            RunFolder(Path(cell.config.runs_dir) / cell.cell_id).read_record()
            if cell.goes_on and not cell.anew
            else None
        )
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
    if is_detached:
        return command_with(
            {
                **changed,
                "hydra.launcher.nodes": "1",
                "hydra.launcher.tasks_per_node": str(processes),
            }
        )
    return command_with(changed, processes)
