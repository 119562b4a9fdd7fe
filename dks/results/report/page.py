"""The page.

A template filled with the tables of a study, its style, its script, and its data, all in one file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import dks
from dks.results.computed import computed_by, counted
from dks.results.model import Epoch, Place, Table, TableCell
from dks.results.report import curves
from dks.results.report.contents import cells, contents, label
from dks.results.report.runs import Runs, collect, kind
from dks.results.sheet import Sheet, SheetCell, error_text, sheets
from dks.runs.record import write_atomically
from dks.runs.states import State

if TYPE_CHECKING:
    from dks.results.study import Study

_SCRIPTS = ("elements.js", "plot.js", "chart.js", "panel.js", "page.js")
_UNDER_WAY = {State.running.value, State.queued.value}
# The gravest first: it gives its colour to a cell that several hold for.
_GRAVE = (State.failed, State.lost, State.killed, State.running, State.queued, State.missing)


def write_report(study: Study, path: Path | str, epoch: Epoch = Epoch.last) -> Path:
    """Write the page, as a whole or not at all; the same runs give the same bytes.

    Returns its path.
    """
    target = Path(path)
    write_atomically(target, page(study, epoch))
    return target


def page(study: Study, epoch: Epoch = Epoch.last) -> str:
    """The HTML of the report."""
    tables = study.tables(epoch=epoch)
    runs = collect(study.parts, study.runs, study.source.name)
    by_config = {
        str(config_id): list(group["cell_id"])
        for config_id, group in runs.begun.groupby("config_id", sort=False)
    }
    finished = runs.frame.loc[runs.frame["state"] == State.done.value, "cell_id"]
    found = curves.read(study.source, by_config, set(finished))
    script = "\n".join(["'use strict';", *map(_text, _SCRIPTS)])
    style = _text("page.css")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        flops=_flops,
        hours=_hours,
        join_states=_joined,
        runs=_runs,
        short=_short,
        thousands=lambda count: f"{count:,}",
    )
    states, done = runs.states, len(finished)
    made = runs.frame[runs.frame["cell_id"].isin(finished)].to_dict("records")
    total = sum(states.values())
    under_way = sum(states.get(state, 0) for state in _UNDER_WAY)
    return environment.from_string(_text("page.html")).render(
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        f"base-uri 'none'; form-action 'none'",
        version=dks.__version__,
        style=Markup(style),
        script=Markup(script),
        contents=_json(contents(tables, runs, found, study.source)),
        name=study.name,
        title=study.title,
        command=study.command,
        source=study.source.name,
        epoch="of the last epoch" if epoch is Epoch.last else "of the best epochs: optimistic",
        states=states,
        shares=[
            (state, count, end - count)
            for (state, count), end in zip(states.items(), accumulate(states.values()), strict=True)
        ],
        total=total,
        done=done,
        under_way=under_way,
        todo=total - done - under_way,
        spent=runs.spent,
        hours=sum(each.hours for each in runs.spent),
        flops=sum(each.flops for each in runs.spent),
        period=_period(runs),
        commits=_counted(runs.begun["git_commit"]),
        codes=[
            (" and ".join(names), count) for names, count in counted(map(computed_by, made)).items()
        ],
        versions=runs.versions,
        devices=_counted(runs.begun["device"].dropna().map(kind)),
        fingerprints=_counted(runs.begun["data_fingerprint"]),
        undecided=list(dict.fromkeys(line for table in tables for line in table.undecided)),
        tables=[_table(table, at) for at, table in enumerate(tables)],
    )


def _text(name: str) -> str:
    return files("dks.results.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(values: Any) -> Markup:
    """JSON that no text in it can end.

    A browser looks for `</script` and `<!--` before anything else.
    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _table(table: Table, at: int) -> dict[str, Any]:
    numbers = {place: number for number, place in enumerate(cells(table))}
    lacking = [(place, cell) for place, cell in table.cells.items() if cell.states or cell.left_out]
    return {
        "at": at,
        "title": table.title,
        "optimistic": table.epoch is Epoch.best,
        "whose": table.whose or " of each run",
        "count": len(table.cells),
        "sheets": [
            _sheet(sheet, table, numbers, f"caption-{at}-{number}")
            for number, sheet in enumerate(sheets(table))
        ],
        "lacking": [
            {
                "cell": numbers[place],
                "label": label(place) or cell.method,
                "states": {**cell.states, **cell.left_out},
            }
            for place, cell in lacking
        ],
    }


def _sheet(sheet: Sheet, table: Table, numbers: dict[Place, int], name: str) -> dict[str, Any]:
    caption = sheet.caption.removeprefix(f"{table.title}: ")  # it stands above
    return {
        "id": name,
        "caption": caption[:1].upper() + caption[1:],
        "label_heads": sheet.label_heads,
        "head": sheet.head,
        "kinds": _kinds(sheet),
        "notes": [_note(note, table, numbers) for note in sheet.notes],
        "rows": [
            {"labels": row.labels, "cells": [_cell(cell, table, numbers) for cell in row.cells]}
            for row in sheet.rows
        ],
    }


def _kinds(sheet: Sheet) -> list[str]:
    """For every column: does a group of columns begin with it, and does it hold words?"""
    starts, column = set(), 0
    for heading in sheet.head[0] if len(sheet.head) > 1 else ():
        starts.add(column)
        column += heading.span
    kinds = []
    for index in range(len(sheet.rows[0].cells) if sheet.rows else 0):
        column_cells = [row.cells[index] for row in sheet.rows]
        is_words = all(cell.value is None and not cell.tone for cell in column_cells) and any(
            cell.text for cell in column_cells
        )
        kinds.append((" start" if index in starts else "") + (" words" if is_words else ""))
    return kinds


def _note(note: str, table: Table, numbers: dict[Place, int]) -> dict[str, Any]:
    """A note on a cell that stands beside the table opens its runs."""
    for place in table.aside:
        if note.startswith(f"{label(place)}:"):
            return {
                "cell": numbers[place],
                "label": label(place),
                "text": note[len(label(place)) :],
            }
    return {"cell": None, "label": "", "text": note}


def _cell(cell: SheetCell, table: Table, numbers: dict[Place, int]) -> dict[str, Any]:
    behind = table.cells.get(cell.place) if cell.place is not None else None
    # The figure, and beside it in small letters what is to be said of it.
    figure = error_text(behind) if behind is not None and cell.tone else ""
    text, rest = (
        (figure, cell.text[len(figure) :].strip())
        if figure and cell.text.startswith(figure)
        else (cell.text, "")
    )
    return {
        "text": text,
        "rest": rest,
        "bold": cell.bold,
        "value": cell.value,
        "cell": numbers[cell.place] if cell.place in numbers and cell.text else None,
        "kind": f"s-{_gravest(behind)}" if cell.tone and behind is not None else "",
    }


def _gravest(cell: TableCell) -> str:
    if cell.left_out:
        return State.failed.value
    return next(state.value for state in _GRAVE if state.value in cell.states)


def _period(runs: Runs) -> str:
    """The days on which runs began, UTC."""
    days = sorted(str(started)[:10] for started in runs.begun["started"].dropna())
    return "" if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def _counted(column: pd.Series) -> list[tuple[str, int]]:
    """Text -> runs, the most frequent first."""
    counts = Counter(value for value in column if isinstance(value, str) and value)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _short(commit: str) -> str:
    """The first digits of a commit, and whether files had changed."""
    digits, _, rest = commit.partition("-")
    return digits[:10] + (f"-{rest}" if rest else "")


def _runs(count: int) -> str:
    return f"{count:,} {'run' if count == 1 else 'runs'}"


def _joined(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def _flops(count: float) -> str:
    """Floating-point operations, three digits."""
    for exponent, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if count >= 10**exponent:
            return f"{count / 10**exponent:.3g} {prefix}FLOP"
    return f"{count:.3g} FLOP"


__all__: Sequence[str] = ["page", "write_report"]
