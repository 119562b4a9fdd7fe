"""`dks bench`.

What this machine reaches, measured against plain implementations and against its own limit.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import Commands, add_command, add_json, add_loudness, device
from dks.config.errors import RequestError
from dks.config.files import declarations, python_path

# the figure by which a benchmark tells how far it is from a large matrix product
LIMIT = "% of the limit"


class BenchmarkFailed(Exception):
    """A script gave no results; the message is the last line of what it said."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bench",
        "how fast this machine is: ours against plain implementations, and against its own limit",
        ["dks bench", "dks bench step pipeline", "dks bench step --full --device cuda --json"],
        _bench,
        "Every benchmark takes a minute or so, with --full much longer.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="those that --list shows (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="the names, and what each measures")
    parser.add_argument(
        "--full",
        action="store_true",
        help="the whole benchmarks, whose figures docs/performance.md has",
    )
    parser.add_argument(
        "--device",
        type=device,
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (default: cuda where there is one)",
    )
    add_json(parser)
    add_loudness(parser)


def _bench(options: argparse.Namespace) -> int:
    known = benchmarks()
    if wrong := [name for name in options.names if name not in known]:
        raise RequestError(f"{', '.join(wrong)}: no such benchmark; choose from {', '.join(known)}")
    names = list(dict.fromkeys(options.names)) or list(known)
    if options.list and options.json:
        print(json.dumps([{"name": name, "what": _about(known[name])} for name in names], indent=1))
        return DONE
    if options.list:
        width = max(map(len, names))
        print("\n".join(f"{name:{width}}  {_about(known[name])}" for name in names))
        return DONE
    from rich.markup import escape

    from dks.runs.terminal import say

    given = [
        *(() if options.full else ("--short",)),
        *(("--device", options.device) if options.device else ()),
    ]
    found, failed = list[dict[str, Any]](), dict[str, str]()
    for name, number in zip(_tracked(names), range(1, len(names) + 1), strict=True):
        started = time.perf_counter()
        try:
            found.append(_measured(known[name], given))
            said = f"{time.perf_counter() - started:.0f} s"
        except BenchmarkFailed as error:
            failed[name] = str(error)
            said = f"failed: {error}"
        say(escape(f"[{number}/{len(names)}] {name}  {said}"), urgent=name in failed)
        if name not in failed and not options.json:
            _show(found[-1])
    if options.json:
        print(json.dumps({"benchmarks": found, "failed": failed}, indent=1))
    else:
        print("\n".join(_far_from_the_limit(found)))
    return FAILED if failed else DONE


def benchmarks() -> dict[str, Path]:
    """Name -> script; the other files of the folder are what the scripts share."""
    return {
        path.stem: path
        for path in sorted(declarations("benchmarks").glob("*.py"))
        if _is_script(_parsed(path))
    }


def _is_script(code: ast.Module) -> bool:
    """Does it end with a call of `run(__doc__, ...)`, as `benchmarks/measure.py` has it?"""
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call) and node.args]
    return any(
        ast.unparse(call.func) == "run" and ast.unparse(call.args[0]) == "__doc__" for call in calls
    )


def _about(script: Path) -> str:
    return (ast.get_docstring(_parsed(script)) or "").partition("\n")[0]


def _parsed(script: Path) -> ast.Module:
    return ast.parse(script.read_text(encoding="utf-8"))


def _tracked(names: list[str]) -> Iterator[str]:
    """The names; meanwhile a terminal shows how far they are.

    A log has a line for each, which says as much.
    """
    from dks.runs.terminal import Display

    with Display() as display:
        yield from display.track(names, len(names), "benchmarks") if display.draws else names


def _measured(script: Path, options: list[str]) -> dict[str, Any]:
    """What a script found.

    Raises:
        BenchmarkFailed: it ended otherwise.
    """
    from dks.runs.terminal import explain

    environment = {**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", ""))}
    command = [sys.executable, str(script), *options, "--json"]
    explain(shlex.join(command))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BenchmarkFailed(said[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _show(found: Mapping[str, Any]) -> None:
    """What one script found, a line each way."""
    from rich.table import Table

    from dks.runs.terminal import console

    table = Table(box=None, show_header=False, pad_edge=False)
    for result in found["results"]:
        for way, each in result["ways"].items():
            ratio = f"{each['ratio']['median']:.3g} times better" if "ratio" in each else ""
            bounds = each.get("wanted", ())
            wanted = (
                ""
                if not bounds
                else "as wanted"
                if all(bound["met"] for bound in bounds)
                else "not as wanted"
            )
            median = each["median"]
            value = f"{median:,.0f}" if median >= 1000 else f"{median:.4g}"
            table.add_row(result["name"], way, f"{value} {result['unit']}", ratio, wanted)
    console(width=None if sys.stdout.isatty() else 160).print(
        f"[bold]{found['what']}[/]", table, "", sep="\n"
    )


def _far_from_the_limit(found: list[dict[str, Any]]) -> list[str]:
    """How much of a large matrix product's speed is reached."""
    lines = []
    for result in (result for each in found for result in each["results"]):
        reached = [(way, each.get("figures", {})) for way, each in result["ways"].items()]
        parts = [
            f"{way} {figures[LIMIT]:.0f} % ({figures['GFLOP/s']:,.0f} GFLOP/s)"
            for way, figures in reached
            if LIMIT in figures
        ]
        if parts:
            lines.append(
                f"{result['name']}, of the speed of a large matrix product here: {', '.join(parts)}"
            )
    return lines
