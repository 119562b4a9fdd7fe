"""`dks bench`: what this machine reaches, against plain implementations and its own limit."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dks.cli import completion
from dks.cli.command import Command, option
from dks.cli.exit_status import DONE, FAILED
from dks.cli.options import device, json_output, verbosity
from dks.config.errors import RequestError
from dks.config.files import declarations, python_path

# the figure by which a benchmark tells how far it is from a large matrix product
LIMIT = "% of the limit"


@click.command(cls=Command)
@click.argument(
    "names",
    nargs=-1,
    metavar="[NAME]...",
    shell_complete=completion.names(lambda context: benchmarks()),
    help="those that --list shows (default: all)",
)
@option("--list", "the names, and what each measures", name="as_list")
@option("--full", "the whole benchmarks, whose figures docs/performance.md has")
@option("--device NAME", "cpu, cuda, cuda:1, ... (default: cuda where there is one)", type=device)
@json_output
@verbosity
def bench(
    names: Sequence[str], as_list: bool, full: bool, device: str | None, as_json: bool
) -> int:
    """How fast this machine is: ours against plain implementations, and against its own limit.

    Every benchmark takes a minute or so, with --full much longer.

    \b
    Examples:
      dks bench
      dks bench step pipeline
      dks bench step --full --device cuda --json
    """
    known = benchmarks()
    if wrong := [name for name in names if name not in known]:
        raise RequestError(f"{', '.join(wrong)}: no such benchmark; choose from {', '.join(known)}")
    names = list(dict.fromkeys(names)) or list(known)
    if as_list:
        about = {name: _about(known[name]) for name in names}
        rows = [{"name": name, "what": what} for name, what in about.items()]
        lines = [f"{name:{max(map(len, about))}}  {what}" for name, what in about.items()]
        print(json.dumps(rows, indent=1) if as_json else "\n".join(lines))
        return DONE
    from rich.markup import escape

    from dks.runs.terminal import Display, say

    options = [*([] if full else ["--short"]), *(["--device", device] if device else [])]
    found, failed = list[dict[str, Any]](), dict[str, str]()
    with Display() as display:
        # without a bar the lines below say as much
        tracked = display.track(names, len(names), "benchmarks") if display.draws else names
        for number, name in enumerate(tracked, 1):
            began = time.perf_counter()
            done = _run_script(known[name], options)
            ended = f"{time.perf_counter() - began:.0f} s"
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                failed[name] = lines[-1]
                ended = f"failed: {lines[-1]}"
            say(escape(f"[{number}/{len(names)}] {name}  {ended}"), urgent=name in failed)
            if not done.returncode:
                found.append(json.loads(done.stdout))
                if not as_json:
                    _print(found[-1])
    if as_json:
        print(json.dumps({"benchmarks": found, "failed": failed}, indent=1))
    else:
        print("\n".join(_share_of_limit(found)))
    return FAILED if failed else DONE


def benchmarks() -> dict[str, Path]:
    """Name -> script; the other files of the folder are what the scripts share."""
    texts = {path: path.read_text("utf-8") for path in declarations("benchmarks").glob("*.py")}
    return {
        path.stem: path
        for path, text in sorted(texts.items())
        if re.search(r"\brun\(\s*__doc__", text.split('"""', 2)[-1])  # behind its docstring
    }


def _about(script: Path) -> str:
    """The first line of its docstring."""
    return str(ast.get_docstring(ast.parse(script.read_text("utf-8")))).partition("\n")[0]


def _run_script(script: Path, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    from dks.runs.terminal import explain

    environment = {**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", ""))}
    command = [sys.executable, str(script), *options, "--json"]
    explain(shlex.join(command))
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _print(found: Mapping[str, Any]) -> None:
    """Print what one script found, a line each way."""
    from rich.table import Table

    from dks.runs.terminal import console

    table = Table(box=None, show_header=False, pad_edge=False)
    for result in found["results"]:
        for way, each in result["ways"].items():
            median = each["median"]
            value = f"{median:,.0f}" if median >= 1000 else f"{median:.4g}"
            ratio = f"{each['ratio']['median']:.3g} times better" if "ratio" in each else ""
            met = [bound["met"] for bound in each.get("wanted", ())]
            wanted = "" if not met else "as wanted" if all(met) else "not as wanted"
            table.add_row(result["name"], way, f"{value} {result['unit']}", ratio, wanted)
    console(width=None if sys.stdout.isatty() else 160).print(
        f"[bold]{found['what']}[/]", table, "", sep="\n"
    )


def _share_of_limit(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much of a large matrix product's speed is reached."""
    lines = []
    for result in (result for each in found for result in each["results"]):
        parts = [
            f"{way} {each['figures'][LIMIT]:.0f} % ({each['figures']['GFLOP/s']:,.0f} GFLOP/s)"
            for way, each in result["ways"].items()
            if LIMIT in each.get("figures", {})
        ]
        if parts:
            speed = "of the speed of a large matrix product here"
            lines.append(f"{result['name']}, {speed}: {', '.join(parts)}")
    return lines
