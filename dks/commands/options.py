"""Types of options that several families of commands take, and that of what commands are added to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}")
        return int(text)

    return number


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds, at least 0")
    return value


def add_loudness(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--verbose`, for a command that runs something."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="only what went wrong, and the result")
    group.add_argument("-v", "--verbose", action="store_true", help="also what is decided, and why")


def examples(*lines: str) -> str:
    """What stands at the end of a command's help."""
    return "\n".join(("examples:", *(f"  {line}" for line in lines)))
