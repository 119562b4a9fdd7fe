"""The program as its users call it, inside the process of a test.

It is fast, and knows nothing of what lies behind the command line.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    from dks.cli.main import main
except ModuleNotFoundError:  # commit c624696, which writes tests/golden/
    from dks.cli import main


class Ran(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


def dks(*arguments: str, folder: Path | str = ".", **variables: str) -> Ran:
    """`dks ARGUMENTS` in a folder, with these environment variables beside the test's own."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _as_it_was(),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.environ.update({"COLUMNS": "100", **variables})
        sys.argv = ["dks", *arguments]
        try:
            main(list(arguments))
            status = 0
        except SystemExit as left:
            status = int(left.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """The command line and the environment are put back afterwards."""
    arguments, environment = sys.argv, dict(os.environ)
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
