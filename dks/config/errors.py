"""The one exception for requests that are wrong, and how its lines look."""

from __future__ import annotations

import re

from dks.config.secrets import without_password

LONGEST = 4000  # characters of one line of a message
LONGEST_VALUE = 80  # characters of a value inside of it


class RequestError(Exception):
    """The request was wrong and nothing was launched. Each problem is one line for the user.

    Exit status 2.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(one_line(without_password(problem)) for problem in problems)
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: its lines, without the way there."""
        return [f"error: {problem}" for problem in self.problems]


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text as one line that does nothing to a terminal.

    What would move the cursor, colour the screen, hide text or turn its direction is shown as its
    escape, such as \\x1b; a text longer than `longest` characters is cut in its middle, after its
    passwords are out: half of one would not be known.
    """
    text = without_password(text) if len(text) > longest else text
    shown = visible(re.sub(r"\s*\n\s*", " ", text).strip(" "))
    return (
        shown
        if len(shown) <= longest
        else f"{shown[: longest * 2 // 3]} ... {shown[-longest // 3 :]}"
    )


def visible(text: str) -> str:
    """A text of several lines that does nothing to a terminal.

    What is not printed is shown as its escape.
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def short(value: object) -> str:
    """A value as it stands in a message."""
    return one_line(str(value), LONGEST_VALUE)
