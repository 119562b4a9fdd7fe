"""`dks extensions`: what installed packages and files add to this one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import Commands, add_command, add_json


def add(commands: Commands) -> None:
    added = add_command(
        commands,
        "extensions",
        "backbones, branch designs, matching strategies and data sets that packages and files add",
        ["dks extensions", "DKS_EXTENSIONS=my_net.py dks extensions --json"],
        _extensions,
        "Each is imported; exit status 1 if one is broken.",
    )
    add_json(added)


def _extensions(options: argparse.Namespace) -> int:
    from dks.config.errors import RequestError
    from dks.config.registry import VARIABLE, catalogue, tried

    rows, problems = list[dict[str, Any]](), list(catalogue().problems)
    for _, _, found in tried():
        if isinstance(found, RequestError):
            problems += found.problems
        else:
            rows.append({**found.described(), "options": dict(found.component.options)})
    if options.json:
        print(json.dumps({"extensions": rows, "problems": problems}, indent=1))
    else:
        for row in rows:
            where = row.get("file") or f"{row['package']} {row['package_version']}"
            given = " ".join(f"{key}={value}" for key, value in row["options"].items())
            print(
                "  ".join(
                    filter(
                        None,
                        [f"{row['kind']}={row['name']}", f"version {row['version']}", where, given],
                    )
                )
            )
        for problem in problems:
            print(f"broken: {problem}")
        if not rows and not problems:
            print(f"none: no installed package has any, and {VARIABLE} names no file")
    return FAILED if problems else DONE
