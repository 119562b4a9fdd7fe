"""Where programs begin: `dks`, `python -m dks` and train.py.

Signals end them from the first line on, and output never does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from importlib import import_module
from typing import NoReturn

from dks.machine import interruption, output


def main() -> None:
    """`dks`. Leaves the program with its exit status."""
    _run("main")


def train() -> None:
    """`train.py`. Leaves the program with its exit status."""
    _run("train")


def _run(name: str) -> None:
    output.outlive_readers()
    # processes that train together stop together, or torchrun ends them
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        interruption.obey()
    try:
        getattr(import_module("dks.cli.main"), name)()
    except KeyboardInterrupt:
        interruption.leave()
    except SystemExit as left:
        _end(int(left.code or 0))


def _end(status: int) -> NoReturn:
    """What is done is done.

    No signal ends it any more, and it is not waited for Python to take itself apart.

    That takes long, and threads of torch's collectives that are there to the last abort it.
    """
    for number in interruption.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
