"""The process of `dks/tracking/sender.py`: `python -m dks.cli.sender`.

It is started by runs, not by people.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.machine.interruption import SIGNALS

if TYPE_CHECKING:
    from dks.runs.record import RunFolder
    from dks.tracking.dispatch import Dispatch

# Seconds for the rest where whoever began the runs has gone without a word.
ORPHANED = 30.0
# Seconds beyond those for the rest after which this process is gone, whatever it waits for.
LEAVING = 10.0
# Seconds after SIGTERM in which runs under way may save and say that they are over, for the rest
# then, and beyond.
SAVING, REST, GOING = 5.0, 3.0, 2.0


def main() -> None:
    """Until it is told to finish, by a command or by SIGTERM, or nobody is there to tell it."""
    for number in (each for each in SIGNALS if each is not signal.SIGTERM):
        # a scheduler signals all processes of a job; the runs say when they are over
        signal.signal(number, signal.SIG_IGN)
    # a thread waits for it, whatever this one is doing
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with suppress(OSError, AttributeError):
        os.nice(10)  # training comes first, and so do the imports of the process that trains
    from dks.tracking.dispatch import Dispatch

    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    dispatch, pause = Dispatch(draw), 0.05
    for run in (partial(_listen, commands), partial(_await_end, commands, dispatch)):
        threading.Thread(target=run, daemon=True).start()
    while True:
        with suppress(queue.Empty):
            command = commands.get(timeout=pause)
            while True:
                match command:
                    case {"finish": patience}:
                        _answer(problems=dispatch.finish(patience))
                        return
                    case {"open": values}:
                        _answer(opened=dispatch.open(values, command.get("own", False)))
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
            command = json.loads(line)
            if "finish" in command:
                _leave_after(command["finish"] + LEAVING)
            commands.put(command)
    _leave_after(ORPHANED + LEAVING)
    commands.put({"finish": ORPHANED})


def _await_end(commands: queue.SimpleQueue[dict[str, Any]], dispatch: Dispatch) -> None:
    """A scheduler ends all processes of a job by SIGTERM.

    The runs save, and say soon that they are over.
    """
    signal.sigwait({signal.SIGTERM})
    until = time.monotonic() + SAVING
    while dispatch.is_busy() and time.monotonic() < until:
        time.sleep(0.1)
    _leave_after(REST + GOING)
    commands.put({"finish": REST})


def _leave_after(seconds: float) -> None:
    """Whatever happens.

    A store that does not let go, be it a server or a disk, keeps no process.
    """
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def draw(folder: RunFolder, into: Path) -> list[Path]:
    """Pictures of a run; matplotlib is imported when there is one to draw."""
    from dks.results.figures.run import draw as draw_run

    return draw_run(folder, into)


if __name__ == "__main__":
    main()
