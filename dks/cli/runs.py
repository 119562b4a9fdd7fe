"""`dks runs`: what is done to the folders of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from dks.cli.command import Group, option
from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import json_output, results_dir, runs_dir, verbosity
from dks.config.errors import visible


@click.group(cls=Group, no_args_is_help=False)
def runs() -> None:
    """What is done to the folders of runs.

    \b
    Examples:
      dks runs migrate --dry-run
    """


@runs.command
@option("--dry-run", "only say what would be done")
@runs_dir
@results_dir
@json_output
@verbosity
def migrate(dry_run: bool, runs_dir: str, results_dir: str, as_json: bool) -> int:
    """Give runs of an earlier version their ids of today, where nothing differs.

    A run that computes something else today keeps its old id and its files. Make a back-up of what
    is dear to you.

    \b
    Examples:
      dks runs migrate --dry-run    what would become of each run, and why some stay as they are
      dks runs migrate              folders, the sweeps that name them, and MLflow
    """
    from dks.runs.terminal import Display
    from dks.tools.migration import migrate

    display = Display()

    def track(names: Sequence[str]) -> Iterator[str]:
        return display.track(names, len(names), "looking at runs")

    report = migrate(runs_dir, results_dir, dry_run, track)
    print(report.to_json() if as_json else visible("\n".join(report.lines(dry_run))))
    return FAILED if report.untold else DONE
