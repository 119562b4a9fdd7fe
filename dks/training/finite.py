"""Stops a run whose loss is no longer a finite number."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from dks.machine.world import ALONE, World
from dks.objectives.loss import Loss
from dks.training.metrics import training_losses


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite."""

    def __init__(
        self, epoch: int, step: int, values: dict[str, float], last_good: dict[str, float]
    ) -> None:
        bad = ", ".join(
            f"{name}={value}" for name, value in values.items() if not math.isfinite(value)
        )
        good = ", ".join(f"{name}={value:.4g}" for name, value in last_good.items()) or "none"
        super().__init__(
            f"non-finite loss at epoch {epoch}, step {step}: {bad}; last good values: {good}"
        )
        self.details = {
            "epoch": epoch,
            "step": step,
            "values": {k: str(v) for k, v in values.items()},
            "last_good": last_good,
        }


class FiniteGuard:
    """Looks at every step's losses: at once on the CPU.

    On CUDA as soon as a copy has arrived, without waiting for it.
    """

    def __init__(self, world: World = ALONE) -> None:
        self._world = world
        self._pending: deque[tuple[int, int, list[str], Tensor, torch.cuda.Event | None]] = deque()
        self._last_good: dict[str, float] = {}

    def check(self, epoch: int, step: int, loss: Loss, weight: float = 1.0) -> None:
        """Raises `NonFiniteLoss` for this step or for an earlier one whose values have arrived.

        `weight` is that of this process's part of the batch; all processes see the loss of the
        whole, and stop together.
        """
        losses = training_losses(loss)
        values = torch.stack([value.detach() for value in losses.values()])
        if self._world.size > 1:
            values = self._world.sum(values * weight) / self._world.size
        event = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((epoch, step, list(losses), values, event))
        while self._pending and (self._pending[0][-1] is None or self._pending[0][-1].query()):
            self._look()

    def flush(self) -> None:
        """Look at what is still on its way."""
        while self._pending:
            if (event := self._pending[0][-1]) is not None:
                event.synchronize()
            self._look()

    def _look(self) -> None:
        epoch, step, names, tensor, _ = self._pending.popleft()
        values = dict(zip(names, tensor.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteLoss(epoch, step, values, self._last_good)
        self._last_good = values
