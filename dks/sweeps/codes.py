"""What is said of cells that another code than today's has computed, or begun, and the command that
trains them again.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from dks.machine.code import current, short
from dks.runs.states import State
from dks.sweeps.command_line import command_line

if TYPE_CHECKING:
    from dks.sweeps.plan import Cell

Codes = Collection[str | None]  # of one cell, without today's; None: not known


def of_cells(cells: Iterable[Cell], command: str) -> list[str]:
    """As `lines`, of planned cells; or one line on those that are trained again."""
    others = [cell for cell in cells if cell.other_codes]
    if again := sum(cell.anew for cell in others):
        noun = "cell is" if again == 1 else "cells are"
        return [f"{again} {noun} trained again; what another code left is kept in superseded/"]
    done = [cell.other_codes for cell in others if cell.state is State.done]
    return lines(
        done, [cell.other_codes for cell in others if cell.state is not State.done], command
    )


def lines(done: Sequence[Codes], unfinished: Sequence[Codes], command: str) -> list[str]:
    """A line on cells that are done, and one on runs that would go on.

    Args:
        done, unfinished: the codes of each.
        command: trains them again.
    """
    said = []
    if done:
        cells = "1 done cell was" if len(done) == 1 else f"{len(done)} done cells were"
        said.append(
            f"{cells} computed by another code than today's {short(current())} "
            f"({_counted(done)}); trained again by: {command}"
        )
    if unfinished:
        runs = (
            "1 unfinished run goes"
            if len(unfinished) == 1
            else f"{len(unfinished)} unfinished runs go"
        )
        said.append(
            f"{runs} on under another code than before ({_counted(unfinished)}) and will be "
            f"marked as of both; "
            f"begun anew by: {command}"
        )
    return said


def _counted(cells: Iterable[Codes]) -> str:
    counts = Counter(short(code) for codes in cells for code in codes)
    return ", ".join(f"{code}: {count}" for code, count in counts.items())


def command_for(name: str, named: str | None, request: Sequence[str]) -> str:
    """What trains the cells of a begun sweep again.

    Args:
        name: of the sweep.
        named: its file; None: it was typed.
        request: with a file, the overrides as typed.
    """
    return f"dks sweep run {shlex.join([named, *request] if named else [name])} --code same"


def command_here(name: str, named: str | None, request: Sequence[str]) -> str:
    """As `command_for`, of a sweep that need not be begun.

    What was typed, unless it has a file or was asked for by name.
    """
    typed = command_line()
    if named is None and not typed.startswith("dks sweep "):
        return f"{typed} hydra.sweeper.code=same"
    return command_for(name, named, request)
