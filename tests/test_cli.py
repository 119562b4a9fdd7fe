"""The habits of the command line: help with examples, quiet and verbose, `--json`, colours and bars."""

from __future__ import annotations

import argparse
import re
import shlex
from typing import Any

import pytest
from test_startup import commands

from dks import cli
from dks.commands.options import EXAMPLES
from dks.export import SUFFIXES, Format

COMMANDS = [path for path in commands() if path != ("train",)]  # whose help is Hydra's


def parser_of(path: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser of a command."""
    parser = cli._parser()
    for name in path:
        (below,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = below.choices[name]
    return parser


def examples(path: tuple[str, ...]) -> list[str]:
    """The commands that a help has as examples, without what a shell does around them and what is said of them."""
    head, *lines = str(parser_of(path).epilog).splitlines()
    assert head == EXAMPLES
    found = [re.search(r"\bdks(?: [^ |)]+)*", line) for line in lines]
    assert lines and all(found), lines
    return [match[0] for match in found if match]


def taken(line: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """What the options of a command line are, and its exit status; it is not run."""
    seen: list[Any] = []

    def instead(options: Any) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(cli, "_spoken", instead)
    monkeypatch.setattr("sys.argv", ["dks"])  # which `train` changes
    with pytest.raises(SystemExit) as left:
        cli.main(shlex.split(line)[1:])
    return (seen or [None])[0], int(left.value.code or 0)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_has_examples_that_would_be_taken(
    path: tuple[str, ...], in_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What their KEY=VALUEs mean is composed in tests/test_docs.py."""
    shown = examples(path)
    assert all(line.split()[1 : 1 + len(path)] == list(path) for line in shown)
    for line in shown:
        options, status = taken(line, monkeypatch)
        assert status == 0 and options is not None, line
        if path == ("export",) and options.output:
            assert options.output.endswith(SUFFIXES[Format(options.format)])


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_help_fits_a_narrow_terminal_and_folds_no_example(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(path)
    monkeypatch.setenv("COLUMNS", "40")
    text = parser.format_help()
    assert text.endswith(f"\n{parser.epilog}\n")
    below = text.partition("\n\n")[2]  # the usage keeps what belongs together on a line
    assert [line for line in below.removesuffix(f"{parser.epilog}\n").splitlines() if len(line) > 40] == []
