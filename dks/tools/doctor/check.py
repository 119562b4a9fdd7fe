"""What a check is and finds, and how checks are run.

An error inside one is a finding, and so is one that takes too long.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum

from dks.config.errors import RequestError, one_line
from dks.config.secrets import without_password


class Level(str, Enum):
    """How a finding is to be taken."""

    green = "green"  # in order
    yellow = "yellow"  # works, but not as well as it could, or not for everything
    red = "red"  # will fail
    grey = "grey"  # not checked, for it does not apply


@dataclass(frozen=True)
class Finding:
    """One line of what was found."""

    name: str  # what was looked at, in a word or two
    level: Level
    found: str
    advice: str = ""  # what to do, where something is to be done
    details: tuple[str, ...] = ()  # all of what `found` only counts


def green(name: str, found: str) -> Finding:
    return Finding(name, Level.green, found)


def yellow(name: str, found: str, advice: str, details: Sequence[str] = ()) -> Finding:
    return Finding(name, Level.yellow, found, advice, tuple(details))


def red(name: str, found: str, advice: str, details: Sequence[str] = ()) -> Finding:
    return Finding(name, Level.red, found, advice, tuple(details))


def grey(name: str, found: str) -> Finding:
    return Finding(name, Level.grey, found)


@dataclass(frozen=True)
class Check:
    """Something to look at."""

    name: str
    look: Callable[[], Iterable[Finding]]
    seconds: float = 15.0  # that it may take


def examine(check: Check) -> Iterator[Finding]:
    """What a check finds, one by one as it finds it. It raises nothing and ends in time.

    A check that takes too long is left alone, in a thread that does not keep the program from
    ending.
    """
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()  # None: that was all
    context = copy_context()  # it may show how far it is

    def look() -> None:
        try:
            for finding in check.look():
                found.put(finding)
        except RequestError as error:
            for problem in error.problems:
                found.put(red(check.name, one_line(problem), "correct it; the line says how"))
        except ImportError as error:  # of a package that another check names
            found.put(grey(check.name, f"not checked: {_words(error)}"))
        except Exception as error:
            said = f"{type(error).__name__}: {_words(error)}"
            found.put(
                red(
                    check.name,
                    f"the check itself failed: {said}",
                    "see what this error says about this machine",
                )
            )
        found.put(None)

    threading.Thread(
        target=context.run, args=(look,), name=f"doctor-{check.name}", daemon=True
    ).start()
    until = time.monotonic() + check.seconds
    while True:
        try:
            finding = found.get(timeout=max(until - time.monotonic(), 0))
        except queue.Empty:
            yield _late(check)
            return
        if finding is None:
            return
        yield finding


def _words(error: Exception) -> str:
    return one_line(without_password(str(error)))


def _late(check: Check) -> Finding:
    return red(
        check.name,
        f"no answer within {check.seconds:g} s",
        "something it looks at hangs: a disk, a network file system, a server, or this machine "
        "is very busy; try again",
    )
