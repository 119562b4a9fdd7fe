"""Where a run computes: device, threads, host, versions and the code's git commit."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from functools import lru_cache
from pathlib import Path

import torch


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is a usable device; of several processes on a machine each has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    return torch.device("cuda", local_rank) if device.type == "cuda" and device.index is None else device


def device_name(device: torch.device) -> str:
    """For a record: "cpu", or "cuda:0 (NVIDIA H100)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def available_threads() -> int:
    """What OMP_NUM_THREADS says, else the cores this process may use."""
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host() -> str:
    return socket.gethostname()


def versions() -> dict[str, str]:
    """What computes the numbers."""
    from dks import __version__

    found = {"dks": __version__, "python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the code, with "-dirty" where files differ from it; None outside a repository."""
    where = Path(__file__).resolve().parent
    try:
        commit = _git(where, "rev-parse", "HEAD")
        # An installed package may lie inside somebody else's repository, which says nothing about this code.
        if not _git(where, "ls-files", "--", __file__):
            return None
        return f"{commit}-dirty" if _git(where, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
