"""The losses of deep supervision and knowledge synergy, equation (4) of the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dks.config.registry import find, is_offered
from dks.config.schema import Strategy, SynergyForm
from dks.objectives.cross_entropy import cross_entropies
from dks.objectives.loss import Loss

# of the authors' code; below the resolution of float16, so probabilities are never smoothed in half
# precision
SMOOTHING = 1e-8

Pairs = list[tuple[str, str]]


def matching_pairs(
    strategy: Strategy | str, classifiers: Iterable[str], options: Mapping[str, Any] | None = None
) -> Pairs:
    """The ordered pairs (m, n), "m teaches n", of a matching strategy (the set B of equation 4).

    Args:
        strategy: none, topdown, bottomup or bidir, or the name of an extension.
        classifiers: names like "c1" (deepest), "c2", ...; a smaller number is a deeper classifier.
        options: of an extension; None: its defaults.

    Raises:
        ValueError: no such strategy.
        RequestError: the extension cannot be loaded, is of another version, or names other
            classifiers.
    """
    return _matcher(strategy, options)(sorted(classifiers, key=_depth))


def _matcher(
    strategy: Strategy | str, options: Mapping[str, Any] | None
) -> Callable[[Sequence[str]], Pairs]:
    """The pairs of a strategy as a function of the classifiers, from deep to shallow."""
    if strategy not in list(Strategy) and (
        is_offered("matching_strategy", strategy) or "@" in strategy
    ):
        component = find("matching_strategy", strategy).component
        return partial(component.value, options=component.filled_in(options or {}))
    return partial(_own_pairs, Strategy(strategy))


def _own_pairs(strategy: Strategy, order: Sequence[str]) -> Pairs:
    topdown = [(deep, shallow) for i, deep in enumerate(order) for shallow in order[i + 1 :]]
    bottomup = [(shallow, deep) for deep, shallow in topdown]
    return {
        Strategy.none: [],
        Strategy.topdown: topdown,
        Strategy.bottomup: bottomup,
        Strategy.bidir: topdown + bottomup,
    }[strategy]


class SynergyLoss(nn.Module):
    """L = L_c + L_a + L_s.

    Cross-entropy of c1, of the auxiliary classifiers, and of every matched pair (equation 4).

    L_s = mean_i sum_{(m,n) in B} -beta sum_k f_m^k log f_n^k, where the teacher's probabilities f_m
    are constants: no gradient flows into m through the pair (m, n). Half-precision logits are
    raised to float32 first.

    Args:
        strategy: the pairs B: none (deep supervision), topdown, bottomup, bidir, or the name of an
            extension.
        alpha: weight of each auxiliary classifier's cross-entropy (1 in the paper).
        beta: weight of each matched pair (1 in the paper).
        form: "cross_entropy" as in the paper, or "smoothed_kl" as in the authors' code: KL(f_m ||
            f_n) with both sides smoothed, (p + 1e-8) / (1 + K 1e-8). Without the smoothing the two
            differ by the entropy of f_m, a constant.
        options: of a strategy that is an extension; None: its defaults.
    """

    def __init__(
        self,
        strategy: Strategy | str = Strategy.bidir,
        alpha: float = 1.0,
        beta: float = 1.0,
        form: SynergyForm | str = SynergyForm.cross_entropy,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.form = alpha, beta, SynergyForm(form)
        self._pairs = _matcher(strategy, options)

    def forward(self, logits: Mapping[str, Tensor], targets: Tensor) -> Loss:
        """The loss of a batch.

        Args:
            logits: {"c1": (N, K), "c2": (N, K), ...}; c1 must be there.
            targets: (N,) class indices.

        Returns:
            Parts `loss_ce`, and where they apply `loss_aux` and `loss_synergy` (`loss_synergy_kl`
            in the smoothed form), each with its weight in it; `total` is their sum.
        """
        log_probs = {
            name: F.log_softmax(z, dim=1, dtype=torch.promote_types(z.dtype, torch.float32))
            for name, z in logits.items()
        }
        parts = cross_entropies(log_probs, targets, self.alpha)
        if pairs := self._pairs(sorted(logits, key=_depth)):
            if self.form is SynergyForm.smoothed_kl:
                parts["loss_synergy_kl"] = self.beta * _smoothed_kl(pairs, log_probs)
            else:
                parts["loss_synergy"] = self.beta * _synergy(pairs, log_probs)
        return Loss(torch.stack(list(parts.values())).sum(), parts)


def _synergy(pairs: Pairs, log_probs: Mapping[str, Tensor]) -> Tensor:
    """mean_i sum_{(m,n)} -sum_k f_m^k log f_n^k.

    The teachers of one classifier are added up before the one product.
    """
    probs = {name: log_p.detach().exp() for name, log_p in log_probs.items()}
    terms = []
    for student in {n: None for _, n in pairs}:  # ordered
        taught = torch.stack([probs[m] for m, n in pairs if n == student]).sum(dim=0)  # (N, K)
        terms.append(-(taught * log_probs[student]).sum(dim=1).mean())
    return torch.stack(terms).sum()


def _smoothed_kl(pairs: Pairs, log_probs: Mapping[str, Tensor]) -> Tensor:
    """mean_i sum_{(m,n)} sum_k g_m^k (log g_m^k - log g_n^k), where g are the smoothed
    probabilities.
    """
    smooth = {
        name: (log_p.exp() + SMOOTHING) / (1 + log_p.shape[1] * SMOOTHING)
        for name, log_p in log_probs.items()
    }
    terms = [
        (smooth[m].detach() * (smooth[m].detach().log() - smooth[n].log())).sum(dim=1).mean()
        for m, n in pairs
    ]
    return torch.stack(terms).sum()


def _depth(classifier: str) -> int:
    if not (classifier[:1] == "c" and classifier[1:].isdecimal()):
        raise ValueError(f"classifier {classifier!r}: names are c1 (the deepest), c2, c3, ...")
    return int(classifier[1:])
