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
    from dks.tracking.upload_loop import UploadLoop

# seconds
ORPHANED = 30.0  # for the rest where whoever began the runs has gone without a word
LEAVING = 10.0  # beyond those for the rest, after which this process is gone in any case
SAVING = 5.0  # after SIGTERM, in which runs under way may save and say that they are over
REST, GOING = 3.0, 2.0  # for the rest then, and beyond


def main() -> None:
    """Until it is told to finish, by a command or by SIGTERM, or nobody is there to tell it."""
    for number in (each for each in SIGNALS if each is not signal.SIGTERM):
        # a scheduler signals all processes of a job; the runs say when they are over
        signal.signal(number, signal.SIG_IGN)
    # a thread waits for it, whatever this one is doing
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with suppress(OSError, AttributeError):
        os.nice(10)  # training comes first, and so do the imports of the process that trains
    from dks.tracking.upload_loop import UploadLoop  # it takes a moment; signals come before it

    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    loop, pause = UploadLoop(draw), 0.05
    for run in (partial(_listen, commands), partial(_await_end, commands, loop)):
        threading.Thread(target=run, daemon=True).start()
    while True:
        with suppress(queue.Empty):
            command = commands.get(timeout=pause)
            while True:
                if "finish" in command:
                    _answer({"problems": loop.finish(command["finish"])})
                    return
                if (answer := loop.handle(command)) is not None:
                    _answer(answer)
                command = commands.get_nowait()
        pause = loop.work()


def _answer(values: dict[str, Any]) -> None:
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


def _await_end(commands: queue.SimpleQueue[dict[str, Any]], loop: UploadLoop) -> None:
    """A scheduler ends all processes of a job by SIGTERM.

    The runs save, and say soon that they are over.
    """
    signal.sigwait({signal.SIGTERM})
    until = time.monotonic() + SAVING
    while loop.is_busy() and time.monotonic() < until:
        time.sleep(0.1)
    _leave_after(REST + GOING)
    commands.put({"finish": REST})


def _leave_after(seconds: float) -> None:
    """Whatever happens: a server or a disk that does not answer keeps no process."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def draw(folder: RunFolder, into: Path) -> list[Path]:
    """Pictures of a run; matplotlib is imported when there is one to draw."""
    from dks.results.figures.run import draw as draw_run

    return draw_run(folder, into)


if __name__ == "__main__":
    main()
