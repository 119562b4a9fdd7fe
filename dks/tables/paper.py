"""The paper's own numbers, from `analysis/paper/<sweep>.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache

from dks.config.files import declarations
from dks.config.names import long_name
from dks.sweeps.combinations import plain


@dataclass(frozen=True)
class PaperNumber:
    """One error, as text so that digits stay as they are."""

    mean: str  # percent
    sd: str | None  # None: not given
    gain: str | None  # as the paper gives it, over what its table compares with; None: not given


@dataclass(frozen=True)
class PaperRow:
    """What the paper says of one configuration."""

    labels: dict[str, str]  # long name of an axis -> value
    numbers: dict[str, PaperNumber]  # "top1", "top5" -> its figures
    where: str  # the place in the paper


@dataclass(frozen=True)
class PaperTable:
    """One file."""

    name: str
    rows: tuple[PaperRow, ...] = field(default_factory=tuple)

    def find(self, labels: dict[str, str]) -> PaperRow | None:
        """The row with these labels; `labels` may hold more axes than the paper's table has."""
        known = {long_name(axis): plain(value) for axis, value in labels.items()}
        return next((row for row in self.rows if row.labels.items() <= known.items()), None)

    def position(self, labels: dict[str, str]) -> int:
        """Where the paper has the first of its rows with these labels; behind them all where it has none."""
        known = {(long_name(axis), plain(value)) for axis, value in labels.items()}
        return next((number for number, row in enumerate(self.rows) if known <= row.labels.items()), len(self.rows))


@cache
def paper_table(name: str) -> PaperTable | None:
    """The paper's numbers for a sweep of this name; None where it has none."""
    path = declarations("analysis") / "paper" / f"{name}.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        return PaperTable(name, tuple(_row(row) for row in csv.DictReader(file)))


# Columns that are not axes.
_FIGURES = ("top1_error", "top1_sd", "top1_gain", "top5_error", "top5_gain", "printed", "where")


def _row(row: dict[str, str]) -> PaperRow:
    labels = {long_name(key): plain(value) for key, value in row.items() if key not in _FIGURES}
    numbers = {
        metric: PaperNumber(error, row.get(f"{metric}_sd") or None, row.get(f"{metric}_gain") or None)
        for metric in ("top1", "top5")
        if (error := row.get(f"{metric}_error"))
    }
    return PaperRow(labels, numbers, row["where"])
