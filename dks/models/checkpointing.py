"""Activation checkpointing: blocks that forget their activations and compute them again in the backward pass.

Memory then grows with the number of blocks and no longer with the number of layers, for about a third more time. What a
network computes stays the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def forget_activations(module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> None:
    """Make every module of that kind inside `module` keep only its inputs and outputs between forward and backward, in place.

    Outputs, gradients, random numbers (dropout) and buffers (the running statistics of batch normalisation) are what they would
    be without. Parameters and buffers keep their names; evaluation and `torch.no_grad` are left alone.
    """
    for layer in module.modules():
        if isinstance(layer, kind):
            layer.forward = _Recomputed(layer)


class _Recomputed:
    """A module's `forward` under checkpointing; a class, so that networks can be copied and pickled."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        forward = type(self.module).forward
        if not (self.module.training and torch.is_grad_enabled()):
            return forward(self.module, *inputs)
        if torch.compiler.is_compiling():  # a compiled block computes again without its side effects
            return checkpoint(forward, self.module, *inputs, use_reentrant=False)
        return checkpoint(forward, self.module, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _scratch_buffers(self.module)


@contextmanager
def _scratch_buffers(module: nn.Module) -> Iterator[None]:
    """Lets the module write to copies of its buffers: the second computation must not update running statistics again."""
    kept = [
        (layer, name, buffer) for layer in module.modules() for name, buffer in layer._buffers.items() if buffer is not None
    ]
    for layer, name, buffer in kept:
        layer._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            layer._buffers[name] = buffer
