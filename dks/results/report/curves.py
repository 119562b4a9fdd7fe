"""The learning curves of a report, thinned so that a page with many runs still opens at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dks.tracking.source import Source

CLASSIFIERS = ("", "_c2", "_c3", "_c4")  # behind the name of a metric; the network's own has none
# With more runs than these, a page holds the curves of configurations alone, and those of their own
# classifier.
MANY_RUNS = 500
_OWN = ("train/top1_error", "test/top1_error")
_ALL = tuple(f"{metric}{classifier}" for classifier in CLASSIFIERS for metric in _OWN)
_BESIDE = ("test/top5_error", "train/loss", "test/loss")
_POINTS, _FEWEST = 400, 40  # of one curve: at most, and in the largest pages
_PAGE_POINTS = 800_000  # of all curves, at about 7 bytes each
_AT_ONCE = 500  # runs whose histories are in memory together

Floats = npt.NDArray[np.float64]


@dataclass
class Curves:
    """`configs[config_id][metric]` is `[grid, mean, lowest, highest]` over runs, the last two for
    tests of several runs alone; `runs[cell_id][metric]` is `[grid, values]`. `grids[grid]` are the
    epochs. None stands for what is not finite.
    """

    grids: list[list[int]] = field(default_factory=list)
    configs: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    runs: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    has_runs: bool = True  # are there curves of single runs?
    step: int = 1  # epochs between two points, at most

    @property
    def metrics(self) -> list[str]:
        """Those that some run has."""
        found = {metric for config in self.configs.values() for metric in config}
        return [metric for metric in (*_ALL, *_BESIDE) if metric in found]


def read(source: Source, configs: Mapping[str, Sequence[str]], done: set[str]) -> Curves:
    """The curves of these configurations and of their runs.

    Args:
        configs: config_id -> its runs that were begun.
        done: the finished runs; a mean is over those of a configuration, or over what there is
            where none is finished.
    """
    count = sum(map(len, configs.values()))
    several = {config_id for config_id, runs in configs.items() if len(runs) > 1}
    result = Curves(has_runs=count <= MANY_RUNS)
    metrics = (*(_ALL if result.has_runs else _OWN), *_BESIDE)
    tests = sum(_is_test(metric) for metric in metrics)
    singles = sum(len(configs[each]) for each in several) if result.has_runs else 0
    lines = len(metrics) * (len(configs) + singles) + 2 * tests * len(several)
    points = max(_FEWEST, min(_POINTS, _PAGE_POINTS // max(1, lines)))
    numbers: dict[bytes, int] = {}

    def add(
        named: dict[str, list[Any]], metric: str, epochs: npt.NDArray[np.int64], values: Floats
    ) -> None:
        """One curve, or the mean and range of several, one a column."""
        there = ~np.isnan(values).all(axis=1)
        if there.any():
            kept = _thinned(np.flatnonzero(there), points)
            result.step = max(result.step, int(np.diff(epochs[kept]).max(initial=1)))
            grid = numbers.setdefault(epochs[kept].tobytes(), len(result.grids))
            if grid == len(result.grids):
                result.grids.append(epochs[kept].tolist())
            named[metric] = [
                grid,
                *map(_rounded, _summary(values[kept], with_range=_is_test(metric))),
            ]

    for part in _parts(configs):
        histories = source.histories(
            [cell_id for runs in part.values() for cell_id in runs], metrics
        )
        for metric, frame in histories.groupby("metric", sort=False):
            wide = frame.pivot(index="epoch", columns="cell_id", values="value").sort_index()
            epochs = wide.index.to_numpy(dtype=np.int64)
            values = wide.to_numpy(dtype=float, copy=True)
            values[~np.isfinite(values)] = np.nan
            at = {cell_id: index for index, cell_id in enumerate(wide.columns)}
            for config_id, runs in part.items():
                begun = [cell_id for cell_id in runs if cell_id in at]
                if not begun:
                    continue
                counted = [cell_id for cell_id in begun if cell_id in done] or begun
                add(
                    result.configs.setdefault(config_id, {}),
                    str(metric),
                    epochs,
                    values[:, [at[each] for each in counted]],
                )
                for cell_id in begun if result.has_runs and config_id in several else ():
                    add(
                        result.runs.setdefault(cell_id, {}),
                        str(metric),
                        epochs,
                        values[:, [at[cell_id]]],
                    )
    return result


def _parts(configs: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Sequence[str]]]:
    """The configurations, as many at a time as have about _AT_ONCE runs."""
    part: dict[str, Sequence[str]] = {}
    for config_id, runs in configs.items():
        part[config_id] = runs
        if sum(map(len, part.values())) >= _AT_ONCE:
            yield part
            part = {}
    if part:
        yield part


def _thinned(indices: npt.NDArray[np.intp], points: int) -> npt.NDArray[np.intp]:
    """At most so many, evenly spread, the first and the last among them."""
    if len(indices) <= points:
        return indices
    chosen: npt.NDArray[np.intp] = indices[
        np.linspace(0, len(indices) - 1, points).round().astype(int)
    ]
    return chosen


def _summary(values: Floats, with_range: bool) -> tuple[Floats, ...]:
    """Mean, lowest and highest of the columns in each row, a single column as it is.

    Every row has a value.
    """
    if values.shape[1] == 1:
        return (values[:, 0],)
    mean = np.nanmean(values, axis=1)
    return (mean, np.nanmin(values, axis=1), np.nanmax(values, axis=1)) if with_range else (mean,)


def _is_test(metric: str) -> bool:
    return metric.startswith("test/")


def _rounded(line: Floats) -> list[float | None]:
    return [rounded(value) for value in line.tolist()]


def rounded(value: float) -> float | None:
    """Five significant digits; None for what is not finite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


__all__ = ["MANY_RUNS", "Curves", "read", "rounded"]
