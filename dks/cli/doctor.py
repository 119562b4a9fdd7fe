"""`dks doctor`: what is installed, reachable and missing, and what to do about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dks.cli.command import Command
from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import json_output, overrides, verbosity

if TYPE_CHECKING:
    from dks.tools.doctor.check import Check, Finding


@click.command(cls=Command)
@overrides("those that you would run with: data, tracking, ...")
@json_output
@verbosity
def doctor(overrides: Sequence[str], as_json: bool) -> int:
    """What is installed, reachable and missing on this machine, and what to do about it.

    Exit status 1 if something is red. Nothing is changed.

    \b
    Examples:
      dks doctor
      dks doctor data=cifar100 data.root=data
      dks doctor tracking=server tracking.uri=http://mlflow.example.org:5000
      dks doctor runs_dir=/scratch/runs --json
    """
    from dks.tools.doctor.check import as_json as findings_as_json
    from dks.tools.doctor.check import show, show_total
    from dks.tools.doctor.checks import groups

    is_quiet = click.get_current_context().params["quiet"]
    console = None
    if not as_json:
        from dks.runs.terminal import console as console_of

        console = console_of(sys.stdout)
    found: list[tuple[str, Finding]] = []
    for title, checks in groups(list(overrides)):
        findings = _examined(title, checks)
        found += [(title, finding) for finding in findings]
        shown = [each for each in findings if not is_quiet or each.level in ("yellow", "red")]
        if console is not None and shown:
            show(console, title, shown)
    if console is None:
        print(findings_as_json(found))
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
