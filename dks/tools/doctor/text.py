"""Findings for people: a group a block, a finding a line, and what to do below it."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TextIO

from dks.tools.doctor.check import Finding, Level

# Level -> its mark, the mark where the terminal has no such letters, and the colour.
_MARKS = {
    Level.green: ("✓", "ok", "green"),
    Level.yellow: ("!", "!!", "yellow"),
    Level.red: ("✗", "XX", "red"),
    Level.grey: ("·", "--", "bright_black"),
}
NAME = 16  # columns of a name
NARROW = 30  # columns left for the text below which it is no longer folded


class Page:
    """What is written to a terminal, or plainly to a file or a pipe."""

    def __init__(self, out: TextIO) -> None:
        from dks.runs.terminal import console

        self._console = console(out)
        letters = "".join(mark for mark, _, _ in _MARKS.values())
        try:
            letters.encode(self._console.encoding)
            self._has_letters = True
        except (UnicodeEncodeError, LookupError):
            self._has_letters = False

    def group(self, title: str, findings: Sequence[Finding]) -> None:
        """One block."""
        self._line([(title, "bold")])
        for finding in findings:
            good, plain, colour = _MARKS[finding.level]
            mark = good if self._has_letters else plain
            start = 2 + len(mark) + 1 + NAME + 2
            words = self._folded(finding.found, start)
            quiet = "bright_black" if finding.level is Level.grey else ""
            self._line(
                [
                    ("  ", ""),
                    (mark, colour),
                    (" ", ""),
                    (f"{finding.name:<{NAME}}  ", quiet),
                    (words[0], quiet),
                ]
            )
            for more in words[1:]:
                self._line([(" " * start + more, quiet)])
            for number, line in enumerate(
                self._folded(finding.advice, start + 3) if finding.advice else ()
            ):
                self._line([(" " * start + ("   " if number else "-> ") + line, colour)])
        self._line([])

    def total(self, findings: Iterable[Finding]) -> None:
        """The last line."""
        counts = Counter(finding.level for finding in findings)
        parts: list[tuple[str, str]] = []
        for level in (Level.green, Level.yellow, Level.red):
            parts += [
                (", " if parts else "", ""),
                (f"{counts[level]} {level.value}", _MARKS[level][2] if counts[level] else ""),
            ]
        self._line(parts)

    def _folded(self, text: str, start: int) -> list[str]:
        """The text in lines that fit a terminal behind `start` columns; elsewhere in one line."""
        room = self._console.width - start
        if not self._console.is_terminal or room < NARROW:
            return [text]
        return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]

    def _line(self, parts: Iterable[tuple[str, str]]) -> None:
        from rich.text import Text

        self._console.print(Text.assemble(*[part for part in parts if part[0]]), soft_wrap=True)


def as_json(findings: Iterable[tuple[str, Finding]]) -> str:
    """A list of objects, one for each (group, finding)."""
    return json.dumps(
        [{"group": group, **asdict(finding)} for group, finding in findings], indent=1
    )
