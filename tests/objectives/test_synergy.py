"""The synergy loss against values computed by hand, and where its gradients flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dks import SynergyLoss
from dks.config.schema import Strategy
from dks.objectives import matching_pairs, synergy

NAMES = ("c1", "c2", "c3", "c4")


def logits_of(*names: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {
        name: 3 * torch.randn(6, 5, generator=draw, dtype=torch.float64).to(dtype) for name in names
    }


TARGETS = torch.tensor([0, 3, 4, 1, 1, 2])

# By hand, from Figure 2 of the paper: (m, n) means "m teaches n".
PAIRS = {
    ("topdown", 2): {("c1", "c2")},
    ("bottomup", 2): {("c2", "c1")},
    ("bidir", 2): {("c1", "c2"), ("c2", "c1")},
    ("topdown", 3): {("c1", "c2"), ("c1", "c3"), ("c2", "c3")},
    ("bottomup", 3): {("c2", "c1"), ("c3", "c1"), ("c3", "c2")},
    ("bidir", 3): {
        ("c1", "c2"),
        ("c1", "c3"),
        ("c2", "c3"),
        ("c2", "c1"),
        ("c3", "c1"),
        ("c3", "c2"),
    },
    ("topdown", 4): {
        ("c1", "c2"),
        ("c1", "c3"),
        ("c1", "c4"),
        ("c2", "c3"),
        ("c2", "c4"),
        ("c3", "c4"),
    },
    ("none", 3): set(),
    ("bidir", 1): set(),
}


@pytest.mark.parametrize(("strategy", "count"), PAIRS)
def test_the_pairs_of_every_strategy(strategy: str, count: int) -> None:
    pairs = matching_pairs(strategy, reversed(NAMES[:count]))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == PAIRS[strategy, count]


def by_hand(
    logits: dict[str, Tensor], pairs: set[tuple[str, str]], alpha: float, beta: float
) -> dict[str, float]:
    """Equation (4), one sample and one class after the other."""
    probs = {}
    for name, z in logits.items():
        rows = []
        for row in z.tolist():
            total = sum(math.exp(value) for value in row)
            rows.append([math.exp(value) / total for value in row])
        probs[name] = rows
    count = len(TARGETS)
    parts = {"loss_ce": 0.0, "loss_aux": 0.0, "loss_synergy": 0.0}
    for i, y in enumerate(TARGETS.tolist()):
        for name in logits:
            part = "loss_ce" if name == "c1" else "loss_aux"
            parts[part] += (1 if name == "c1" else alpha) * -math.log(probs[name][i][y]) / count
        for m, n in pairs:
            for k in range(5):
                parts["loss_synergy"] += beta * -probs[m][i][k] * math.log(probs[n][i][k]) / count
    return parts


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.3, 2.5)])
@pytest.mark.parametrize(("strategy", "count"), PAIRS)
def test_the_loss_is_equation_4(strategy: str, count: int, alpha: float, beta: float) -> None:
    logits = logits_of(*NAMES[:count])
    loss = SynergyLoss(strategy, alpha, beta)(logits, TARGETS)
    expected = by_hand(logits, PAIRS[strategy, count], alpha, beta)
    assert set(loss.parts) == {name for name, value in expected.items() if value}
    for name, value in loss.parts.items():
        assert float(value) == pytest.approx(expected[name], rel=1e-12)
    assert float(loss.total) == pytest.approx(sum(expected.values()), rel=1e-12)


@pytest.mark.parametrize("strategy", ["topdown", "bottomup", "bidir"])
def test_gradients_are_those_of_the_loss_with_constant_teachers(strategy: str) -> None:
    names, logits = NAMES[:3], logits_of(*NAMES[:3])
    # constants, as the paper has them
    teachers = {name: z.softmax(dim=1) for name, z in logits.items()}

    def reference(*values: Tensor) -> Tensor:
        log_probs = {name: z.log_softmax(dim=1) for name, z in zip(names, values, strict=True)}
        total = sum(-log_p[range(6), TARGETS].mean() for log_p in log_probs.values())
        pairs = PAIRS[strategy, 3]
        return total + sum(-(teachers[m] * log_probs[n]).sum(dim=1).mean() for m, n in pairs)

    inputs = [z.clone().requires_grad_() for z in logits.values()]
    expected = torch.autograd.grad(reference(*inputs), inputs)
    actual = torch.autograd.grad(
        SynergyLoss(strategy)(dict(zip(names, inputs, strict=True)), TARGETS).total, inputs
    )
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)
    # And the reference's gradients are those of finite differences.
    assert torch.autograd.gradcheck(reference, inputs)


def test_gradcheck_where_no_teacher_is_detached() -> None:
    """Deep supervision, and a pair whose teacher is held fixed.

    Then the loss is the plain function that gradcheck sees.
    """
    fixed = logits_of("c1", "c2")["c1"]

    def deep_supervision(one: Tensor, other: Tensor) -> Tensor:
        return SynergyLoss("none")({"c1": one, "c2": other}, TARGETS).total

    def taught(student: Tensor) -> Tensor:
        return SynergyLoss("topdown")({"c1": fixed, "c2": student}, TARGETS).parts["loss_synergy"]

    inputs = tuple(z.requires_grad_() for z in logits_of("c1", "c2").values())
    assert torch.autograd.gradcheck(deep_supervision, inputs)
    assert torch.autograd.gradcheck(taught, (inputs[1],))


@pytest.mark.parametrize(
    ("strategy", "taught"),
    [("topdown", {"c2", "c3"}), ("bottomup", {"c1", "c2"}), ("bidir", {"c1", "c2", "c3"})],
)
def test_a_teacher_gets_no_gradient_from_its_pair(strategy: str, taught: set[str]) -> None:
    logits = {name: z.requires_grad_() for name, z in logits_of("c1", "c2", "c3").items()}
    SynergyLoss(strategy)(logits, TARGETS).parts["loss_synergy"].backward()
    assert {name for name, z in logits.items() if z.grad is not None and z.grad.any()} == taught


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_raised_to_float32(dtype: torch.dtype) -> None:
    logits = logits_of("c1", "c2", dtype=dtype)
    loss = SynergyLoss("bidir")(logits, TARGETS)
    exact = SynergyLoss("bidir")({name: z.double() for name, z in logits.items()}, TARGETS)
    assert loss.total.dtype is torch.float32
    assert float(loss.total) == pytest.approx(float(exact.total), rel=1e-5)


def test_large_logits_stay_finite() -> None:
    logits = {
        "c1": torch.tensor([[200.0, 0.0]]),
        "c2": torch.tensor([[0.0, 200.0]], requires_grad=True),
    }
    loss = SynergyLoss("bidir")(logits, torch.tensor([0]))
    loss.total.backward()
    assert float(loss.parts["loss_synergy"].detach()) == pytest.approx(400.0)
    assert logits["c2"].grad is not None
    assert torch.isfinite(logits["c2"].grad).all()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="sideways"):
        SynergyLoss("sideways")
    with pytest.raises(ValueError, match="names are c1"):
        matching_pairs(Strategy.bidir, ["c1", "head"])


# --- the form of the authors' code


def test_the_smoothed_divergence_of_the_authors_code() -> None:
    logits = logits_of("c1", "c2", "c3")
    loss = SynergyLoss("bidir", beta=0.5, form="smoothed_kl")(logits, TARGETS)
    expected = 0.0
    for m, n in PAIRS["bidir", 3]:
        for i in range(6):
            p, q = (torch.softmax(logits[name][i], dim=0).tolist() for name in (m, n))
            p, q = ([(value + 1e-8) / (1 + 5e-8) for value in row] for row in (p, q))
            expected += (
                0.5 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)) / 6
            )
    assert set(loss.parts) == {"loss_ce", "loss_aux", "loss_synergy_kl"}
    assert float(loss.parts["loss_synergy_kl"]) == pytest.approx(expected, rel=1e-12)


def test_without_smoothing_both_forms_have_the_same_gradients_and_with_it_they_differ_by_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gradient(form: str) -> Tensor:
        inputs = {name: z.requires_grad_() for name, z in logits_of("c1", "c2", "c3").items()}
        loss = SynergyLoss("bidir", form=form)(inputs, TARGETS)
        return torch.cat(torch.autograd.grad(loss.total, list(inputs.values())))

    exact, smoothed = gradient("cross_entropy"), gradient("smoothed_kl")
    assert not torch.equal(exact, smoothed)
    assert torch.allclose(exact, smoothed, atol=1e-2)
    monkeypatch.setattr(synergy, "SMOOTHING", 0.0)
    assert torch.allclose(exact, gradient("smoothed_kl"), rtol=1e-10, atol=1e-12)
