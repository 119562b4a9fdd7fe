"""What a check is and finds, how checks are run, and how findings are shown."""

from __future__ import annotations

import json
import queue
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from dks.config.errors import RequestError, one_line
from dks.config.secrets import without_password

if TYPE_CHECKING:
    from rich.console import Console

# green: in order; yellow: works, but not as well as it could, or not for everything; red: will
# fail; grey: not checked, for it does not apply
Level = Literal["green", "yellow", "red", "grey"]
# Level -> its mark, the mark where the terminal has no such letters, and the colour.
_MARKS: dict[Level, tuple[str, str, str]] = {
    "green": ("✓", "ok", "green"),
    "yellow": ("!", "!!", "yellow"),
    "red": ("✗", "XX", "red"),
    "grey": ("·", "--", "bright_black"),
}
NAME = 16  # columns of a name
NARROW = 30  # columns left for the text below which it is no longer folded


@dataclass(frozen=True)
class Finding:
    """One line of what was found."""

    level: Level
    name: str  # what was looked at, in a word or two
    found: str
    advice: str = ""  # what to do, where something is to be done
    details: tuple[str, ...] = ()  # all of what `found` only counts


green = partial(Finding, "green")
yellow = partial(Finding, "yellow")
red = partial(Finding, "red")
grey = partial(Finding, "grey")


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
            text = f"the check itself failed: {type(error).__name__}: {_words(error)}"
            found.put(red(check.name, text, "see what this error says about this machine"))
        found.put(None)

    context = copy_context()  # it may show how far it is
    threading.Thread(target=context.run, args=(look,), daemon=True).start()
    until = time.monotonic() + check.seconds
    while True:
        try:
            finding = found.get(timeout=max(until - time.monotonic(), 0))
        except queue.Empty:
            yield red(
                check.name,
                f"no answer within {check.seconds:g} s",
                "something it looks at hangs: a disk, a network file system, a server, or this "
                "machine is very busy; try again",
            )
            return
        if finding is None:
            return
        yield finding


def _words(error: Exception) -> str:
    return one_line(without_password(str(error)))


def show(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """A group as a block for people: a finding a line, and what to do below it."""
    from rich.text import Text

    try:
        "".join(good for good, _, _ in _MARKS.values()).encode(console.encoding)
        has_letters = True
    except (UnicodeEncodeError, LookupError):
        has_letters = False
    console.print(Text(title, "bold"))
    for each in findings:
        good, plain, colour = _MARKS[each.level]
        mark = good if has_letters else plain
        start, style = 5 + len(mark) + NAME, colour if each.level == "grey" else ""
        line = Text.assemble(("  ", ""), (mark, colour), (f" {each.name:<{NAME}}  ", style))
        line.append(_folded(console, each.found, start), style)
        if each.advice:
            advice = _folded(console, each.advice, start + 3)
            line.append(f"\n{' ' * start}-> {advice}", colour)
        console.print(line, soft_wrap=True)
    console.print()


def _folded(console: Console, text: str, start: int) -> str:
    """The text in lines that fit a terminal behind `start` columns; elsewhere in one line."""
    room = console.width - start
    if not console.is_terminal or room < NARROW:
        return text
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * start}".join(lines)


def show_total(console: Console, findings: Iterable[Finding]) -> None:
    """The last line: how many are of which colour."""
    from rich.text import Text

    counts = Counter(finding.level for finding in findings)
    levels: tuple[Level, ...] = ("green", "yellow", "red")
    parts = [Text(f"{counts[each]} {each}", each if counts[each] else "") for each in levels]
    console.print(Text(", ").join(parts), soft_wrap=True)


def as_json(findings: Iterable[tuple[str, Finding]]) -> str:
    """A list of objects, one for each (group, finding)."""
    return json.dumps(
        [{"group": group, **asdict(finding)} for group, finding in findings], indent=1
    )
