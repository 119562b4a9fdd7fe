"""The best epoch of a run: each classifier of its network has its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache

from dks.runs.journal import Entry

TOP1 = "test/top1_error"  # what it is the best by; of another classifier than c1 with its ending


def best_of(entries: Sequence[Entry]) -> dict[str, float]:
    """The metrics of each classifier in its own best epoch, and which that is.

    `epoch`, `epoch_c2`, ... What belongs to no other classifier goes with c1.
    """
    newest = {entry.epoch: entry.metrics for entry in entries}
    found: dict[str, float] = {}
    for ending in dict.fromkeys(
        classifier_ending(name) for metrics in newest.values() for name in metrics
    ):
        errors = (
            (epoch, metrics.get(f"{TOP1}{ending}", math.nan)) for epoch, metrics in newest.items()
        )
        if (best := best_epoch(errors)) is not None:
            own = {
                name: value
                for name, value in newest[best].items()
                if classifier_ending(name) == ending
            }
            found |= {f"epoch{ending}": best, **own}
    return found


def best_epoch(errors: Iterable[tuple[int, float]]) -> int | None:
    """The first epoch with the lowest error; None where there is no number among (epoch, error)."""
    known = [(error, epoch) for epoch, error in errors if not math.isnan(error)]
    return min(known)[1] if known else None


@cache  # names are few, and read again for every epoch of every run
def classifier_ending(name: str) -> str:
    """What stands behind the metrics of a classifier: `_c2`, ....

    Nothing for c1, and for what belongs to none.
    """
    found = re.search(r"_c\d+$", name)
    return found[0] if found else ""
