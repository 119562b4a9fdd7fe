"""What a person or a program is told of a plan, and of cells that another code has computed."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from dks.machine.code import current, short
from dks.runs.states import State
from dks.sweeps.command_line import command_line
from dks.sweeps.plan import Plan

if TYPE_CHECKING:
    from dks.sweeps.estimate.forecast import Forecast

Codes = Collection[str | None]  # of one cell, without today's; None: not known


def summary(sweep: Plan, only: frozenset[State] | None = None) -> str:
    """How many cells there are and what is to be done, in a line.

    A second one for hyper-parameters still to be chosen.
    """
    cells, new, counts = sweep.cells, len(sweep.launches(only)), sweep.counts()
    elsewhere = counts.get(State.running, 0) + counts.get(State.queued, 0)
    if len(cells) == counts.get(State.done) and not new:
        are = f"all {len(cells)} cells are" if len(cells) > 1 else "the cell is"
        text = f"{are} done, nothing to launch"
    else:
        states = ", ".join(f"{count} {state.value}" for state, count in counts.items())
        text = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'} ({states}); {new} to run"
        text += ", another process or the scheduler has the others" if elsewhere else ""
    if sweep.saved:
        text += f"; {sweep.saved} runs are saved, for tables share cells"
    if more := sweep.repeated:
        are = "1 more point is" if more == 1 else f"{more} more points are"
        text += f"; {are} one of these in other words"
    open_or_worst = [str(each) for each in sweep.selections if each.chosen is None or each.diverged]
    return "\n".join([text, *plan_code_lines(sweep), *open_or_worst])


def single(sweep: Plan) -> str:
    """What becomes of a single run."""
    (cell,) = sweep.cells
    what = {
        State.running: "another process is working on",
        State.queued: "another process has queued",
    }
    text = f"{what.get(cell.state, 'running')} cell {cell.cell_id}"
    if cell.state is State.done and not cell.anew:
        text = "the cell is done, nothing to launch"
    return "\n".join([text, *plan_code_lines(sweep)])


def plan_text(sweep: Plan, forecast: Forecast | None = None, slots: str | None = None) -> str:
    """What would run.

    One line a cell, then the summary, why so many cells at a time, and the forecast.
    """
    lines = [
        f"{cell.cell_id}  {cell.state.value:<8} {' '.join(cell.point.overrides)}".rstrip()
        for cell in sweep.cells
    ]
    lines += [summary(sweep), *(f"not here: {line}" for line in sweep.absent), *sweep.notes]
    return "\n".join([*lines, *([slots] if slots else []), *([str(forecast)] if forecast else [])])


def plan_json(sweep: Plan, forecast: Forecast | None = None, slots: str | None = None) -> str:
    """What would run, for programs."""
    cells = [
        {
            "cell_id": cell.cell_id,
            "config_id": cell.config_id,
            "seed": cell.config.seed,
            "overrides": list(cell.point.overrides),
            "state": cell.state.value,
        }
        for cell in sweep.cells
    ]
    told = {
        "name": sweep.name,
        "axes": list(sweep.axes),
        "cells": cells,
        "tables": {part.name: [cell.cell_id for cell in part.cells] for part in sweep.parts},
        "saved_runs": sweep.saved,
        "undecided": [str(each) for each in sweep.undecided],
        "absent": list(sweep.absent),
        "notes": [*sweep.notes, *plan_code_lines(sweep)],
        "other_codes": {cell.cell_id: cell.other_codes for cell in sweep.cells if cell.other_codes},
        "slots": slots,
        "forecast": forecast.to_dict() if forecast else None,
    }
    return json.dumps(told, indent=1)


def plan_code_lines(sweep: Plan) -> list[str]:
    """As `code_lines`, of planned cells; or one line on those that are trained again."""
    others = [cell for cell in sweep.cells if cell.other_codes]
    if again := sum(cell.anew for cell in others):
        noun = "cell is" if again == 1 else "cells are"
        return [f"{again} {noun} trained again; what another code left is kept in superseded/"]
    named, typed = sweep.grid.named, command_line()
    # what was typed, unless it has a file or was asked for by name
    if named is None and not typed.startswith("dks sweep "):
        command = f"{typed} hydra.sweeper.code=same"
    else:
        command = same_code_command(sweep.name, named, sweep.grid.request)
    return code_lines(((cell.state, cell.other_codes) for cell in others), command)


def code_lines(cells: Iterable[tuple[State, Codes]], command: str) -> list[str]:
    """A line on cells that are done, and one on runs that would go on.

    Args:
        cells: the state of each, and the other codes that computed what is there, if any.
        command: trains them again.
    """
    done, unfinished = list[Codes](), list[Codes]()
    for state, others in cells:
        if others:
            (done if state is State.done else unfinished).append(others)
    said = []
    if done:
        were = "1 done cell was" if len(done) == 1 else f"{len(done)} done cells were"
        said.append(
            f"{were} computed by another code than today's {short(current())} "
            f"({_counted(done)}); trained again by: {command}"
        )
    if unfinished:
        count = len(unfinished)
        go = "1 unfinished run goes" if count == 1 else f"{count} unfinished runs go"
        said.append(
            f"{go} on under another code than before ({_counted(unfinished)}) and will be marked "
            f"as of both; begun anew by: {command}"
        )
    return said


def _counted(cells: Iterable[Codes]) -> str:
    counts = Counter(short(code) for codes in cells for code in codes)
    return ", ".join(f"{code}: {count}" for code, count in counts.items())


def same_code_command(name: str, named: str | None, request: Sequence[str]) -> str:
    """What trains the cells of a begun sweep again.

    Args:
        name: of the sweep.
        named: its file; None: it was typed.
        request: with a file, the overrides as typed.
    """
    return f"dks sweep run {shlex.join([named, *request] if named else [name])} --code same"
