"""Ranges of whole numbers, such as 1..5, in sweep files and on the command line."""

from __future__ import annotations

import re

MOST_CELLS = 100_000  # of a sweep; more are a slip of the finger, and would only fill the memory

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")


def whole_numbers(text: str) -> range | None:
    """From the first number to the last, none where that is the smaller one.

    None: the text is no range.
    """
    ends = _RANGE.fullmatch(text)
    return range(int(ends[1]), int(ends[2]) + 1) if ends else None


def written_out(text: str) -> str:
    """The text with every range in it, a value of its own, as its numbers with commas."""
    return re.sub(
        rf"(?<![^=,(\s]){_RANGE.pattern}(?![^,)\s])",
        lambda found: ",".join(map(str, whole_numbers(found[0]) or ())),
        text,
    )
