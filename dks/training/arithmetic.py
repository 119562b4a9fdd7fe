"""What `compute` asks for, as torch takes it."""

from __future__ import annotations

import torch

from dks.config.schema import Compute, Precision

_HALF = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def choose_operations(compute: Compute) -> None:
    """Have this process use only operations that give the same bits every time, or whichever are
    fastest.
    """
    # to ask for it imports torch's compiler
    if torch.are_deterministic_algorithms_enabled() != compute.deterministic:
        torch.use_deterministic_algorithms(compute.deterministic)
    torch.backends.cudnn.deterministic = compute.deterministic
    # tries the algorithms once for each shape
    torch.backends.cudnn.benchmark = not compute.deterministic
    # torch's own default differs between convolutions and products
    torch.backends.cudnn.allow_tf32 = compute.tf32
    torch.backends.cuda.matmul.allow_tf32 = compute.tf32


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which convolutions and matrix products compute in that precision.

    No weight is used twice in a pass, so converted copies are not kept; a CUDA graph could not use
    them anyway.
    """
    half = _HALF.get(precision)
    return torch.autocast(
        device.type, half or torch.bfloat16, enabled=half is not None, cache_enabled=False
    )
