"""The learning rate of every epoch (Section 4.1 of the paper)."""

from __future__ import annotations

from dks.config.schema import Recipe


def learning_rate(recipe: Recipe, finished: int) -> float:
    """The learning rate of the epoch that follows `finished` whole epochs: lr * gamma^(milestones passed)."""
    passed = sum(finished >= (mark * recipe.epochs if mark < 1 else mark) for mark in recipe.milestones)
    return recipe.lr * float(recipe.gamma**passed)
