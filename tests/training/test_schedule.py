"""The learning rate of every epoch, with values written down."""

from __future__ import annotations

import pytest

from dks.config.schema import Recipe, Schedule
from dks.training.schedule import is_milestone, learning_rate


@pytest.mark.parametrize(
    ("milestones", "epochs", "drops"),
    [
        ([2, 3], 5, [2, 3]),
        ([0.5], 3, [2]),  # 1.5: the first whole epoch at or behind it
        ([0.5, 0.75], 4, [2, 3]),
        ([0.28], 25, [7]),  # 7.000000000000001 in floating-point numbers
        ([0.3], 25, [8]),
        ([0.01], 3, [1]),
    ],
)
def test_a_milestone_drops_the_rate_before_the_epoch_that_follows_it(
    milestones: list[float], epochs: int, drops: list[int]
) -> None:
    recipe = Recipe(epochs=epochs, lr=1.0, milestones=milestones, gamma=0.1)
    rates = [learning_rate(recipe, finished) for finished in range(epochs)]
    assert rates == pytest.approx(
        [0.1 ** sum(finished >= drop for drop in drops) for finished in range(epochs)]
    )
    assert [each for each in range(epochs) if is_milestone(recipe, each)] == drops


def test_cosine_behind_a_warm_up() -> None:
    recipe = Recipe(epochs=6, lr=0.4, schedule=Schedule.cosine, warmup_epochs=2)
    assert [learning_rate(recipe, finished) for finished in range(6)] == pytest.approx(
        [0.2, 0.4, 0.4, 0.3414214, 0.2, 0.0585786]
    )
    assert not any(is_milestone(recipe, finished) for finished in range(6))
