"""Where a run computes: device, threads, host, versions and packages."""

from __future__ import annotations

import os
import platform
import re
import socket
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from dks.machine.memory import MIB


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is a usable device.

    Of several processes on a machine each has a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    return (
        torch.device("cuda", local_rank)
        if device.type == "cuda" and device.index is None
        else device
    )


def device_name(device: torch.device) -> str:
    """For a record: "cpu", or "cuda:0 (NVIDIA H100)"."""
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    )


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
        if (driver := _driver()) is not None:
            found["driver"] = driver
    return found


@lru_cache(maxsize=1)
def environment(device: torch.device) -> dict[str, Any]:
    """Machine, system and software of a run on that device, for `environment.json`.

    None: not known or not there.
    """
    import psutil

    has_cuda = device.type == "cuda"  # a run on the CPU leaves the GPUs alone
    packages = _packages()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "distribution": _distribution(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_mib": psutil.virtual_memory().total // MIB,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if has_cuda
        else [],
        "driver": _driver(),
        "torch": torch.__version__,
        "torchvision": packages.get("torchvision"),
        "cuda": torch.version.cuda,  # that torch was built for
        "cudnn": torch.backends.cudnn.version() if has_cuda else None,
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _packages() -> dict[str, str]:
    """Name and version of every installed package.

    `importlib.metadata` would parse all that they say of themselves.
    """
    found = {}
    for each in distributions():
        head = (each.read_text("METADATA") or each.read_text("PKG-INFO") or "").partition("\n\n")[0]
        facts = dict(re.findall(r"^(Name|Version): *(.+?) *$", head, re.MULTILINE))
        if facts.keys() == {"Name", "Version"}:
            found[facts["Name"]] = facts["Version"]
    return found


def _distribution() -> str | None:
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return None


def _cpu_model() -> str:
    with suppress(OSError):
        if found := re.search(
            r"^model name\s*:\s*(.+)$",
            Path("/proc/cpuinfo").read_text(encoding="utf-8"),
            re.MULTILINE,
        ):
            return found[1]
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    """The version of NVIDIA's kernel module."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        if found := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text):
            return found[1]
    return None
