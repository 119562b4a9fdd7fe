"""`dks sync`: runs told to MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dks.cli import completion
from dks.cli.command import Command, option
from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import json_output, results_dir, runs_dir, verbosity
from dks.config.errors import RequestError, visible

if TYPE_CHECKING:
    from dks.config.schema import Tracking
    from dks.runs.record import RunFolder


@click.command(cls=Command)
@click.argument(
    "names",
    nargs=-1,
    metavar="[NAME]...",
    shell_complete=completion.runs_and_sweeps,
    help="sweeps, or cells by their ids (default: all runs)",
)
@option("--store URI", "send to this store (default: the one that each run was configured for)")
@option("--experiment NAME", "in the store of --store (default: dks)", default="dks")
@runs_dir
@results_dir
@json_output
@verbosity
def sync(
    names: Sequence[str],
    store: str | None,
    experiment: str,
    runs_dir: str,
    results_dir: str,
    as_json: bool,
) -> int:
    """Send to MLflow what it has not got of the runs, as often as you like.

    That is what an outage kept back, and the end of runs that died. A server gets your password or
    token only where --store or MLFLOW_TRACKING_URI names it.

    \b
    Examples:
      dks sync                                      all runs in runs/, each to its own store
      dks sync table3                               the runs of a sweep
      dks sync --store https://mlflow.example.org   to a server, whatever was configured
      dks sync --store sqlite:///again.db           a store made anew from the runs' journals
    """
    from dks.cli.sender import draw
    from dks.runs.terminal import Display
    from dks.tracking.sync import sync

    display = Display()

    def track(folders: Sequence[RunFolder]) -> Iterator[RunFolder]:
        return display.track(folders, len(folders), "looking at runs")

    cells = _cells(names, runs_dir, results_dir)
    report = sync(runs_dir, cells, _target(store, experiment), draw, track)
    print(report.to_json() if as_json else visible("\n".join(report.lines())))
    return FAILED if report.failed else DONE


def _cells(names: Sequence[str], runs_dir: str, results_dir: str) -> set[str] | None:
    """The ids of the cells that are meant; None: all."""
    from dks.config.names import is_cell_id
    from dks.sweeps import manifest

    if not names:
        return None
    found = set[str]()
    for name in names:
        if is_cell_id(name) and (Path(runs_dir) / name / "record.json").exists():
            found.add(name)
        else:
            found |= set(manifest.read(results_dir, name).cell_ids)
    return found


def _target(store: str | None, experiment: str) -> Tracking | None:
    from dks.config.checks import tracking_problems
    from dks.config.schema import Tracking, TrackingKind

    if store is None:
        return None
    is_server = store.startswith(("http://", "https://"))
    kind = TrackingKind.server if is_server else TrackingKind.local
    target = Tracking(kind, store, experiment)
    if problems := list(tracking_problems(target)):
        raise RequestError(*problems)
    return target
