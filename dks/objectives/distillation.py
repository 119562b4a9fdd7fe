"""Distillation from a frozen teacher (Hinton et al., 2015; Table 6 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dks.config.schema import Config, TeacherKind
from dks.objectives.loss import Term


class DistillationLoss(nn.Module):
    """Distillation from a frozen teacher (Hinton et al., 2015; Table 6 of the paper).

    L_kd = weight * s * sum_{n in students} mean_i KL(p_i || q_i), where p and q are the softmax of
    the teacher's and of the student's logits divided by the temperature T, and s is T^2 with
    `scale_by_t2` and 1 without.

    Args:
        students: the classifiers that are taught, for example ["c1"].
        temperature: T.
        weight: of every student's term.
        scale_by_t2: keeps the size of the gradients independent of T.
    """

    def __init__(
        self,
        students: Iterable[str] = ("c1",),
        temperature: float = 1.0,
        weight: float = 1.0,
        scale_by_t2: bool = True,
    ) -> None:
        super().__init__()
        self.students, self.temperature = tuple(students), temperature
        self.factor = weight * (temperature**2 if scale_by_t2 else 1.0)

    def forward(self, logits: Mapping[str, Tensor], taught: Tensor) -> Tensor:
        """Logits {"c1": (N, K), ...} and the teacher's logits (N, K) -> scalar."""
        target = self._log_probs(taught.detach())
        terms = [
            F.kl_div(self._log_probs(logits[name]), target, reduction="batchmean", log_target=True)
            for name in self.students
        ]
        return self.factor * torch.stack(terms).sum()

    def _log_probs(self, logits: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.log_softmax(wide / self.temperature, dim=1)


class Distillation:
    """The term of a configuration: `DistillationLoss` of what its teacher says.

    Args:
        teacher: images (N, 3, H, W) -> logits (N, K), frozen and in evaluation mode.
    """

    name = "loss_kd"

    def __init__(self, config: Config, teacher: nn.Module) -> None:
        kd = config.kd_teacher
        self.teacher = teacher
        self.loss = DistillationLoss(kd.students, kd.temperature, kd.weight, kd.scale_by_t2)

    @torch.no_grad()
    def observe(self, images: Tensor) -> Tensor:
        """The teacher's logits (N, K) for the very images that the network sees."""
        taught: Tensor = self.teacher(images)
        return taught

    def __call__(self, logits: dict[str, Tensor], labels: Tensor, observed: Tensor) -> Tensor:
        """The distillation loss of one batch; the labels have no part in it."""
        distilled: Tensor = self.loss(logits, observed)
        return distilled


def distillation(config: Config, teacher: nn.Module | None) -> Term | None:
    """The term, where the configuration has a teacher."""
    assert (teacher is None) == (config.kd_teacher.kind is TeacherKind.none)
    return None if teacher is None else Distillation(config, teacher)
