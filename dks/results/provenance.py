"""Where every number of a table comes from.

The same runs give the same content, with no word of when it was written.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from dks.config.extensions import cited
from dks.results.model import Table
from dks.results.study import Study

_RUN = (
    "seed",
    "state",
    "epoch",
    "git_commit",
    "data_fingerprint",
    "device",
    "started",
    "mlflow_run_id",
    "place",
    "extensions",
    "computed_by",
)


def provenance(study: Study, table: Table) -> dict[str, Any]:
    """For JSON.

    The source and the query, the extensions of its runs, and for each cell its configuration and
    runs.
    """
    found = {record["cell_id"]: record for record in study.runs.to_dict("records")}
    cells: list[dict[str, Any]] = []
    for (row, column), cell in table.cells.items():
        runs: list[dict[str, Any]] = [
            {"cell_id": cell_id, **{key: _plain(found[cell_id][key]) for key in _RUN}}
            if cell_id in found
            else {"cell_id": cell_id, "state": "missing"}
            for cell_id in cell.cell_ids
        ]
        cells.append(
            {
                **dict(zip((*table.row_axes, *table.column_axes), (*row, *column), strict=True)),
                "config_id": cell.config_id,
                "method": cell.method,
                "differs_from_the_paper": list(cell.differs),
                "computed_with": cell.computed,
                "numbers": {
                    number.metric.value: {
                        "mean": number.mean,
                        "sd": number.sd,
                        "n": cell.n,
                        "values": list(number.values),
                    }
                    for number in cell.numbers
                },
                "paper": {
                    number.metric.value: asdict(number.paper)
                    for number in cell.numbers
                    if number.paper is not None
                },
                "left_out": cell.left_out,
                "runs": runs,
            }
        )
    query = {
        "source": study.source.name,
        "cells": "the runs of these cell ids",
        "metrics": [metric.value for metric in table.metrics],
        "epoch": f"{table.epoch.value}{table.whose}",
        "leaves_out": "runs that are not done, have fewer epochs than asked for, or end in a "
        "number that is not finite",
    }
    return {
        "sweep": table.name,
        "title": table.title,
        "command": study.command,
        "query": query,
        "extensions": cited(
            each for cell in cells for run in cell["runs"] for each in run.get("extensions", ())
        ),
        "codes": _codes(table),
        "cells": cells,
    }


def _codes(table: Table) -> list[dict[str, Any]]:
    """The codes that runs which count were computed by, each with its commits and the number of
    runs; null: not known.
    """
    found: dict[str | None, tuple[set[str], set[str]]] = {}
    for cell_id, run in table.computed_by.items():
        for each in run:
            commits, runs = found.setdefault(each.code, (set(), set()))
            commits |= set(filter(None, [each.git_commit]))
            runs.add(cell_id)
    return [
        {"code": code, "git_commits": sorted(commits), "runs": len(runs)}
        for code, (commits, runs) in found.items()
    ]


def _plain(value: Any) -> Any:
    """As JSON has it; what is not known is null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value
