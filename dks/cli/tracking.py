"""`dks sync`: runs told to MLflow."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import (
    Commands,
    add_command,
    add_json,
    add_loudness,
    add_results_dir,
    add_runs_dir,
)
from dks.config.errors import RequestError, visible

if TYPE_CHECKING:
    from dks.config.schema import Tracking
    from dks.runs.record import RunFolder


def add(commands: Commands) -> None:
    added = add_command(
        commands,
        "sync",
        "send to MLflow what it has not got of the runs, as often as you like",
        [
            "dks sync                                      all runs in runs/, each to its "
            "own store",
            "dks sync table3                               the runs of a sweep",
            "dks sync --store https://mlflow.example.org   to a server, whatever store they were "
            "told to at first",
            "dks sync --store sqlite:///again.db           a store made anew from the runs' "
            "journals",
        ],
        _sync,
        "That is what an outage kept back, and the end of runs that died. A server gets your "
        "password or token only where "
        "--store or MLFLOW_TRACKING_URI names it.",
    )
    added.add_argument(
        "names", nargs="*", metavar="NAME", help="sweeps, or cells by their ids (default: all runs)"
    )
    added.add_argument(
        "--store",
        metavar="URI",
        help="send to this store (default: the one that each run was configured for)",
    )
    added.add_argument(
        "--experiment", default="dks", metavar="NAME", help="in the store of --store (default: dks)"
    )
    add_runs_dir(added)
    add_results_dir(added)
    add_json(added)
    add_loudness(added)


def _sync(options: argparse.Namespace) -> int:
    from dks.cli.sender import draw
    from dks.runs.terminal import Display
    from dks.tracking.sync import sync

    display = Display()

    def track(folders: Sequence[RunFolder]) -> Iterator[RunFolder]:
        return display.track(folders, len(folders), "looking at runs")

    report = sync(options.runs_dir, _cells(options), _target(options), draw, track)
    if options.json:
        print(report.to_json())
    else:
        for line in report.lines():
            print(visible(line))
    return FAILED if report.failed else DONE


def _cells(options: argparse.Namespace) -> set[str] | None:
    """The ids of the cells that are meant; None: all."""
    from pathlib import Path

    from dks.config.names import is_cell_id
    from dks.sweeps import manifest

    if not options.names:
        return None
    found = set[str]()
    for name in options.names:
        if is_cell_id(name) and (Path(options.runs_dir) / name / "record.json").exists():
            found.add(name)
        else:
            found |= set(manifest.read(options.results_dir, name).cell_ids)
    return found


def _target(options: argparse.Namespace) -> Tracking | None:
    from dks.config.checks import tracking_problems
    from dks.config.schema import Tracking, TrackingKind

    if options.store is None:
        return None
    kind = (
        TrackingKind.server
        if options.store.startswith(("http://", "https://"))
        else TrackingKind.local
    )
    target = Tracking(kind, options.store, options.experiment)
    if problems := list(tracking_problems(target)):
        raise RequestError(*problems)
    return target
