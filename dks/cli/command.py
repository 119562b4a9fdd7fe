"""Commands, groups and options of click as `dks` has them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dks.machine.commit import other_copies

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command that first warns of other copies of the project, but no shell's Tab key."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        completes = any(word.startswith(("-sc", "--shell")) for word in ctx.params.get("words", ()))
        if os.environ.get("RANK", "0") == "0" and not completes:
            for line in other_copies(Path()):
                print(f"warning: {line}", file=sys.stderr)
        return super().invoke(ctx)


class Group(click.Group):
    """Commands, listed in the order in which they were added, each with a whole sentence."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of its commands."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, each.get_short_help_str(1000)) for name, each in self.commands.items()]
            )


def option(
    shown: str, about: str, choices: str = "", name: str | None = None, **settings: Any
) -> Callable[[F], F]:
    """An option of a command.

    Args:
        shown: as help shows it, such as `-q, --quiet` or `--store URI`.
        about: what help says of it.
        choices: its values; an option without any and without a word for its value is a flag.
        name: of the parameter; None: the option's own.
        settings: of `click.option`.
    """
    *flags, last = re.split(r",? ", shown)
    if last.startswith("-"):
        flags.append(last)
        settings["is_flag"] = not choices
    else:
        settings["metavar"] = last
    if choices:
        settings["type"] = click.Choice(choices.split())
    return click.option(*flags, *([name] if name else []), help=about, **settings)


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several decorators as one; help shows their options in this order."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate
