"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """A CPU generator for one purpose.

    The same arguments give the same numbers on every machine.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    )
