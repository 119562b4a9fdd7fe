"""Activation checkpointing.

Blocks that forget their activations and compute them again in the backward pass.

Memory then grows with the number of blocks and no longer with the number of layers, for about a
third more time. What a network computes stays the same to the last bit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def forget_activations(
    module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]
) -> None:
    """Make every module of that kind inside `module` keep only its inputs and outputs between
    forward and backward, in place.

    Outputs, gradients, random numbers (dropout) and buffers (the running statistics of batch
    normalisation) are what they would be without. Parameters and buffers keep their names;
    evaluation and `torch.no_grad` are left alone.
    """
    for layer in module.modules():
        if isinstance(layer, kind):
            layer.forward = _Recomputed(layer)


class _Recomputed:
    """A module's `forward` under checkpointing.

    A class, so that networks can be copied and pickled.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        forward = type(self.module).forward
        if not (self.module.training and torch.is_grad_enabled()):
            return forward(self.module, *inputs)
        # a compiled block computes again without its side effects
        if torch.compiler.is_compiling():
            return checkpoint(forward, self.module, *inputs, use_reentrant=False)
        return checkpoint(
            forward, self.module, *inputs, use_reentrant=False, context_fn=self._contexts
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _ScratchBuffers(self.module)


class _ScratchBuffers(AbstractContextManager[None]):
    """Lets the module write to copies of its buffers.

    A second computation must not update running statistics again.

    A class, for a graph that is retained is computed again as often as it is differentiated.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._kept: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        layers = self.module.modules()
        self._kept = [
            (layer, name, own)
            for layer in layers
            for name, own in layer._buffers.items()
            if own is not None
        ]
        for layer, name, own in self._kept:
            layer._buffers[name] = own.clone()

    def __exit__(self, *error: object) -> None:
        for layer, name, own in self._kept:
            layer._buffers[name] = own
        self._kept = []
