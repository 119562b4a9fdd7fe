"""What a step minimises: the synergy loss, and with a teacher the distillation loss on top of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dks.config.schema import Config, TeacherKind
from dks.losses import DistillationLoss, Loss, SynergyLoss


class Objective:
    """The loss of a configuration.

    Args:
        config: resolved.
        teacher: images (N, 3, H, W) -> logits (N, K), frozen and in evaluation mode; None without distillation.
    """

    def __init__(self, config: Config, teacher: nn.Module | None) -> None:
        kd = config.kd_teacher
        assert (teacher is None) == (kd.kind is TeacherKind.none)
        self.teacher = teacher
        self.synergy = SynergyLoss(config.matching_strategy.name, config.loss.alpha, config.loss.beta, config.loss.form)
        self.distillation = DistillationLoss(kd.students, kd.temperature, kd.weight, kd.scale_by_t2)

    def __call__(self, images: Tensor, logits: dict[str, Tensor], labels: Tensor) -> Loss:
        """The loss of one batch; the teacher sees the very images that the network saw, once."""
        loss: Loss = self.synergy(logits, labels)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(images)
        distilled = self.distillation(logits, taught)
        return Loss(loss.total + distilled, {**loss.parts, "loss_kd": distilled})
