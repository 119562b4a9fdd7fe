"""The learning rate of every epoch (Section 4.1 of the paper)."""

from __future__ import annotations

import math

from dks.config.identity import drops
from dks.config.schema import Recipe, Schedule


def learning_rate(recipe: Recipe, finished: int) -> float:
    """The learning rate of the epoch that follows `finished` whole epochs.

    step: lr * gamma^(milestones passed). cosine: lr * (1 + cos(pi * t)) / 2, where t goes from 0 to
    1 over the epochs behind the warm-up. During `warmup_epochs` = w it is what the schedule starts
    with, times 1/w, 2/w, ..., 1.
    """
    if finished < recipe.warmup_epochs:
        return recipe.lr * (finished + 1) / recipe.warmup_epochs
    if recipe.schedule is Schedule.cosine:
        part = (finished - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
        return recipe.lr * (1 + math.cos(math.pi * part)) / 2
    passed = sum(finished >= mark for mark in drops(recipe))
    return recipe.lr * float(recipe.gamma**passed)


def is_milestone(recipe: Recipe, finished: int) -> bool:
    """Does the learning rate drop, by the step schedule, right before the epoch that follows
    `finished` whole epochs?
    """
    return recipe.schedule is Schedule.step and finished in drops(recipe)
