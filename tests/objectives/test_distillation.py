"""The distillation loss against values computed by hand, and where its gradients flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dks.objectives import DistillationLoss


def logits_of(*names: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {name: 3 * torch.randn(6, 5, generator=draw, dtype=torch.float64) for name in names}


@pytest.mark.parametrize("scale_by_t2", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
@pytest.mark.parametrize("students", [["c1"], ["c2", "c3"]])
def test_the_distillation_loss_by_hand(
    students: list[str], temperature: float, scale_by_t2: bool
) -> None:
    logits = logits_of("c1", "c2", "c3")
    taught = 2 * logits_of("c4")["c4"]
    loss = DistillationLoss(students, temperature, 0.7, scale_by_t2)(logits, taught)
    expected = 0.0
    for name in students:
        for i in range(6):
            rows = []
            for row in (taught[i].tolist(), logits[name][i].tolist()):
                total = sum(math.exp(value / temperature) for value in row)
                rows.append([math.exp(value / temperature) / total for value in row])
            expected += sum(p * (math.log(p) - math.log(q)) for p, q in zip(*rows, strict=True)) / 6
    expected *= 0.7 * (temperature**2 if scale_by_t2 else 1)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_t_squared_keeps_the_gradients_of_one_size() -> None:
    def size(temperature: float, scale_by_t2: bool) -> float:
        # Small logits, for then the gradient goes exactly as 1/T^2.
        logits = {"c1": (0.01 * logits_of("c1")["c1"]).requires_grad_()}
        DistillationLoss(["c1"], temperature, 1.0, scale_by_t2)(
            logits, 0.01 * logits_of("c1", "c2")["c2"]
        ).backward()
        assert logits["c1"].grad is not None
        return float(logits["c1"].grad.norm())

    assert size(20, True) == pytest.approx(size(1, True), rel=0.02)
    assert size(20, False) == pytest.approx(size(1, False) / 400, rel=0.02)


def test_no_gradient_reaches_the_teacher() -> None:
    taught = logits_of("c2")["c2"].requires_grad_()
    student = logits_of("c1")["c1"].requires_grad_()
    DistillationLoss()({"c1": student}, taught).backward()
    assert taught.grad is None
    assert student.grad is not None
