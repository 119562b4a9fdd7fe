"""`dks doctor`: what is installed, reachable and missing, and what to do about it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import Commands, add_command, add_json, add_loudness

if TYPE_CHECKING:
    from dks.tools.doctor.check import Check, Finding


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        "what is installed, reachable and missing on this machine, and what to do about it",
        [
            "dks doctor",
            "dks doctor data=cifar100 data.root=data",
            "dks doctor tracking=server tracking.uri=http://mlflow.example.org:5000",
            "dks doctor runs_dir=/scratch/runs --json",
        ],
        _doctor,
        "Exit status 1 if something is red. Nothing is changed.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="those that you would run with: data, tracking, ...",
    )
    add_json(parser)
    add_loudness(parser)


def _doctor(options: argparse.Namespace) -> int:
    from dks.tools.doctor.check import as_json, show, show_total
    from dks.tools.doctor.checks import groups

    console = None
    if not options.json:
        from dks.runs.terminal import console as console_of

        console = console_of(sys.stdout)
    found: list[tuple[str, Finding]] = []
    for title, checks in groups(options.overrides):
        findings = _examined(title, checks)
        found += [(title, finding) for finding in findings]
        shown = [
            finding
            for finding in findings
            if not options.quiet or finding.level in ("yellow", "red")
        ]
        if console is not None and shown:
            show(console, title, shown)
    if console is None:
        print(as_json(found))
    else:
        show_total(console, [finding for _, finding in found])
    return FAILED if any(finding.level == "red" for _, finding in found) else DONE


def _examined(title: str, checks: Sequence[Check]) -> list[Finding]:
    """What the checks of one group find; meanwhile a terminal shows how far they are."""
    from dks.tools.doctor.check import examine

    try:
        from rich.markup import escape

        from dks.runs.terminal import Display, duration
    except ImportError:  # without the package that it needs, which a check will name
        return [finding for check in checks for finding in examine(check)]
    found: list[Finding] = []
    with Display() as display:
        for check in display.track(checks, len(checks), title):
            began = time.monotonic()
            found += examine(check)
            display.explain(escape(f"{title}, {check.name}: {duration(time.monotonic() - began)}"))
    return found
