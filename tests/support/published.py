"""Runs whose results are the paper's published numbers, as records and in an MLflow store."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config.compose import Composer, compose_here
from dks.config.files import declarations
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.sweeps import manifest
from dks.sweeps.cell import Cell
from dks.sweeps.files import read
from dks.sweeps.plan import Plan, plan
from dks.sweeps.spec import grid_of

SWEEPS = (
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "strategies",
    "noise",
    "resnet1202",
    "figure3",
)
SINGLE_RUNS = ("table2", "table4", "table5", "table6", "strategies", "figure3")  # on ImageNet
# Five numbers with mean 0 and sample standard deviation 1.
SPREAD = [step * math.sqrt(0.4) for step in (-2, -1, 0, 1, 2)]
TIME = "2019-06-03T12:00:00.000+00:00"


def rows(name: str) -> list[dict[str, str]]:
    """The lines of a file of the paper's numbers."""
    with (declarations("analysis") / "paper" / f"{name}.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        return list(csv.DictReader(file))


def planned(*names: str) -> Plan:
    """The sweeps as their files describe them; data need not be here."""
    return plan(
        grid_of(read(*names), [], OverridesParser.create()), Composer(compose_here), absent_ok=True
    )


def metrics(name: str, cell: Cell) -> dict[str, float]:
    """What the paper's numbers are for a run of one of the paper's sweeps.

    A run of a choice errs least at temperature 5.
    """
    step = 0.0 if name in SINGLE_RUNS else SPREAD[cell.config.seed - 1]
    found: dict[str, float] = {}
    for classifier, row in _rows_of(name, cell):
        suffix = "" if classifier == "c1" else f"_{classifier}"
        top1 = float(row["top1_error"]) + step * float(row.get("top1_sd") or 0.1)
        found[f"test/top1_error{suffix}"] = top1
        found[f"test/top5_error{suffix}"] = float(row.get("top5_error") or top1 / 4)
    return found


def _rows_of(name: str, cell: Cell) -> Iterator[tuple[str, dict[str, str]]]:
    """The classifiers of a network and what the paper says of each."""
    labels = cell.point.labels
    if name != "table5":
        known = {axis: value for axis, value in labels.items() if axis != "seed"}
        yield "c1", next(row for row in rows(name) if known.items() <= row.items())
        return
    positions = [f"c{digit}" for digit in labels["positions"].replace("none", "").replace("c", "")]
    alone = labels["method"] != "dks"
    for classifier in (positions or ["c1"]) if alone else ["c1", *positions]:
        row = next(
            r
            for r in rows(name)
            if (r["classifier"], r["training"]) == (classifier, "alone" if alone else "dks")
        )
        yield "c1" if alone else classifier, row


def write(folder: Path, cell: Cell, values: dict[str, float]) -> RunFolder:
    """A finished run with these metrics in its last epoch, and its journal.

    What another sweep says of the same run is kept.
    """
    run = RunFolder(folder / cell.config.runs_dir / cell.cell_id)
    earlier = run.read_record()
    values = {**({} if earlier is None else earlier.final), **values}
    values.pop("epoch", None)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(cell.config)
    run.journal.path.unlink(missing_ok=True)
    epoch = cell.config.recipe.epochs
    entry = run.journal.append(epoch, epoch * 100, {"train/top1_error": 1.0, **values})
    attempt = Attempt(
        TIME,
        "host",
        1,
        "cuda:0 (made up)",
        1,
        git_commit="0" * 40,
        ended=TIME,
        status="done",
        seconds=3600.0,
    )
    run.write_record(
        Record(
            cell_id=cell.cell_id,
            config_id=cell.config_id,
            seed=cell.config.seed,
            method=str(cell.choices.get("method")),
            choices=cell.choices,
            label=cell.place,
            overrides=list(cell.point.overrides),
            status=Status.done,
            attempts=[attempt],
            final={"epoch": epoch, **entry.metrics},
            best={"epoch": epoch, **entry.metrics},
            cost={"seconds": 3600.0},
        )
    )
    return run


def publish(folder: Path, name: str) -> list[RunFolder]:
    """All runs of a sweep of the paper in `folder/runs`, with the paper's numbers, and its manifest
    in `folder/results`.

    The current folder must be `folder`.
    """
    found, made = planned(name), dict[str, RunFolder]()
    for cell in found.parts[0].selection_cells:
        error = 30.0 + abs(cell.config.kd_teacher.temperature - 5)
        values = {"test/top1_error": error, "test/top5_error": 10.0, "val/top1_error": error}
        made[cell.cell_id] = write(folder, cell, values)
    if found.undecided:  # the cells that use a choice are known after it
        found = planned(name)
    assert not found.undecided
    for cell in found.parts[0].cells:
        made[cell.cell_id] = write(folder, cell, metrics(name, cell))
    for each in found.manifests():
        manifest.write(each, str(folder / "results"))
    return list(made.values())
