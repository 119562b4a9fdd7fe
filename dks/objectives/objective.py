"""What a step minimises.

The synergy loss, and with a teacher the distillation loss on top of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dks.config.schema import Config, TeacherKind
from dks.objectives.losses import DistillationLoss, Loss, SynergyLoss


class Objective:
    """The loss of a configuration.

    Args:
        config: resolved.
        teacher: images (N, 3, H, W) -> logits (N, K), frozen and in evaluation mode; None without
            distillation.
    """

    def __init__(self, config: Config, teacher: nn.Module | None) -> None:
        kd = config.kd_teacher
        assert (teacher is None) == (kd.kind is TeacherKind.none)
        self.teacher = teacher
        strategy, loss = config.matching_strategy, config.loss
        self.synergy = SynergyLoss(
            strategy.name, loss.alpha, loss.beta, loss.form, strategy.options
        )
        self.distillation = DistillationLoss(kd.students, kd.temperature, kd.weight, kd.scale_by_t2)

    def teach(self, images: Tensor) -> Tensor | None:
        """What the teacher says, (N, K), to the very images that the network sees.

        None without a teacher.
        """
        if self.teacher is None:
            return None
        with torch.no_grad():
            taught: Tensor = self.teacher(images)
        return taught

    def __call__(
        self, logits: dict[str, Tensor], labels: Tensor, taught: Tensor | None = None
    ) -> Loss:
        """The loss of one batch.

        Args:
            logits: classifier -> (N, K).
            labels: (N,), class indices.
            taught: as `teach` gives it.
        """
        loss: Loss = self.synergy(logits, labels)
        if taught is None:
            return loss
        distilled = self.distillation(logits, taught)
        return Loss(loss.total + distilled, {**loss.parts, "loss_kd": distilled})
