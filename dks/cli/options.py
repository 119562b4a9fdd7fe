"""How commands are added to the command line, and options that several of them take."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXAMPLES = "examples:"
MOST = 1_000_000_000  # of whatever is counted, and of seconds: some 30 years


class HelpFormatter(argparse.HelpFormatter):
    """Folds a description to the width of the terminal and leaves examples as they are typed."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLES):
            return text
        return "\n".join(
            super(HelpFormatter, self)._fill_text(line, width, indent) for line in text.splitlines()
        )


def add_command(
    commands: Commands,
    name: str,
    what: str,
    examples: Sequence[str],
    run: Callable[[argparse.Namespace], int] | None = None,
    more: str = "",
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """A command with its help.

    Args:
        what: it does, as the list of commands has it; a sentence begins with it in the help of the
            command itself.
        examples: whole lines, as they are typed; behind two spaces what is to be said of one.
        run: what does it; returns the exit status. None: its subcommands do.
        more: sentences behind that one.
        usage: where argparse's own does not tell.
    """
    description = f"{what[0].upper()}{what[1:]}.{more and f' {more}'}"
    added = commands.add_parser(
        name,
        help=what,
        description=description,
        epilog=as_epilog(examples),
        usage=usage,
        formatter_class=HelpFormatter,
    )
    if run is not None:
        added.set_defaults(run=run)
    return added


def as_epilog(examples: Sequence[str]) -> str:
    """What stands at the end of a command's help."""
    return "\n".join((EXAMPLES, *(f"  {line}" for line in examples)))


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (
            text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= MOST
        ):
            raise argparse.ArgumentTypeError(
                f"{text} must be a whole number of at least {least} and at most {MOST}"
            )
        return int(text)

    return number


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MOST:
        raise argparse.ArgumentTypeError(
            f"{text} must be a number of seconds, at least 0 and at most {MOST}"
        )
    return value


def add_loudness(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--verbose`, for a command that runs or reads something that takes its time."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q", "--quiet", action="store_true", help="only what went wrong, and the result"
    )
    group.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also what is read and decided, and how long it took",
    )


def add_json(container: argparse._ActionsContainer) -> None:
    """`--json`, for a command that lists something or tells how it is.

    A parser or a group of options has it.
    """
    container.add_argument("--json", action="store_true", help="for programs")


def add_results_dir(parser: argparse.ArgumentParser) -> None:
    """`--results-dir`, for a command that looks at sweeps which were begun."""
    parser.add_argument(
        "--results-dir",
        default="results",
        type=folder,
        metavar="DIR",
        help="where sweeps are kept (default: results)",
    )


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    """`--runs-dir`, for a command that looks at runs."""
    parser.add_argument(
        "--runs-dir",
        default="runs",
        type=folder,
        metavar="DIR",
        help="where runs are kept (default: runs)",
    )


def device(text: str) -> str:
    """What torch computes on, by its name alone.

    Whether it is there is found out by whoever uses it.
    """
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"device={text}: choose auto, cpu, cuda or cuda:N")
    return text


def folder(text: str) -> str:
    """A folder that is there, or that could be made."""
    path = _usable(text, "folder")
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder; name one")
    return text


def file_to_write(text: str) -> str:
    """A file that is there, or that could be made."""
    if text.endswith(("/", ".")) or _usable(text, "file").is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    return text


def _usable(text: str, what: str) -> Path:
    """The path, unless nothing can be made there."""
    path = Path(text)
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty; name a {what}")
    try:
        above = next(each for each in path.absolute().parents if each.exists())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text} is no name of a {what}: {getattr(error, 'strerror', error)}"
        ) from error
    if not above.is_dir() or any(len(os.fsencode(part)) > 255 for part in path.parts):
        why = f"{above} is no folder" if not above.is_dir() else "the name is too long"
        raise argparse.ArgumentTypeError(f"{text} is no place for a {what}: {why}")
    return path
