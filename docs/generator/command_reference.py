"""The command reference as Markdown: what every command says with `--help`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from dks.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
AS_ON_PAPER = {"COLUMNS": "88", "NO_COLOR": "1"}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands, in the order in which they are listed."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def page() -> str:
    """The whole reference."""
    parts = []
    with mock.patch.dict(os.environ, AS_ON_PAPER):
        for parser in parsers(cli._parser()):
            text = _train() if parser.prog == "dks train" else parser.format_help().rstrip()
            parts.append(f"## {parser.prog}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def _train() -> str:
    """Hydra prints this one itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dks", "train", "--help"]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
