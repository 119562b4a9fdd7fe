"""Corrupted training labels (Section 4.3 of the paper, "DKS on Noisy Data")."""

from __future__ import annotations

import torch
from torch import Tensor

from dks.config.schema import LabelNoise, NoiseKind
from dks.data.seeds import generator


def corrupt(
    labels: Tensor, noise: LabelNoise, num_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Give exactly round(ratio * N) labels another class, drawn uniformly from the wrong ones.

    Args:
        labels: (N,), int64.

    Returns:
        The new labels (N,) and the sorted indices of the changed ones.
    """
    if noise.kind is NoiseKind.none:
        return labels, torch.empty(0, dtype=torch.int64)
    draw = generator(seed, "label noise")
    changed = (
        torch.randperm(len(labels), generator=draw)[: round(noise.ratio * len(labels))]
        .sort()
        .values
    )
    # A shift by 1 to K-1 classes reaches every wrong class with the same probability and never the
    # true one.
    shift = torch.randint(1, num_classes, changed.shape, generator=draw)
    corrupted = labels.clone()
    corrupted[changed] = (labels[changed] + shift) % num_classes
    return corrupted, changed
