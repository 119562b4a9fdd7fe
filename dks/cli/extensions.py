"""`dks extensions`: what installed packages and files add to this one."""

from __future__ import annotations

import json
from typing import Any

import click

from dks.cli.command import Command
from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import json_output


@click.command(cls=Command)
@json_output
def extensions(as_json: bool) -> int:
    """Backbones, branch designs, matching strategies and data sets that packages and files add.

    Each is imported; exit status 1 if one is broken.

    \b
    Examples:
      dks extensions
      DKS_EXTENSIONS=my_net.py dks extensions --json
    """
    from dks.config.errors import RequestError
    from dks.config.registry import VARIABLE, catalogue, tried

    rows, problems = list[dict[str, Any]](), list(catalogue().problems)
    for _, _, found in tried():
        if isinstance(found, RequestError):
            problems += found.problems
        else:
            rows.append({**found.described(), "options": dict(found.component.options)})
    if as_json:
        print(json.dumps({"extensions": rows, "problems": problems}, indent=1))
        return FAILED if problems else DONE
    for row in rows:
        where = row.get("file") or f"{row['package']} {row['package_version']}"
        options = " ".join(f"{key}={value}" for key, value in row["options"].items())
        parts = [f"{row['kind']}={row['name']}", f"version {row['version']}", where, options]
        print("  ".join(filter(None, parts)))
    for problem in problems:
        print(f"broken: {problem}")
    if not rows and not problems:
        print(f"none: no installed package has any, and {VARIABLE} names no file")
    return FAILED if problems else DONE
