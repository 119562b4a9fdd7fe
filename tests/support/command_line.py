"""The commands of `dks` as click has them, for tests of all of them."""

from __future__ import annotations

import re
from unittest import mock

import click

from dks.cli.command import Command
from dks.cli.main import dks


def commands(
    command: click.Command = dks, path: tuple[str, ...] = ()
) -> dict[tuple[str, ...], click.Command]:
    """Every command by its words: (), ("sweep",), ("sweep", "list"), ..."""
    found = {path: command}
    for name, each in getattr(command, "commands", {}).items():
        found |= commands(each, (*path, name))
    return found


def example_lines(command: click.Command) -> list[str]:
    """The lines under "Examples:" in its help."""
    lines = str(command.help).partition("Examples:\n")[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


def examples(command: click.Command) -> list[str]:
    """The commands in these lines, without what a shell does around them and the remarks."""
    found = [re.search(r"\bdks(?: [^ |)]+)*", line) for line in example_lines(command)]
    assert all(found), command.name
    return [match[0] for match in found if match]


def parsed(words: list[str]) -> click.Context:
    """What a command line is read as; nothing is run.

    Raises:
        UsageError: it is wrong.
    """
    seen: list[click.Context] = []
    patched = mock.patch.object(Command, "invoke", lambda self, context: seen.append(context))
    with patched, dks.make_context("dks", words) as context:
        dks.invoke(context)
    return (seen or [context])[0]  # `dks completion` is a plain command of click's
