"""The page: a template filled with tables, figures, a style, a script and its data, in one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import dks
from dks.config.errors import RequestError
from dks.machine.code import short
from dks.results.computed import computed_by, counted
from dks.results.figures.cost import cost
from dks.results.figures.curves import curves
from dks.results.figures.dots import dots
from dks.results.model import Place, Table, TableCell
from dks.results.report.chart import chart
from dks.results.report.runs import PANEL, collect, device_kind, scaled, short_commit, spent, texts
from dks.results.shape import Epoch
from dks.results.sheet import OVER, Sheet, SheetCell, error_text, fixed, sheets
from dks.runs.record import write_atomically
from dks.runs.states import State
from dks.sweeps.files import CLASSIFIER, TRAINING
from dks.tracking.source import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dks.results.study import Study

# finished runs first, those never begun last
_STATES = ("done", "running", "queued", "failed", "killed", "lost", "missing")
# the gravest first: it gives its colour to a cell that several hold for
_GRAVE = ("failed", "lost", "killed", "running", "queued", "missing")
# The curves of single runs are drawn up to so many runs, and all curves have at most so many points
# together, each of at least the fewest.
_MOST_RUNS, _POINTS, _MOST_POINTS, _FEWEST_POINTS = 500, 150_000, 400, 40


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
    figures: list[dict[str, Any]] = []
    drawn = [_figures(table, tables, study.source, figures) for table in tables]
    counts = runs["state"].value_counts().to_dict()
    counts["missing"] = counts.get("missing", 0) + sum(len(part.pending) for part in study.parts)
    states = {state: counts[state] for state in _STATES if counts.get(state)}
    begun = runs[runs["place"].notna()]
    done = runs[runs["state"] == State.done.value].to_dict("records")
    devices = spent(runs)
    script, style = _text("page.js"), _text("page.css")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        flops=lambda count: scaled(count, "FLOP"),
        hours=_hours,
        runs=lambda count: f"{count:,} {'run' if count == 1 else 'runs'}",
        short=short_commit,
        thousands=lambda count: f"{count:,}",
    )
    return environment.from_string(_text("page.html")).render(
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        f"base-uri 'none'; form-action 'none'",
        version=dks.__version__,
        style=Markup(style),
        script=Markup(script),
        contents=_json(_contents(tables, runs, begun, study.source) | {"figures": figures}),
        name=study.name,
        title=study.title,
        command=study.command,
        source=study.source.name,
        epoch="of the last epoch" if epoch is Epoch.last else "of the best epochs: optimistic",
        states=states,
        shares=zip(states.items(), accumulate(states.values(), initial=0), strict=False),
        total=sum(states.values()),
        done=len(done),
        under_way=states.get("running", 0) + states.get("queued", 0),
        spent=devices.to_dict("records"),
        hours=devices["hours"].sum(),
        flops=devices["flops"].sum(),
        period=_period(begun["started"].dropna()),
        origins={
            "Commits": _counted(begun["git_commit"]),
            "Codes": [
                (" and ".join(names), count)
                for names, count in counted(map(computed_by, done)).items()
            ],
            "Versions": _counted(
                f"{name} {version}"
                for record in runs["record"]
                if record is not None and record.attempts
                for name, version in record.attempts[-1].versions.items()
            ),
            "Devices": _counted(begun["device"].dropna().map(device_kind)),
            "Data": _counted(begun["data_fingerprint"]),
        },
        undecided=list(dict.fromkeys(line for table in tables for line in table.undecided)),
        tables=[
            _table(table, at, figures)
            for at, (table, figures) in enumerate(zip(tables, drawn, strict=True))
        ],
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


def _figures(
    table: Table, tables: Sequence[Table], source: Source, drawn: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The figures of a table for the template; `drawn` gets what the script needs of each."""
    runs = sum(cell.wanted for each in tables for cell in each.cells.values())
    single = runs <= _MOST_RUNS and any(cell.n > 1 for cell in table.cells.values())
    lines = 2 * sum(len(each.cells) for each in tables) + (2 * runs if single else 0)
    points = max(_FEWEST_POINTS, min(_MOST_POINTS, _POINTS // max(1, lines)))
    made: list[dict[str, Any]] = []
    kinds: dict[str, Callable[[], Figure]] = {
        "Curves": lambda: curves(table, source, points, single),
        "Errors": lambda: dots(table, source),
        "Cost": lambda: cost(table, source),
    }
    for title, draw in kinds.items():
        told: dict[str, Any] = {"title": title, "at": len(drawn), "svg": "", "empty": ""}
        try:
            told["svg"], values = chart(draw(), len(drawn))
            told["has_runs"] = single and title == "Curves"
            drawn.append(values)
        except RequestError as error:  # nothing to draw yet, or too much
            told["empty"] = str(error)
        made.append(told)
    return made


def _contents(
    tables: Sequence[Table], runs: pd.DataFrame, begun: pd.DataFrame, source: Source
) -> dict[str, Any]:
    """What the script shows behind a cell.

    Runs and configurations are lists, and named elsewhere by their places in them.
    """
    run_at = {cell_id: index for index, cell_id in enumerate(runs["cell_id"])}
    config_at = {config_id: index for index, config_id in enumerate(runs["config_id"].unique())}
    common, own = _configurations(begun, source)
    return {
        "sections": {section: list(heads) for section, heads in PANEL.items()},
        "runs": texts(runs),
        "configs": [{"id": config_id, "own": own.get(config_id)} for config_id in config_at],
        "common": common,
        "tables": [
            {
                "title": table.title,
                "differs": _differing(own, [cell.config_id for cell in table.cells.values()]),
                "cells": [
                    {
                        "label": _label(place) or cell.method,
                        "config": config_at.get(cell.config_id),  # none before something is chosen
                        "runs": [run_at[cell_id] for cell_id in cell.cell_ids],
                        "classifier": _suffix(table, place),
                        "facts": _facts(cell, table.epoch),
                        "notes": _cell_notes(cell),
                    }
                    for place, cell in table.cells.items()
                ],
            }
            for table in tables
        ],
    }


def _configurations(
    begun: pd.DataFrame, source: Source
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What all configurations have in common, and what each has besides, as text.

    Only those that some run has begun. Runs of one configuration differ in their seed alone, so the
    first one speaks for all.
    """
    known: dict[str, dict[str, str]] = {}
    for config_id, cell_id in begun.groupby("config_id", sort=False)["cell_id"].first().items():
        if values := source.config(cell_id):
            known[config_id] = {
                # the same for a value and for its text in a store
                key: {"None": "", "True": "true", "False": "false"}.get(str(value), str(value))
                for key, value in sorted(values.items())
                if key != "seed"
            }
    first, *others = known.values() or [{}]
    common = {
        key: value for key, value in first.items() if all(each.get(key) == value for each in others)
    }
    return common, {
        config_id: {key: value for key, value in values.items() if key not in common}
        for config_id, values in known.items()
    }


def _differing(own: Mapping[str, Mapping[str, str]], config_ids: Sequence[str]) -> list[str]:
    """The settings in which these configurations differ, as far as they are known."""
    known = [own[config_id] for config_id in config_ids if config_id in own]
    keys = sorted({key for each in known for key in each})
    return [key for key in keys if len({each.get(key, "") for each in known}) > 1]


def _label(place: Place) -> str:
    """What a person calls a cell."""
    return " ".join((*place[0], *place[1]))


def _suffix(table: Table, place: Place) -> str:
    """At the end of the metrics of a cell: `_c2` for another classifier than the network's own."""
    axes = (*table.row_axes, *table.column_axes)
    labels = dict(zip(axes, (*place[0], *place[1]), strict=True))
    name = labels.get(CLASSIFIER, "c1")
    return "" if name == "c1" or labels.get(TRAINING) == "alone" else f"_{name}"


def _facts(cell: TableCell, epoch: Epoch) -> list[tuple[str, str]]:
    """What is known of a configuration, each with its name."""
    facts = []
    when = "after the last epoch" if epoch is Epoch.last else "in its own best epoch"
    for number in cell.numbers:
        what = number.metric.label
        if number.mean is not None:
            sd = f" ± {fixed(number.sd)}" if number.sd is not None else ""
            facts.append((f"{what} test error {when}", f"{fixed(number.mean)}{sd} %"))
        if number.interval is not None:
            interval = " to ".join(map(fixed, number.interval))
            facts.append((f"{what}, 95 % interval of the mean", f"{interval} %"))
        if number.paper is not None:
            sd = f" ± {number.paper.sd}" if number.paper.sd else ""
            paper = f"{number.paper.mean}{sd} %, {number.paper.where}"
            facts.append((f"{what} in the paper", paper))
        if number.difference is not None:
            facts.append((f"{what}, ours less the paper's", fixed(number.difference, signed=True)))
        facts += [
            (f"{what}, gain over {OVER[over]}", fixed(gain, signed=True))
            for over, gain in number.gains.items()
        ]
    if cell.computed:
        facts.append(("computed with", cell.computed))
    if len(cell.codes) > 1:
        facts += [
            (f"code {short(code)}", f"{count} of {cell.n} runs")
            for code, count in cell.codes.items()
        ]
    return [*facts, ("runs that count", f"{cell.n} of {cell.wanted}")]


def _cell_notes(cell: TableCell) -> list[str]:
    notes = []
    if cell.left_out:
        left_out = ", ".join(f"{count} {reason}" for reason, count in cell.left_out.items())
        notes.append(f"Finished but left out: {left_out}.")
    if cell.differs:
        notes.append(f"Not the paper's setting: {'; '.join(cell.differs)}.")
    if not cell.cell_ids:
        notes.append("These runs wait until a hyper-parameter is chosen by others.")
    return notes


def _table(table: Table, at: int, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """A table for the template."""
    numbers = {place: number for number, place in enumerate(table.cells)}
    return {
        "at": at,
        "title": table.title,
        "optimistic": table.epoch is Epoch.best,
        "whose": table.whose or " of each run",
        "count": len(table.cells),
        "figures": figures,
        "sheets": [
            _sheet(sheet, table, numbers, f"caption-{at}-{number}")
            for number, sheet in enumerate(sheets(table))
        ],
        "lacking": [
            {
                "cell": numbers[place],
                "label": _label(place) or cell.method,
                "states": {**cell.states, **cell.left_out},
            }
            for place, cell in table.cells.items()
            if cell.states or cell.left_out
        ],
    }


def _sheet(sheet: Sheet, table: Table, numbers: Mapping[Place, int], name: str) -> dict[str, Any]:
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
    ends = accumulate((heading.span for heading in sheet.head[0]), initial=0)
    starts = set(ends) if len(sheet.head) > 1 else set()
    kinds = []
    for index, cells in enumerate(zip(*(row.cells for row in sheet.rows), strict=True)):
        is_words = any(cell.text for cell in cells) and all(
            cell.value is None and not cell.tone for cell in cells
        )
        kinds.append((" start" if index in starts else "") + (" words" if is_words else ""))
    return kinds


def _note(note: str, table: Table, numbers: Mapping[Place, int]) -> dict[str, Any]:
    """A note on a cell that stands beside the table opens its runs."""
    for place in table.aside:
        label = _label(place)
        if note.startswith(f"{label}:"):
            return {"cell": numbers[place], "label": label, "text": note[len(label) :]}
    return {"cell": None, "label": "", "text": note}


def _cell(cell: SheetCell, table: Table, numbers: Mapping[Place, int]) -> dict[str, Any]:
    behind = table.cells.get(cell.place) if cell.place is not None else None
    # the error, and beside it in small letters what is to be said of it
    error = error_text(behind) if behind is not None and cell.tone else ""
    told = error if error and cell.text.startswith(error) else cell.text
    return {
        "text": told,
        "rest": cell.text[len(told) :].strip(),
        "bold": cell.bold,
        "value": cell.value,
        "cell": numbers.get(cell.place) if cell.place is not None and cell.text else None,
        "kind": f"s-{_gravest(behind)}" if cell.tone and behind is not None else "",
    }


def _gravest(cell: TableCell) -> str:
    return "failed" if cell.left_out else next(each for each in _GRAVE if each in cell.states)


def _period(started: pd.Series) -> str:
    """The days on which runs began, UTC."""
    days = sorted({str(time)[:10] for time in started})
    return " to ".join(dict.fromkeys([*days[:1], *days[-1:]]))


def _counted(values: Iterable[Any]) -> list[tuple[str, int]]:
    """Text -> runs, the most frequent first."""
    counts = pd.Series([each for each in values if isinstance(each, str) and each], dtype=object)
    return sorted(counts.value_counts().items(), key=lambda item: (-item[1], item[0]))


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{3600 * hours:.0f} s" if hours < 1 / 60 else f"{60 * hours:.0f} min"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
