"""What a table shows: which errors, of which epoch, over what they are gains."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Metric(str, Enum):
    """What a table can show, in percent of the test set."""

    top1 = "test/top1_error"
    top5 = "test/top5_error"

    @property
    def label(self) -> str:
        return "top-1" if self is Metric.top1 else "top-5"


class Epoch(str, Enum):
    """Which epoch of a run counts."""

    last = "last"
    # the one with the classifier's lowest top-1 test error: chosen on the test set, so optimistic
    best = "best"

    @property
    def source(self) -> str:
        """Which numbers of a run these are.

        `final/...` or `best/...`, see `dks.tracking.source`.
        """
        return "final" if self is Epoch.last else "best"


class Over(str, Enum):
    """What a configuration is compared with."""

    baseline = "baseline"  # the plain network under the same conditions
    ds = "ds"  # the same network and branches, deeply supervised, without matching or teacher
    alone = "alone"  # the same classifier trained by itself (Table 5)


@dataclass(frozen=True)
class Shape:
    """What a sweep file says about its table; a sweep without a file has this default."""

    metrics: tuple[Metric, ...] = (Metric.top1,)
    # the gains that are shown; None: over the baseline, where there is one
    gain: tuple[Over, ...] | None = None
    # axis -> value of cells that are told beneath the table, not in it
    aside: dict[str, str] = field(default_factory=dict)
