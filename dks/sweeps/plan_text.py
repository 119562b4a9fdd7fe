"""What a person or a program is told of a plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dks.runs.states import State
from dks.sweeps import codes
from dks.sweeps.plan import Cell, Plan

if TYPE_CHECKING:
    from dks.sweeps.estimate.forecast import Forecast


def summary(sweep: Plan, only: frozenset[State] | None = None) -> str:
    """How many cells there are and what is to be done, in a line.

    A second one for hyper-parameters still to be chosen.
    """
    cells, new, counts = sweep.cells, len(sweep.launches(only)), sweep.counts()
    elsewhere = counts.get(State.running, 0) + counts.get(State.queued, 0)
    if len(cells) == counts.get(State.done) and not new:
        text = (
            f"all {len(cells)} cells are done, nothing to launch"
            if len(cells) > 1
            else "the cell is done, nothing to launch"
        )
    else:
        states = ", ".join(f"{count} {state.value}" for state, count in counts.items())
        text = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'} ({states}); {new} to run"
        text += ", another process or the scheduler has the others" if elsewhere else ""
    if sweep.saved:
        text += f"; {sweep.saved} runs are saved, for tables share cells"
    if sweep.repeated:
        text += (
            "; 1 more point is" if sweep.repeated == 1 else f"; {sweep.repeated} more points are"
        )
        text += " one of these in other words"
    selections = [each for part in sweep.parts for each in part.selections]
    open_or_worst = [str(each) for each in selections if each.chosen is None or each.diverged]
    return "\n".join([text, *code_lines(sweep), *open_or_worst])


def code_lines(sweep: Plan) -> list[str]:
    """What is said of runs of another code."""
    return codes.of_cells(sweep.cells, codes.command_here(sweep.name, sweep.named, sweep.request))


def single(sweep: Plan) -> str:
    """What becomes of a single run."""
    (cell,) = sweep.cells
    return "\n".join([_single(cell), *code_lines(sweep)])


def _single(cell: Cell) -> str:
    if cell.state is State.done and not cell.anew:
        return "the cell is done, nothing to launch"
    elsewhere = {
        State.running: "another process is working on",
        State.queued: "another process has queued",
    }
    return f"{elsewhere.get(cell.state, 'running')} cell {cell.cell_id}"


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
    return json.dumps(
        {
            "name": sweep.name,
            "axes": list(sweep.axes),
            "cells": cells,
            "tables": {part.name: [cell.cell_id for cell in part.cells] for part in sweep.parts},
            "saved_runs": sweep.saved,
            "undecided": [str(each) for each in sweep.undecided],
            "absent": list(sweep.absent),
            "notes": [*sweep.notes, *code_lines(sweep)],
            "other_codes": {
                cell.cell_id: cell.other_codes for cell in sweep.cells if cell.other_codes
            },
            "slots": slots,
            "forecast": forecast.to_dict() if forecast else None,
        },
        indent=1,
    )
