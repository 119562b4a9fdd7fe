"""The command reference as Markdown: what every command says with `--help`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from dks.cli.main import dks

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 88


def contexts(
    command: click.Command = dks, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """A command and those below it, in the order in which they are listed."""
    context = click.Context(
        command, parent, command.name, terminal_width=WIDTH, **command.context_settings
    )
    yield context
    for each in getattr(command, "commands", {}).values():
        yield from contexts(each, context)


def page() -> str:
    """The whole reference."""
    parts = []
    for context in contexts():
        path = context.command_path
        text = _train() if path == "dks train" else context.get_help()
        parts.append(f"## {path}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def _train() -> str:
    """Hydra prints this one itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dks", "train", "--help"]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
