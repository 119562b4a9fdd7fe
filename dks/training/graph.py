"""A training step recorded as a CUDA graph.

What limits small networks is the launching of their many kernels, one by one; a replay launches all
of them at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dks.data.batches import Batch

if TYPE_CHECKING:
    from dks.training.step import Outputs

log = logging.getLogger(__name__)

# Passes before the recording, in which libraries choose their algorithms and allocate what they
# need.
WARM_UP = 3


class Graph:
    """Forward and backward pass of batches of one size, recorded at the first and then replayed.

    A replay computes what the passes compute, on the same random numbers. Its outputs and gradients
    lie where the next replay overwrites them. Where the passes cannot be recorded they are run as
    they are, with a line in the log.

    Args:
        forward, backward: the passes; `backward(outputs, 1.0)` leaves gradients in the parameters
            of `module`.
        module: its buffers and the random state are as they were after warming up.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Outputs],
        backward: Callable[[Outputs, float], None],
        module: nn.Module,
    ) -> None:
        self._forward, self._backward, self._module = forward, backward, module
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False
        self._input: Batch | None = None
        self._outputs: Outputs | None = None
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []

    def __call__(self, batch: Batch) -> Outputs:
        """The outputs of the batch.

        Its gradients are in the parameters if this graph `owns` the outputs.
        """
        if self._graph is None and not self._failed:
            self._record(batch)
        if self._graph is None:
            return self._forward(batch)
        assert self._input is not None and self._outputs is not None
        self._input.images.copy_(batch.images)
        self._input.labels.copy_(batch.labels)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._outputs

    def owns(self, outputs: Outputs) -> bool:
        """Do they come from a replay?"""
        return outputs is self._outputs

    def _record(self, batch: Batch) -> None:
        self._input = Batch(
            batch.images.clone(memory_format=torch.preserve_format), batch.labels.clone()
        )
        parameters = list(self._module.parameters())
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        device = batch.images.device
        random = torch.cuda.get_rng_state(device)
        try:
            self._warm_up(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self._passes()
        except RuntimeError:
            log.warning(
                "the step cannot be recorded as a CUDA graph; it is launched kernel by kernel",
                exc_info=True,
            )
            self._failed = True
        else:
            self._graph, self._outputs = graph, outputs
            self._gradients = [(parameter, parameter.grad) for parameter in parameters]
        finally:
            torch.cuda.set_rng_state(random, device)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def _warm_up(self, device: torch.device) -> None:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._passes()
        torch.cuda.current_stream(device).wait_stream(side)

    def _passes(self) -> Any:
        assert self._input is not None
        outputs = self._forward(self._input)
        self._backward(outputs, 1.0)
        return _detached(outputs)


def _detached(outputs: Outputs) -> Outputs:
    """The same values without their tape, which would keep every activation alive."""
    logits = {name: value.detach() for name, value in outputs.logits.items()}
    loss = outputs.loss
    parts = {name: value.detach() for name, value in loss.parts.items()}
    return type(outputs)(logits, type(loss)(loss.total.detach(), parts))
