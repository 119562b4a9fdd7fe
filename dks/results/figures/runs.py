"""The learning curves of the runs of a table, read once, and what becomes of them over several
runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dks.runs.states import State

if TYPE_CHECKING:
    import pandas as pd

    from dks.results.figures.layout import Series
    from dks.results.model import TableCell
    from dks.tracking.source import Source


@dataclass(frozen=True)
class Curve:
    """One metric of a configuration over its finished runs, or of one run that is not finished."""

    epochs: tuple[int, ...]
    middle: tuple[float, ...]  # mean or median over the runs
    low: tuple[float, ...]  # the lowest of the runs
    high: tuple[float, ...]
    runs: int


class Curves:
    """The curves of all runs that some configurations have, finished or not.

    Those of finished runs are summed up at every epoch. The others stay single: in a mean, a run
    that ends early would look like a change of the error.
    """

    def __init__(self, source: Source, series: Sequence[Series], metrics: Iterable[str]) -> None:
        cell_ids = list(dict.fromkeys(cell_id for each in series for cell_id in each.cell.cell_ids))
        wanted = {metric + each.suffix for metric in metrics for each in series}
        self._finished = finished(source.runs(cell_ids))
        history = source.histories(cell_ids, sorted(wanted))
        # a run that diverges has no place on an axis
        history = history[history["value"].abs() < math.inf]
        self._values = dict(iter(history.groupby("metric")))

    def __bool__(self) -> bool:
        return any(len(part) for part in self._values.values())

    def summary(
        self, series: Series, metric: str, middle: Literal["mean", "median"]
    ) -> Curve | None:
        """Over the finished runs; None where there is none."""
        wide = self._wide(
            series,
            metric,
            [cell_id for cell_id in series.cell.cell_ids if cell_id in self._finished],
        )
        if wide is None:
            return None
        low, high = wide.min(axis=1), wide.max(axis=1)
        centre = wide.mean(axis=1) if middle == "mean" else wide.median(axis=1)
        return Curve(tuple(wide.index), tuple(centre), tuple(low), tuple(high), wide.shape[1])

    def others(self, series: Series, metric: str) -> list[Curve]:
        """One a run that is not finished, as far as it got."""
        curves = []
        for cell_id in series.cell.cell_ids:
            if (
                cell_id not in self._finished
                and (wide := self._wide(series, metric, [cell_id])) is not None
            ):
                values = tuple(wide[cell_id])
                curves.append(Curve(tuple(wide.index), values, values, values, 1))
        return curves

    def _wide(self, series: Series, metric: str, cell_ids: Sequence[str]) -> pd.DataFrame | None:
        """Epochs x runs; None where nothing is known."""
        part = self._values.get(metric + series.suffix)
        if part is None or not (part := part[part["cell_id"].isin(cell_ids)]).size:
            return None
        return part.pivot(index="epoch", columns="cell_id", values="value").sort_index()


def finished(runs: pd.DataFrame) -> set[str]:
    """The cells whose run is done, with all of its epochs."""
    whole = (runs["state"] == State.done.value) & ~(
        (runs["epoch"] > 0) & (runs["epoch"] < runs["epochs"])
    )
    return set(runs.loc[whole, "cell_id"])


def standing(cell: TableCell) -> str:
    """How far a configuration is.

    "" if all runs asked for count, "3 of 5", and where none counts what they are: "missing"; and "2
    codes" where its runs are of several.
    """
    codes = [f"{len(cell.codes)} codes"] if len(cell.codes) > 1 else []
    if cell.n:
        return ", ".join([*([] if cell.is_whole else [f"{cell.n} of {cell.wanted}"]), *codes])
    reasons = Counter({**cell.states, **cell.left_out})
    if len(reasons) == 1:
        return next(iter(reasons))
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
