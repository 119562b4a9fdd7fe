"""The learning curves of the runs of a table, as data frames of epochs x runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dks.runs.states import State

if TYPE_CHECKING:
    import pandas as pd

    from dks.results.figures.layout import Series
    from dks.results.model import TableCell
    from dks.tracking.source import Source


class Curves:
    """The curves of all runs of some configurations, read once."""

    def __init__(
        self, source: Source, series: Sequence[Series], metrics: Iterable[str], points: int
    ) -> None:
        """
        Args:
            points: of a curve at most; of more epochs evenly spread ones are kept.
        """
        cell_ids = list(dict.fromkeys(cell_id for each in series for cell_id in each.cell.cell_ids))
        wanted = {metric + each.suffix for metric in metrics for each in series}
        self._points = points
        self._finished = finished(source.runs(cell_ids))
        history = source.histories(cell_ids, sorted(wanted))
        # a run that diverges has no place on an axis
        history = history[history["value"].abs() < math.inf]
        self._wide = {
            str(metric): part.pivot(index="epoch", columns="cell_id", values="value").sort_index()
            for metric, part in history.groupby("metric")
        }

    def __bool__(self) -> bool:
        return bool(self._wide)

    def read(self, series: Series, metric: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Epochs x runs of the finished ones, and of the others; None where nothing is known.

        Only finished runs are summed up: in a mean, one that ends early would look like a change of
        the error.
        """
        wide = self._wide.get(metric + series.suffix)
        if wide is None:
            return None
        known = [cell_id for cell_id in series.cell.cell_ids if cell_id in wide]
        wide = wide[known].dropna(how="all")
        if len(wide) > self._points:
            wide = wide.iloc[np.linspace(0, len(wide) - 1, self._points).round().astype(int)]
        whole = [cell_id in self._finished for cell_id in known]
        return (
            wide.loc[:, whole].dropna(how="all"),
            wide.loc[:, [not each for each in whole]].dropna(how="all"),
        )


def finished(runs: pd.DataFrame) -> set[str]:
    """The cells whose run is done, with all of its epochs."""
    whole = (runs["state"] == State.done.value) & ~runs["epoch"].between(
        0, runs["epochs"], inclusive="neither"
    )
    return set(runs.loc[whole, "cell_id"])


def standing(cell: TableCell) -> str:
    """How far a configuration is.

    "" if all runs asked for count, "3 of 5", and where none counts what they are: "missing"; and "2
    codes" where its runs are of several.
    """
    if cell.n:
        told = [] if cell.is_whole else [f"{cell.n} of {cell.wanted}"]
        return ", ".join(told + [f"{len(cell.codes)} codes"] * (len(cell.codes) > 1))
    reasons = Counter({**cell.states, **cell.left_out})
    if len(reasons) == 1:
        return next(iter(reasons))
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
