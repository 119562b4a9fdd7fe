"""The command line: `dks`, and what `train.py` calls.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from dks import __version__
from dks.cli import bench, completion, doctor, extensions, reading, runs, sweeps, tracking, weights
from dks.cli.exit_status import DONE, FAILED, INTERRUPTED, WRONG_REQUEST
from dks.cli.hydra_main import hydra_main
from dks.cli.options import HelpFormatter, add_loudness, as_epilog
from dks.config.errors import one_line, short
from dks.config.secrets import without_password
from dks.machine import interruption, output
from dks.machine.commit import other_copies
from dks.runs import damage
from dks.runs.disk import FORBIDDEN, DiskFull

DEBUG = "--debug"  # anywhere on the command line


def train(arguments: Sequence[str] | None = None) -> None:
    """`train.py` and `dks train`: Hydra's command line. Leaves the program with its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    ours = _Parser(prog=Path(sys.argv[0]).name, add_help=False, allow_abbrev=False)
    add_loudness(ours)
    options, hydras = ours.parse_known_args([each for each in given if each != DEBUG])
    sys.argv = [sys.argv[0], *hydras]
    options.run = lambda _: hydra_main()
    options.completes = any(each.startswith(("-sc", "--shell")) for each in hydras)
    sys.exit(_reported(lambda: _spoken(options), DEBUG in given))


def main(arguments: Sequence[str] | None = None) -> None:
    """`dks`. Leaves the program with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        sys.argv = ["dks train"]
        train(given[1:])
    sys.exit(
        _reported(
            lambda: _spoken(_options([each for each in given if each != DEBUG])), DEBUG in given
        )
    )


def _options(given: Sequence[str]) -> argparse.Namespace:
    """What the arguments of `dks` ask for.

    Leaves the program where that is wrong, or where help or the version is shown.
    """
    parser = _parser()
    # argparse takes no more positional arguments once an option stood between them, as in `plan
    # NAME --json key=value`.
    options, rest = parser.parse_known_args(given)
    if rest and (not hasattr(options, "overrides") or any(item.startswith("-") for item in rest)):
        parser.error(f"no such option or argument: {' '.join(map(short, rest))}")
    if not hasattr(options, "run"):
        parser.error("which command?")
    if rest:
        options.overrides += rest
    return options


def _spoken(options: argparse.Namespace) -> int:
    """Run a command as loudly as it is asked to."""
    if os.environ.get("RANK", "0") == "0" and not getattr(options, "completes", False):
        for line in other_copies(Path()):
            print(f"warning: {line}", file=sys.stderr)
    if not (getattr(options, "quiet", False) or getattr(options, "verbose", False)):
        return int(options.run(options))
    from dks.runs.terminal import Loudness, duration, explain, speaking

    with speaking(Loudness.quiet if options.quiet else Loudness.verbose):
        began = time.monotonic()
        status = int(options.run(options))
        explain(f"took {duration(time.monotonic() - began)}")
        return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        said = one_line(without_password(message.removeprefix("argument ")))
        print(f"error: {said}; {self.prog} --help shows what there is", file=sys.stderr)
        sys.exit(WRONG_REQUEST)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="dks",
        description="Ablations of deep supervision, knowledge synergy and distillation.",
        epilog=as_epilog(
            [
                "dks train -m aux=ours,shallow,narrow strategy=topdown,bottomup,bidir",
                "dks sweep run methods",
                "dks table methods",
            ]
        ),
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dks {__version__}")
    parser.add_argument(
        DEBUG,
        action="store_true",
        help="show where an error was raised, for any command and for train.py",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    # Listed for --help; `main` hands everything behind `train` to Hydra.
    commands.add_parser(
        "train", help="one run, or with -m a sweep and its table (as python train.py)"
    )
    for family in (sweeps, reading, weights, tracking, runs, extensions, doctor, bench):
        family.add(commands)
    completion.add(commands, parser)
    return parser


def _reported(command: Callable[[], int], debug: bool = False) -> int:
    """Run a command. A wrong request is one line a problem, on standard error, and exit status 2.

    Any other error is one line and 1. Files that were found damaged are a line each.

    Args:
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
            except SystemExit as left:  # after help, and a sweep that failed
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
        if debug or asked == "1":
            print(
                without_password("".join(traceback.format_exception(error))),
                end="",
                file=sys.stderr,
            )
        status, lines = _lines(error)
        for line in lines:
            print(f"error: {one_line(without_password(line))}", file=sys.stderr)
        return status
    finally:
        if asked is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked


def _lines(error: Exception) -> tuple[int, tuple[str, ...]]:
    """The exit status that an error means, and what is said of it."""
    if isinstance(error, DiskFull):
        return FAILED, (str(error),)
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return WRONG_REQUEST, (f"{error.filename}: {error.strerror}",)
    from dks.config.compose import explain_request

    if problems := explain_request(error):
        return WRONG_REQUEST, problems
    first = next(iter(str(error).splitlines()), "")
    return FAILED, (f"{type(error).__name__}: {first} ({DEBUG} shows where)",)
