"""`dks sweep list`: every named sweep, what it fills, and how far it is."""

from __future__ import annotations

import json
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config.compose import Compose, Composer, compose_here
from dks.config.errors import RequestError
from dks.runs import damage
from dks.runs.earlier import is_earlier, of_sweep
from dks.runs.states import State, survey
from dks.sweeps import manifest
from dks.sweeps.changes import Changes
from dks.sweeps.files import names, read
from dks.sweeps.spec import grid_of


def listed(results_dir: str, as_json: bool) -> str:
    """All named sweeps, and what was begun under another name in `results_dir`.

    Nothing is composed for it but what was edited since it was begun, and where a choice of
    something of the teacher's is to be made.

    A sweep that was begun has counts of its cells' states, the others only a number of cells.
    """
    parser, changes, compose = OverridesParser.create(), Changes(), Composer(compose_here)
    entries = [_named(name, results_dir, parser, changes, compose) for name in names()]
    others = (
        _begun(name, results_dir, changes)
        for name in manifest.known(results_dir)
        if name not in names()
    )
    entries += [entry for entry in others if entry is not None]
    if as_json:
        return json.dumps(entries, indent=1)
    width = max(len(entry["name"]) for entry in entries)
    lines = []
    for entry in entries:
        lines.append(f"{entry['name']:<{width}}  {_progress(entry):<30}  {entry['title']}")
        lines += [f"{'':<{width}}  {entry[said]}" for said in ("changed", "earlier") if entry[said]]
    return "\n".join(lines)


def _named(
    name: str, results_dir: str, parser: OverridesParser, changes: Changes, compose: Compose
) -> dict[str, Any]:
    if (
        name in manifest.known(results_dir)
        and (begun := _begun(name, results_dir, changes)) is not None
    ):
        return begun
    sweep = read(name)
    grid = grid_of(sweep, (), parser, compose)
    facts = {
        "name": name,
        "title": sweep.title,
        "cells": grid.count,
        "tables": max(1, len(grid.parts)),
    }
    return {**facts, "states": None, "changed": None, "earlier": None}


def _begun(name: str, results_dir: str, changes: Changes) -> dict[str, Any] | None:
    """A sweep that was begun.

    None where its file cannot be read, which is reported and stops no list.
    """
    try:
        found = manifest.read(results_dir, name)
    except RequestError as error:
        path = manifest.file(results_dir, name)
        damage.report(path, str(error).removeprefix(f"{path} "))
        return None
    standings = survey(found.runs_dir, found.cell_ids).values()
    states = [standing.state for standing in standings]
    counted = {state.value: states.count(state) for state in State if state in states}
    return {
        "name": name,
        "title": found.title,
        "cells": len(states),
        "tables": max(1, len(found.parts)),
        "states": counted,
        "changed": changes.of(found),
        "earlier": of_sweep(sum(is_earlier(standing.record) for standing in standings)),
    }


def _progress(entry: dict[str, Any]) -> str:
    states = entry["states"]
    # which cells they share shows when they are composed
    if states is None and entry["tables"] > 1:
        return f"{entry['tables']} tables, at most {entry['cells']} cells"
    if states is None:
        return f"{entry['cells']} cells"
    done = states.get(State.done.value, 0)
    others = ", ".join(
        f"{number} {state}" for state, number in states.items() if state != State.done.value
    )
    return f"{done} of {entry['cells']} done" + (f", {others}" if others else "")
