"""Losses and errors of an epoch, summed on the device and read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dks.config.schema import Precision
from dks.machine.world import ALONE, World
from dks.models.network import SupervisedNetwork
from dks.objectives.loss import Loss
from dks.training.arithmetic import autocast
from dks.training.confusion import Confusion


class Tally:
    """Means over all images of an epoch. Nothing is copied to the host before `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def state(self) -> dict[str, Any]:
        """What was counted, on the CPU."""
        return {
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "images": self._images,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device) -> Tally:
        """One that goes on from what was counted in this state."""
        tally = cls()
        tally._images = state["images"]
        tally._sums = {name: value.to(device) for name, value in state["sums"].items()}
        return tally

    def images(self, world: World = ALONE) -> int:
        """Images counted by all processes."""
        return int(world.sum(torch.tensor(self._images)))

    def add_losses(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Batch means over `images` images, name -> scalar."""
        for name, value in losses.items():
            self._add(name, value.detach() * images)

    def add_errors(
        self, logits: Mapping[str, Tensor], labels: Tensor, top: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """Count the images whose label is not among the `k` largest logits, for every classifier
        and k in `top`. With no more than k classes that is no image, and is left out; but not the
        error itself, k = 1.

        Returns:
            classifier -> (N,) the classes that it takes the images for.
        """
        self._images += len(labels)
        predictions = {}
        for classifier, z in logits.items():
            ranks = min(max(top), z.shape[1])
            largest = z.detach().topk(ranks, dim=1).indices  # (N, ranks)
            predictions[classifier], hits = largest[:, 0], largest == labels[:, None]
            for k in top:
                if k > 1 and k >= z.shape[1]:
                    continue
                self._add(
                    f"top{k}_error{suffix(classifier)}", 100 * (len(labels) - hits[:, :k].sum())
                )
        return predictions

    def read(self, prefix: str, world: World = ALONE) -> dict[str, float]:
        """All means over the images of all processes, errors in percent.

        One copy from the device.
        """
        sums = world.sum(torch.stack([value.double() for value in self._sums.values()]))
        means = (sums / self.images(world)).tolist()
        return {f"{prefix}/{name}": mean for name, mean in zip(self._sums, means, strict=True)}

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def suffix(classifier: str) -> str:
    """What a classifier appends to the name of a metric: nothing for c1, "_c2" for c2, ..."""
    return "" if classifier == "c1" else f"_{classifier}"


def training_losses(loss: Loss) -> dict[str, Tensor]:
    """`loss` (the total) and its parts by their journal names."""
    return {"loss": loss.total, **loss.parts}


def test_losses(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """The cross-entropy of every classifier: `loss` for c1, `loss_c2`, ..."""
    return {f"loss{suffix(name)}": F.cross_entropy(z.float(), labels) for name, z in logits.items()}


@torch.inference_mode()
def evaluate(
    network: SupervisedNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    world: World = ALONE,
    prefix: str = "test",
    confusion: Confusion | None = None,
    precision: Precision = Precision.fp32,
) -> dict[str, float]:
    """The losses and errors of every classifier over the images of all processes, by the names of
    the journal.

    Args:
        network: on `device`; it is put into evaluation mode.
        batches: normalised images (N, 3, H, W) and labels (N,) of this process, on any device.
        prefix: what the names begin with.
        confusion: counts what is taken for what, if given.
        precision: that the network computes in.
    """
    tally = Tally()
    network.eval()
    world.synchronise(network)
    for images, labels in batches:
        labels = labels.to(device, non_blocking=True)
        with autocast(precision, device):
            logits = network(images.to(device, non_blocking=True))
        tally.add_losses(test_losses(logits, labels), len(labels))
        predictions = tally.add_errors(logits, labels, top=(1, 5))
        if confusion is not None:
            confusion.add(predictions, labels)
    return tally.read(prefix, world)
