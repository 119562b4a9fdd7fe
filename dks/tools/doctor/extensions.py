"""What packages and files add: listed, imported, and named once."""

from __future__ import annotations

from collections.abc import Iterator

from dks.config.errors import RequestError, one_line
from dks.config.registry import VARIABLE, catalogue, tried
from dks.tools.doctor.check import Finding, green, grey, red


def extensions() -> Iterator[Finding]:
    """Every entry point, and every extension in a file that is named."""
    listed = catalogue()
    for problem in listed.problems:
        yield red(
            "extensions",
            one_line(problem),
            f"mend it, or take it out of {VARIABLE} or of what is installed",
        )
    for kind, _, found in tried():
        if isinstance(found, RequestError):
            for problem in found.problems:
                yield red(kind, one_line(problem), "correct it; only what asks for it fails")
        else:
            yield green(kind, f"{found.reference}, {found.offer.origin}")
    if not listed.offers and not listed.problems:
        yield grey(
            "extensions", f"none: no installed package has any, and {VARIABLE} names no file"
        )
