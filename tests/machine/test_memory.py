"""The memory that training takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dks.machine.memory import PeakMemory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not say")
def test_peak_memory_counts_what_was_used_in_between_and_freed() -> None:
    peak = PeakMemory(torch.device("cpu"))
    held = torch.ones(50 * 2**20, dtype=torch.uint8)
    del held
    assert 45 < (peak.mib() or 0) < 150
    assert (PeakMemory(torch.device("cpu")).mib() or 0) < 20
