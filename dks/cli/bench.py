"""`dks bench`: what this machine reaches, against plain implementations and its own limit."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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


class BenchmarkFailed(Exception):
    """A script gave no results; the message is the last line of what it said."""


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
        _list({name: _about(known[name]) for name in names}, as_json)
        return DONE
    from rich.markup import escape

    from dks.runs.terminal import say

    options = [*([] if full else ["--short"]), *(["--device", device] if device else [])]
    found, failed = list[dict[str, Any]](), dict[str, str]()
    for number, name in enumerate(_tracked(names), 1):
        started = time.perf_counter()
        try:
            found.append(_measured(known[name], options))
            ended = f"{time.perf_counter() - started:.0f} s"
        except BenchmarkFailed as error:
            failed[name] = str(error)
            ended = f"failed: {error}"
        say(escape(f"[{number}/{len(names)}] {name}  {ended}"), urgent=name in failed)
        if name not in failed and not as_json:
            _show(found[-1])
    if as_json:
        print(json.dumps({"benchmarks": found, "failed": failed}, indent=1))
    else:
        print("\n".join(_far_from_the_limit(found)))
    return FAILED if failed else DONE


def benchmarks() -> dict[str, Path]:
    """Name -> script; the other files of the folder are what the scripts share."""
    found = {}
    for path in sorted(declarations("benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if (
            "from measure import" in text and "__doc__" in text
        ):  # it calls measure.run(__doc__, ...)
            found[path.stem] = path
    return found


def _about(script: Path) -> str:
    """The first line of its docstring."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _list(about: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"name": name, "what": what} for name, what in about.items()], indent=1))
        return
    width = max(map(len, about))
    for name, what in about.items():
        print(f"{name:{width}}  {what}")


def _tracked(names: Sequence[str]) -> Iterator[str]:
    """The names; meanwhile a terminal shows how far they are.

    A log has a line for each, which says as much.
    """
    from dks.runs.terminal import Display

    with Display() as display:
        yield from display.track(names, len(names), "benchmarks") if display.draws else names


def _measured(script: Path, options: Sequence[str]) -> dict[str, Any]:
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
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BenchmarkFailed(lines[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _show(found: Mapping[str, Any]) -> None:
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


def _far_from_the_limit(found: Sequence[Mapping[str, Any]]) -> list[str]:
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
