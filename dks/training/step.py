"""One step of training: forward pass, losses, backward pass and update."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD

from dks.config.schema import Config, Precision
from dks.data.batches import Batch
from dks.machine.world import ALONE, World
from dks.models.network import SupervisedNetwork
from dks.objectives.loss import Loss
from dks.objectives.objective import Objective
from dks.training.arithmetic import autocast
from dks.training.graph import Graph


class Outputs(NamedTuple):
    """What the forward pass of a batch gives."""

    logits: dict[str, Tensor]  # classifier -> (N, K), in the precision of the network
    loss: Loss  # float32


class Step:
    """Takes a network one step further, in the precision and by the means that `config.compute`
    asks for.

    `forward` and `update` are two calls, so that a loss can be looked at before it changes a
    weight.

    Args:
        config: resolved.
        network: on `device`, in the memory format it is to be trained in.
        teacher: frozen, images (N, 3, H, W) -> logits (N, K); None without distillation.
        world: the processes that train together.
    """

    def __init__(
        self,
        config: Config,
        network: SupervisedNetwork,
        device: torch.device,
        teacher: nn.Module | None = None,
        world: World = ALONE,
    ) -> None:
        recipe, compute = config.recipe, config.compute
        self.network = network
        self.precision, self.device, self.batch_size = compute.precision, device, recipe.batch_size
        self.objective = Objective(config, teacher)
        self.optimizer = SGD(
            network.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            fused=True,
        )
        # Without one, small gradients are 0 in float16. It does nothing in the other precisions.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is Precision.fp16)
        module = cast(nn.Module, torch.compile(network)) if compute.compile else network
        self._replica = world.replicate(module)
        # The processes of a world exchange gradients in the backward pass, which is not recorded.
        self._graph = (
            Graph(self._forward, self._backward, network)
            if _can_record(config, device, world)
            else None
        )

    def forward(self, batch: Batch) -> Outputs:
        """The outputs for a batch. A recorded step goes through the backward pass at once."""
        if self._graph is not None and len(batch.labels) == self.batch_size:
            return self._graph(batch)
        return self._forward(batch)

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Change the weights by the gradients of the batch's loss."""
        if self._graph is None or not self._graph.owns(outputs):
            self._backward(outputs, batch.weight)
        if not self.optimizer.state:
            self._begin_momentum()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def rehearse(self, images: Tensor, labels: Tensor) -> None:
        """Both passes for nothing: what they set up once is set up, and no weight changes."""
        self._backward(self._forward(Batch(images, labels)), 1.0)
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on besides the network."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _forward(self, batch: Batch) -> Outputs:
        with autocast(self.precision, self.device):
            logits = self._replica(batch.images)
            observed = self.objective.observe(batch.images)
        return Outputs(logits, self.objective(logits, batch.labels, observed))

    def _backward(self, outputs: Outputs, weight: float) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(outputs.loss.total * weight).backward()

    def _begin_momentum(self) -> None:
        """With zeros, which a first step takes as it takes none.

        The optimiser itself makes the buffers in that step and fills them unless it is skipped, as
        the scaling of float16 skips it where a gradient is infinite: the next steps would go on
        from whatever was in the memory.
        """
        for parameter in self.network.parameters() if self.optimizer.defaults["momentum"] else ():
            self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _can_record(config: Config, device: torch.device, world: World) -> bool:
    return config.compute.cuda_graphs and device.type == "cuda" and world.size == 1
