"""What a step minimises: the synergy loss and the further terms of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dks.config.schema import Config
from dks.objectives.distillation import distillation
from dks.objectives.loss import Loss, Term
from dks.objectives.synergy import SynergyLoss

# The terms there are beside the synergy loss, in the order in which they are added. Each makes
# itself from a configuration and its teacher, or gives None where it has no part in the loss.
TERMS: tuple[Callable[[Config, nn.Module | None], Term | None], ...] = (distillation,)


class Objective:
    """The loss of a configuration.

    Args:
        config: resolved.
        teacher: images (N, 3, H, W) -> logits (N, K), frozen and in evaluation mode; None without
            distillation.
    """

    def __init__(self, config: Config, teacher: nn.Module | None) -> None:
        strategy, loss = config.matching_strategy, config.loss
        self.synergy = SynergyLoss(
            strategy.name, loss.alpha, loss.beta, loss.form, strategy.options
        )
        made = [make(config, teacher) for make in TERMS]
        self.terms = [term for term in made if term is not None]

    def observe(self, images: Tensor) -> list[Any]:
        """What each term needs of the very images (N, 3, H, W) that the network sees."""
        return [term.observe(images) for term in self.terms]

    def __call__(self, logits: dict[str, Tensor], labels: Tensor, observed: list[Any]) -> Loss:
        """The loss of one batch.

        Args:
            logits: classifier -> (N, K).
            labels: (N,), class indices.
            observed: as `observe` gives it.
        """
        loss: Loss = self.synergy(logits, labels)
        total, parts = loss.total, dict(loss.parts)
        for term, its in zip(self.terms, observed, strict=True):
            parts[term.name] = term(logits, labels, its)
            total = total + parts[term.name]
        return Loss(total, parts)
