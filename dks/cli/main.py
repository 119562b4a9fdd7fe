"""The command line: `dks`, and what `train.py` calls.

Nothing heavy is imported before it is needed: no module of commands imports torch, MLflow, Hydra
or rich at its top, so that all of them together are read in a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import click

from dks import __version__
from dks.cli.bench import bench
from dks.cli.command import Group, option
from dks.cli.completion import completion
from dks.cli.doctor import doctor
from dks.cli.exit_status import DONE, FAILED, INTERRUPTED, WRONG_REQUEST
from dks.cli.extensions import extensions
from dks.cli.results import figure, report, table
from dks.cli.runs import runs
from dks.cli.sweeps import sweep
from dks.cli.tracking import sync
from dks.cli.train import train as train_command
from dks.cli.weights import evaluate, export
from dks.config.errors import one_line
from dks.config.secrets import without_password
from dks.machine import interruption, output
from dks.runs import damage
from dks.runs.disk import FORBIDDEN, DiskFull

DEBUG = "--debug"  # anywhere on the command line


@click.group(
    cls=Group, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, message="dks %(version)s")
@option(
    DEBUG, "show where an error was raised, for any command and for train.py", expose_value=False
)
def dks() -> None:
    """Ablations of deep supervision, knowledge synergy and distillation.

    \b
    Examples:
      dks train -m aux=ours,shallow,narrow strategy=topdown,bottomup,bidir
      dks sweep run methods
      dks table methods
    """


for _command in (
    *(train_command, sweep, table, figure, report, evaluate, export),
    *(sync, runs, extensions, doctor, bench, completion),
):
    dks.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """`dks`. Leaves the program with its exit status."""
    _exit(dks, "dks", arguments)


def train(arguments: Sequence[str] | None = None) -> None:
    """`train.py`: what `dks train` does. Leaves the program with its exit status."""
    _exit(train_command, Path(sys.argv[0]).name, arguments)


def _exit(command: click.Command, program: str, arguments: Sequence[str] | None) -> NoReturn:
    given = sys.argv[1:] if arguments is None else list(arguments)
    words = [each for each in given if each != DEBUG]
    sys.exit(_reported(lambda: _invoke(command, program, words), DEBUG in given))


def _invoke(command: click.Command, program: str, words: list[str]) -> int:
    """Parse and run, without what click's own `main` makes of signals and closed pipes."""
    width = shutil.get_terminal_size().columns
    try:
        with command.make_context(program, words, terminal_width=width) as context:
            return int(command.invoke(context) or DONE)
    except click.exceptions.Exit as left:  # after help, and the version
        return left.exit_code


def _reported(command: Callable[[], int], debug: bool = False) -> int:
    """Run a command. A wrong request is one line a problem, on standard error, and exit status 2.

    Any other error is one line and 1. Files that were found damaged are a line each.

    Args:
        command: returns its exit status.
        debug: show the traceback before these lines, as HYDRA_FULL_ERROR=1 does, too.
    """
    # Hydra prints errors in its own way and exits with 1, unless it is asked for the exception
    # itself.
    asked = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with damage.shown():
            try:
                status = command()
            except SystemExit as left:  # after Hydra's help, and a sweep that failed
                status = int(left.code or DONE)
            finally:
                interruption.heed()
        if status == DONE and (lost := output.loss()) is not None:
            print(f"error: standard output cannot be written: {lost.strerror}", file=sys.stderr)
            return FAILED
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if (debug or asked == "1") and not isinstance(error, click.UsageError):
            told = "".join(traceback.format_exception(error))
            print(without_password(told), end="", file=sys.stderr)
        status, lines = _lines(error)
        for line in lines:
            print(f"error: {one_line(without_password(line))}", file=sys.stderr)
        return status
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked or "0"


def _lines(error: Exception) -> tuple[int, Sequence[str]]:
    """The exit status that an error means, and what is said of it."""
    if isinstance(error, click.UsageError):
        return WRONG_REQUEST, [_usage(error)]
    if isinstance(error, DiskFull):
        return FAILED, [str(error)]
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return WRONG_REQUEST, [f"{error.filename}: {error.strerror}"]
    from dks.config.explain import explain_request  # imports Hydra

    if problems := explain_request(error):
        return WRONG_REQUEST, problems
    first = next(iter(str(error).splitlines()), "")
    return FAILED, [f"{type(error).__name__}: {first} ({DEBUG} shows where)"]


def _usage(error: click.UsageError) -> str:
    """What is wrong with a command line, and what would be right."""
    said = error.format_message().rstrip(".")
    if error.ctx is None:
        return said
    if isinstance(error.ctx.command, click.Group) and not isinstance(error, click.NoSuchOption):
        said += f"; choose from {', '.join(error.ctx.command.commands)}"
    return f"{said}; {error.ctx.command_path} --help shows what there is"
