"""Which classes are taken for which: counted on the device, read once."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import torch
from torch import Tensor

from dks.machine.world import ALONE, World


class Confusion:
    """The confusion matrix of every classifier.

    Args:
        classes: K, of the labels.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._counts: dict[str, Tensor] = {}  # (K * K,)

    def add(self, predictions: Mapping[str, Tensor], labels: Tensor) -> None:
        """Count a batch.

        Args:
            predictions: classifier -> (N,) classes, on the device of the labels.
            labels: (N,) the true ones.
        """
        for name, predicted in predictions.items():
            if name not in self._counts:
                self._counts[name] = labels.new_zeros(self._classes**2)
            # torch.bincount would look at the values first, for which the host waits.
            self._counts[name].scatter_add_(
                0, labels * self._classes + predicted, torch.ones_like(labels)
            )

    def read(self, world: World = ALONE) -> dict[str, Tensor]:
        """Classifier -> (K, K) images of all processes, a row a true class; on the CPU."""
        counts = world.sum(torch.stack(list(self._counts.values()))).cpu()
        return {
            name: each.view(self._classes, -1)
            for name, each in zip(self._counts, counts, strict=True)
        }


def to_csv(matrices: Mapping[str, Tensor]) -> str:
    """Columns classifier, true, predicted, images; a row for whatever happened at least once."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("classifier", "true", "predicted", "images"))
    for name, matrix in matrices.items():
        for true, predicted in matrix.nonzero().tolist():
            rows.writerow((name, true, predicted, int(matrix[true, predicted])))
    return text.getvalue()
