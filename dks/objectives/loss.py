"""What every loss term shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of.

    `total` is the scalar to differentiate, `parts` its named summands.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Term(Protocol):
    """A summand of the objective beside the synergy loss.

    `name` is that of its value among the parts of the loss, for example "loss_kd".
    """

    name: str

    def observe(self, images: Tensor) -> Any:
        """What the term needs of the images (N, 3, H, W), in the precision of the network."""

    def __call__(self, logits: dict[str, Tensor], labels: Tensor, observed: Any) -> Tensor:
        """Classifier -> (N, K), labels (N,) and what `observe` gave -> scalar, weighted."""
