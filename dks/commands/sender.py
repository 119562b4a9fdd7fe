"""The process of `dks/tracking/sender.py`: `python -m dks.commands.sender`. It is started by runs, not by people."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.machine.interruption import SIGNALS

if TYPE_CHECKING:
    from dks.tracking.record import RunFolder

# Seconds for the rest where whoever began the runs has gone without a word.
ORPHANED = 30.0


def main() -> None:
    """Until it is told to finish, or nobody is there to tell it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a scheduler signals all processes of a job; the runs say when they are over
    with suppress(OSError, AttributeError):
        os.nice(10)  # training comes first, and so do the imports of the process that trains
    from dks.tracking.dispatch import Dispatch

    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    dispatch, pause = Dispatch(draw), 0.05
    while True:
        with suppress(queue.Empty):
            command = commands.get(timeout=pause)
            while True:
                match command:
                    case {"finish": patience}:
                        _answer(problems=dispatch.finish(patience))
                        return
                    case {"open": values}:
                        _answer(opened=dispatch.open(values))
                    case _:
                        dispatch.obey(command)
                command = commands.get_nowait()
        pause = dispatch.work()


def _answer(**values: Any) -> None:
    with suppress(BrokenPipeError):  # nobody wants to know any more
        print(json.dumps(values), flush=True)


def _listen(commands: queue.SimpleQueue[dict[str, Any]]) -> None:
    with open(0, closefd=False, encoding="utf-8") as lines:
        for line in lines:
            commands.put(json.loads(line))
    commands.put({"finish": ORPHANED})


def draw(folder: RunFolder, into: Path) -> list[Path]:
    """Pictures of a run; matplotlib is imported when there is one to draw."""
    from dks.figures.run import draw as draw_run

    return draw_run(folder, into)


if __name__ == "__main__":
    main()
