"""Where programs begin: `dks`, `python -m dks` and train.py. Signals end them from the first line on, and output never does."""

from __future__ import annotations

import os
from importlib import import_module

from dks.machine import interruption, output


def main() -> None:
    """`dks`. Leaves the program with its exit status."""
    _run("main")


def train() -> None:
    """`train.py`. Leaves the program with its exit status."""
    _run("train")


def _run(name: str) -> None:
    output.outlive_readers()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # processes that train together stop together, or torchrun ends them
        interruption.obey()
    try:
        getattr(import_module("dks.cli"), name)()
    except KeyboardInterrupt:
        interruption.leave()


if __name__ == "__main__":
    main()
