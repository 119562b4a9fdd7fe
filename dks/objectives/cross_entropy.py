"""The cross-entropy of every classifier: L_c and L_a of equation (4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropies(
    log_probs: Mapping[str, Tensor], targets: Tensor, alpha: float
) -> dict[str, Tensor]:
    """The mean cross-entropy of c1, and the sum of those of the auxiliary classifiers.

    Args:
        log_probs: classifier -> (N, K); c1 must be there.
        targets: (N,), class indices.
        alpha: weight of each auxiliary classifier.

    Returns:
        `loss_ce` and, where there are auxiliary classifiers, `loss_aux`, weighted.
    """
    found = {name: F.nll_loss(log_p, targets) for name, log_p in log_probs.items()}
    parts = {"loss_ce": found.pop("c1")}
    if found:
        parts["loss_aux"] = alpha * torch.stack(list(found.values())).sum()
    return parts
