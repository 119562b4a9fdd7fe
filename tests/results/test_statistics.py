"""Two samples of different sizes: whose size, spread and mean is whose."""

from __future__ import annotations

import pytest

from dks.results.statistics import compare, hedges_g, holm, interval
from tests.results.test_tables import make, seeds


def test_the_effect_in_pooled_standard_deviations_by_hand() -> None:
    """Variances 5/3 and 50, pooled (3 * 5/3 + 1 * 50) / 4 = 13.75; the correction of 4 degrees of
    freedom is gamma(2) / (sqrt(2) gamma(3/2)) = 0.7978846.
    """
    assert hedges_g([1, 2, 3, 4], [10, 20]) == pytest.approx(-12.5 / 13.75**0.5 * 0.7978846)
    assert hedges_g([10, 20], [1, 2, 3, 4]) == pytest.approx(+2.6896682)


def test_welchs_test_by_hand() -> None:
    """Variances of the means 5/12 and 25, so 1.0335 degrees of freedom (SciPy for p and t)."""
    (found,) = compare([([1, 2, 3, 4], [10, 20])])
    assert found is not None
    assert found.mean == -12.5
    assert (found.p, found.low, found.high) == pytest.approx(
        (0.2375046, -71.85196, 46.85196), rel=1e-6
    )


def test_a_comparison_tells_the_runs_of_both_sides() -> None:
    runs = [
        *seeds([30.0, 31.0], aux="a", method="baseline"),
        *seeds([28.0, 28.5, 29.0], aux="a", method="dks"),
    ]
    (found,) = make(runs, ["aux", "method", "seed"]).comparisons
    assert found.place == (("a",), ("dks",))
    assert (found.n, found.n_other) == (3, 2)
    assert found.difference.mean == pytest.approx(2.0), "positive: it errs less"


def test_an_interval_and_holms_correction_by_hand() -> None:
    # 12.706205: the 97.5 % quantile of t with one degree of freedom
    assert interval([1.0, 3.0]) == pytest.approx((2 - 12.706205, 2 + 12.706205))
    assert interval([1.0]) is None
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
