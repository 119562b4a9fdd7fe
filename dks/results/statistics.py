"""What the runs of two configurations say about their difference.

Small samples, a handful of seeds each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

CONFIDENCE = 0.95  # of every interval
LEVEL = 0.05  # below it a corrected p value is called evidence


@dataclass(frozen=True)
class Difference:
    """The mean of one sample less that of another, in the unit of the samples."""

    mean: float
    low: float  # of the t interval (Welch), at CONFIDENCE
    high: float
    p: float  # two-sided, Welch's t test: the means are equal, the variances need not be
    g: float | None  # Hedges' g; None where neither sample varies


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The t interval of a mean at CONFIDENCE.

    None below two values, which say nothing of their spread.
    """
    n = len(values)
    if n < 2:
        return None
    mean, error = fmean(values), sample_sd(values) / math.sqrt(n)
    if error == 0:
        return mean, mean
    return mean - _quantile(n) * error, mean + _quantile(n) * error


@cache
def _quantile(n: int) -> float:
    """Standard errors on each side of a mean of n values.

    A table asks for a few n thousands of times.
    """
    # scipy.stats has it, too, and takes half a second longer to import
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))


def sample_sd(values: Sequence[float]) -> float:
    """Sample standard deviation (ddof=1) of two values or more.

    Exactly 0 where they are all the same.
    """
    if min(values) == max(values):
        return 0.0
    # `statistics.stdev` computes with fractions: the same to the last digits, and fifty times
    # slower
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def compare(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Difference | None]:
    """For each pair (a, b) the mean of a less the mean of b; None below two values on either side.

    Where neither sample varies, the test has nothing to measure the difference by: p is 1 for equal
        means and NaN for others.
    """
    found: list[Difference | None] = [None] * len(pairs)
    # sizes of both samples -> pairs, tested together
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (a, b) in enumerate(pairs):
        if min(len(a), len(b)) < 2:
            continue
        if len({*a}) == 1 and len({*b}) == 1:
            gain = a[0] - b[0]
            found[index] = Difference(gain, gain, gain, 1.0 if gain == 0 else math.nan, None)
        else:
            alike[len(a), len(b)].append(index)
    for members in alike.values():
        for index, difference in zip(
            members, _welch([pairs[index] for index in members]), strict=True
        ):
            found[index] = difference
    return found


def _welch(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Iterator[Difference]:
    """Samples of the same two sizes; `scipy.stats.ttest_ind` computes the same."""
    import numpy as np
    from scipy.special import stdtr, stdtrit

    a, b = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    # variances of the means
    one, other = (each.var(axis=1, ddof=1) / each.shape[1] for each in (a, b))
    error = np.sqrt(one + other)
    # Welch and Satterthwaite
    freedom = (one + other) ** 2 / (one**2 / (a.shape[1] - 1) + other**2 / (b.shape[1] - 1))
    gains = [fmean(sample) - fmean(against) for sample, against in pairs]
    p_values = 2 * stdtr(freedom, -np.abs(gains) / error)
    widths = stdtrit(freedom, (1 + CONFIDENCE) / 2) * error
    for (sample, against), gain, p, width in zip(
        pairs, gains, p_values.tolist(), widths.tolist(), strict=True
    ):
        yield Difference(gain, gain - width, gain + width, p, hedges_g(sample, against))


def hedges_g(sample: Sequence[float], other: Sequence[float]) -> float:
    """The difference of two means in pooled standard deviations, with the exact correction for
    small samples (Hedges 1981).

    Raises:
        ZeroDivisionError: neither sample varies.
    """
    from scipy.special import gammaln

    n, m = len(sample), len(other)
    freedom = n + m - 2
    pooled = math.sqrt(
        ((n - 1) * sample_sd(sample) ** 2 + (m - 1) * sample_sd(other) ** 2) / freedom
    )
    correction = math.exp(gammaln(freedom / 2) - gammaln((freedom - 1) / 2)) / math.sqrt(
        freedom / 2
    )
    return float(correction * (fmean(sample) - fmean(other)) / pooled)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: how likely one or more false alarms among all these tests are.

    NaN counts as a test.

    SciPy has no function for it.
    """
    order = sorted(
        range(len(p_values)), key=lambda index: (math.isnan(p_values[index]), p_values[index])
    )
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        if not math.isnan(p_values[index]):
            largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
            corrected[index] = largest
    return corrected
