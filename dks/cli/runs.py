"""`dks runs`: what is done to the folders of runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import (
    Commands,
    add_command,
    add_json,
    add_loudness,
    add_results_dir,
    add_runs_dir,
)
from dks.config.errors import visible


def add(commands: Commands) -> None:
    family = add_command(
        commands, "runs", "what is done to the folders of runs", ["dks runs migrate --dry-run"]
    )
    added = add_command(
        family.add_subparsers(title="commands", metavar="COMMAND", required=True),
        "migrate",
        "give runs of an earlier version their ids of today, where nothing differs",
        [
            "dks runs migrate --dry-run    what would become of each run, and why some stay as "
            "they are",
            "dks runs migrate              folders, the sweeps that name them, and MLflow",
        ],
        _migrate,
        "A run that computes something else today keeps its old id and its files. Make a back-up "
        "of what is dear to you.",
    )
    added.add_argument("--dry-run", action="store_true", help="only say what would be done")
    add_runs_dir(added)
    add_results_dir(added)
    add_json(added)
    add_loudness(added)


def _migrate(options: argparse.Namespace) -> int:
    from dks.runs.terminal import Display
    from dks.tools.migration import migrate

    display = Display()

    def track(names: Sequence[str]) -> Iterator[str]:
        return display.track(names, len(names), "looking at runs")

    report = migrate(options.runs_dir, options.results_dir, options.dry_run, track)
    if options.json:
        print(report.to_json())
    else:
        for line in report.lines(options.dry_run):
            print(visible(line))
    return FAILED if report.untold else DONE
