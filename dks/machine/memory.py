"""The memory that training takes."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

from dks.machine import control_groups

MIB = 2**20


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take, on a GPU of its memory.

    None: the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [each for each in (_available(), control_groups.free_memory()) if each is not None]
    return min(known, default=None)


def _available() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


class PeakMemory:
    """The most memory in use at once since this was made, in MiB.

    On CUDA what tensors take (`torch.cuda.max_memory_allocated`). On the CPU by how much the
    resident set of the process grew, from Linux's own account; elsewhere it is not known. What the
    process held before, the program itself for one, is not in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before: float | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            with suppress(OSError, AttributeError):  # no other C library than glibc has it
                # what was freed goes back, or it would be used again unseen
                ctypes.CDLL(None).malloc_trim(0)
            # sets the peak to what is in use now
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _resident("VmHWM")
        except OSError:
            self._before = None

    def mib(self) -> float | None:
        """None where it is not known."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        peak = _resident("VmHWM")
        return None if peak is None or self._before is None else max(0.0, peak - self._before)


def _resident(key: str) -> float | None:
    """A size from /proc/self/status, MiB."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    return None
