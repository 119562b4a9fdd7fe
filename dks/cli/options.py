"""Types of values, and options and arguments that several commands take."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from dks.cli import completion
from dks.cli.command import F, option
from dks.config.errors import RequestError

MOST = 1_000_000_000  # of whatever is counted, and of seconds: some 30 years


def at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number of at least so much."""

    def number(text: str) -> int:
        digits = text.isascii() and text.isdecimal() and len(text) < 20
        if not digits or not least <= int(text) <= MOST:
            raise click.BadParameter(f"{text} must be a whole number, from {least} to {MOST}")
        return int(text)

    return number


def seconds(text: str) -> float:
    """The type of a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MOST:  # nor is nan
        raise click.BadParameter(f"{text} must be a number of seconds, from 0 to {MOST}")
    return value


def device(text: str) -> str:
    """The type of what torch computes on, whether or not this machine has it."""
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d{1,3})?", text):
        raise click.BadParameter(f"device={text}: choose auto, cpu, cuda or cuda:N")
    return text


class Writable(click.Path):
    """The type of a file, or of a folder, that is there or that could be made."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Check the path.

        Raises:
            BadParameter: it is the other of the two, or nothing can be made there.
        """
        path, is_folder = Path(value), self.what == "folder"
        if not value.strip() or value.startswith("--"):
            raise click.BadParameter(f"{value!r} is no name; name a {self.what}")
        if not is_folder and value.endswith(("/", ".")):
            raise click.BadParameter(f"{value} is a folder; name a file")
        try:
            above = next(each for each in path.absolute().parents if each.exists())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", error)
            raise click.BadParameter(f"{value} is no name of a {self.what}: {why}") from error
        if not above.is_dir():
            raise click.BadParameter(f"{value} is no place for a {self.what}: {above} is no folder")
        if any(len(os.fsencode(part)) > 255 for part in path.parts):
            raise click.BadParameter(f"{value} is no place for a {self.what}: the name is too long")
        if path.exists() and path.is_dir() != is_folder:
            raise click.BadParameter(
                f"{value} is {'no' if is_folder else 'a'} folder; name a {self.what}"
            )
        return str(value)


FILE, FOLDER = Writable("file"), Writable("folder")

json_output = option("--json", "for programs", name="as_json")
results_dir = option(
    "--results-dir DIR", "where sweeps are kept (default: results)", type=FOLDER, default="results"
)
runs_dir = option(
    "--runs-dir DIR", "where runs are kept (default: runs)", type=FOLDER, default="runs"
)


def sweep_name(about: str) -> Callable[[F], F]:
    """NAME, the name of a sweep."""
    return click.argument("name", shell_complete=completion.sweeps, help=about)


def overrides(about: str) -> Callable[[F], F]:
    """KEY=VALUE, as often as one likes."""
    complete = completion.overrides
    return click.argument(
        "overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete, help=about
    )


def verbosity(function: F) -> F:
    """`--quiet` and `--verbose`, for a command that runs or reads something that takes its time."""

    @option("-q, --quiet", "only what went wrong, and the result")
    @option("-v, --verbose", "also what is read and decided, and how long it took")
    @wraps(function)
    def run(*args: Any, quiet: bool, verbose: bool, **options: Any) -> Any:
        if quiet and verbose:
            raise RequestError("-q/--quiet and -v/--verbose exclude each other; drop one")
        if not (quiet or verbose):
            return function(*args, **options)
        from dks.runs.terminal import Loudness, duration, explain, speaking  # imports rich

        with speaking(Loudness.quiet if quiet else Loudness.verbose):
            began = time.monotonic()
            status = function(*args, **options)
            explain(f"took {duration(time.monotonic() - began)}")
            return status

    return run  # type: ignore[return-value]
