"""The machine and what computes on it.

Python, torch and its devices, threads, the clock, the code's commit.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.errors import one_line
from dks.machine.control_groups import cpu_quota
from dks.tools.doctor.check import Finding, green, grey, red, yellow

if TYPE_CHECKING:
    import torch

# seconds that a clock may be off before it is worth a word, and before it is wrong
SKEW, WRONG = 2.0, 60.0
_NEW_VENV = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e ."


def interpreter() -> Iterator[Finding]:
    """Which Python, whether it is new enough, and whether it has packages of its own."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        needed = str(metadata.metadata("dks")["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        needed = ""
    if needed and not SpecifierSet(needed).contains(version, prereleases=True):
        yield red(
            "Python", f"{version}, dks needs {needed}", f"with another interpreter: {_NEW_VENV}"
        )
    else:
        yield green("Python", f"{version} {sys.executable}")
    kind = (
        "virtual environment"
        if sys.prefix != sys.base_prefix
        else "Conda environment"
        if _conda()
        else ""
    )
    if kind:
        yield green("environment", f"{kind} {sys.prefix}")
    elif Path(_stdlib(), "EXTERNALLY-MANAGED").exists():
        yield yellow(
            "environment", "none of its own: packages belong to the operating system", _NEW_VENV
        )
    else:
        yield green("environment", f"no virtual environment; packages are in {sys.prefix}")


def _conda() -> bool:
    return Path(sys.prefix, "conda-meta").is_dir()


def _stdlib() -> str:
    import sysconfig

    return sysconfig.get_path("stdlib")


def torch_works() -> Iterator[Finding]:
    """torch is imported and computes on the CPU."""
    began = time.monotonic()
    try:
        import torch
    except Exception as error:  # ImportError; OSError of a library it needs
        yield red(
            "torch",
            f"cannot be imported: {one_line(str(error)) or type(error).__name__}",
            f"{sys.executable} -m pip install --force-reinstall -c constraints.txt torch "
            f"torchvision",
        )
        return
    yield green("torch", f"{torch.__version__}, imported in {time.monotonic() - began:.1f} s")
    yield _computes(
        torch.device("cpu"),
        "CPU",
        "reinstall torch; if that does not help, the processor or its memory is faulty",
    )


def cuda(device: str) -> Iterator[Finding]:
    """Every CUDA device, or why there is none. `device`: the one that the configuration names."""
    import torch

    wanted = device.startswith("cuda")
    # torch says why it cannot use a driver in a warning
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        reason = _why_not() if count == 0 else ""
    driver = _driver()
    if count == 0:
        reason = " ".join([*(one_line(str(each.message)) for each in said), reason]).strip()
        if driver:
            text = f"NVIDIA driver {driver} is there, but torch cannot use it: {one_line(reason)}"
            yield (red if wanted else yellow)("CUDA", text, _cuda_advice())
        elif wanted:
            yield red(
                "CUDA",
                f"device={device}, but there is no NVIDIA driver here",
                "device=auto, or a machine with a GPU",
            )
        else:
            yield grey("CUDA", "no NVIDIA driver here: the CPU computes")
        return
    yield green(
        "CUDA", f"{torch.version.cuda}, driver {driver or 'of unknown version'}, {count} device(s)"
    )
    for number in range(count):
        yield from _cuda_device(number)
    if device.partition(":")[2].isdecimal() and int(device.partition(":")[2]) >= count:
        yield red(
            "device", f"device={device}, but there are {count}, counted from 0", "device=auto"
        )


def _why_not() -> str:
    """What torch says when it is made to use CUDA."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:  # AssertionError: not compiled with CUDA enabled; RuntimeError
        return str(error)
    return "it finds no device"


def _cuda_advice() -> str:
    import torch

    if torch.version.cuda is None:
        return (
            "this torch is built without CUDA: install a build for CUDA, see "
            "https://pytorch.org/get-started/locally"
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all devices; unset it"
    return (
        f"nvidia-smi must list a GPU; torch is built for CUDA {torch.version.cuda}: update "
        f"the driver, or take another torch"
    )


def _cuda_device(number: int) -> Iterator[Finding]:
    import torch

    name = f"cuda:{number}"
    try:
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        with torch.cuda.device(number):
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    except RuntimeError as error:
        yield red(
            name,
            one_line(str(error)),
            "see with nvidia-smi who uses it and in which mode; or choose another device",
        )
        return
    text = f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, {bf16}"
    if free < total / 10:
        yield yellow(name, text, "other processes hold most of its memory; nvidia-smi names them")
    else:
        yield green(name, text)
    yield _computes(
        torch.device("cuda", number),
        name,
        f"nvidia-smi -i {number} -q shows errors of its memory; or use another device",
    )


def _computes(device: torch.device, name: str, advice: str) -> Finding:
    """A small convolution, forward and backward.

    All its numbers are small integers, so they are exact everywhere.
    """
    import torch

    image = [[(3 * y + 5 * x) % 7 for x in range(5)] for y in range(5)]
    kernel = [[1, -2, 0], [3, 1, -1], [0, 2, 1]]
    try:
        x = torch.tensor([[image]], dtype=torch.float32, device=device, requires_grad=True)
        w = torch.tensor([[kernel]], dtype=torch.float32, device=device, requires_grad=True)
        y = torch.nn.functional.conv2d(x, w)
        (y * y).sum().backward()
        assert x.grad is not None and w.grad is not None
        got = [tensor.detach().cpu().squeeze().tolist() for tensor in (y, w.grad, x.grad)]
    except RuntimeError as error:
        return red(f"{name} computes", f"a convolution fails: {one_line(str(error))}", advice)
    if got != _by_hand(image, kernel):
        return red(f"{name} computes", "a convolution gives wrong numbers", advice)
    return green(f"{name} computes", "a convolution and its gradients are right")


def _by_hand(image: list[list[int]], kernel: list[list[int]]) -> list[list[list[int]]]:
    """y = image * kernel, and the gradients of the sum of y squared, to the kernel and to the
    image.
    """
    side, places = len(image), range(len(kernel))
    outputs = range(side - len(kernel) + 1)
    y = [
        [sum(kernel[i][j] * image[r + i][c + j] for i in places for j in places) for c in outputs]
        for r in outputs
    ]
    to_kernel = [
        [sum(2 * y[r][c] * image[r + i][c + j] for r in outputs for c in outputs) for j in places]
        for i in places
    ]
    to_image = [[0] * side for _ in range(side)]
    for r in outputs:
        for c in outputs:
            for i in places:
                for j in places:
                    to_image[r + i][c + j] += 2 * y[r][c] * kernel[i][j]
    return [y, to_kernel, to_image]


def _driver() -> str:
    """The version of the NVIDIA driver; empty without one."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            if asked.returncode == 0 and asked.stdout.strip():
                return asked.stdout.split()[0]
        except (OSError, subprocess.TimeoutExpired):
            pass
    loaded = Path("/proc/driver/nvidia/version")
    words = loaded.read_text(encoding="utf-8").splitlines()[0].split() if loaded.is_file() else []
    return next(
        (word for word in words if word[0].isdigit() and "." in word),
        "of unknown version" if words else "",
    )


def threads(configured: int | None) -> Iterator[Finding]:
    """Threads asked for against cores that may be used."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = cpu_quota()
    usable = cores if quota is None else min(cores, max(1, round(quota)))
    text = f"{usable} of {os.cpu_count()} cores"
    if quota is not None and quota < cores:
        text += f" (a control group allows the time of {quota:g})"
    asked = os.environ.get("OMP_NUM_THREADS", "")
    text += f", OMP_NUM_THREADS={asked}" if asked else ", OMP_NUM_THREADS is not set"
    if configured is not None and configured > usable:
        yield yellow(
            "threads",
            f"{text}, threads={configured}",
            f"threads={usable}: more threads than cores wait for each other",
        )
    elif asked.isdecimal() and int(asked) > usable:
        yield yellow(
            "threads",
            text,
            f"export OMP_NUM_THREADS={usable}: more threads than cores wait for each other",
        )
    elif not asked and configured is None and usable < cores:
        yield yellow(
            "threads",
            text,
            f"export OMP_NUM_THREADS={usable}: torch would start {cores} threads, which wait for "
            f"each other",
        )
    else:
        yield green("threads", text)


def clock(runs_dir: Path) -> Iterator[Finding]:
    """The clock is not behind what was written before: the code, and the newest run."""
    package = Path(__file__).resolve().parents[2]
    newest, what = max((path.stat().st_mtime, str(path)) for path in package.rglob("*.py"))
    if runs_dir.is_dir():
        with os.scandir(runs_dir) as entries:
            newest, what = max(
                [(entry.stat().st_mtime, entry.path) for entry in entries], default=(newest, what)
            )[:2]
    behind = newest - time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if behind > SKEW:
        text = f"{shown} is {behind:,.0f} s before {what} was written"
        advice = (
            "set the clock, on this machine or on the server of that file system: "
            "timedatectl set-ntp true"
        )
        yield (red if behind > WRONG else yellow)("clock", text, advice)
    else:
        yield green("clock", f"{shown}; not before anything that dks wrote")


def code() -> Iterator[Finding]:
    """The hash and the commit that records will name."""
    from dks import __version__
    from dks.machine.code import current
    from dks.machine.commit import git_commit

    commit, code = git_commit(), f"code {current()}"
    if commit is None:
        yield green(
            "code", f"dks {__version__}, {code}; not in a Git repository, so records name no commit"
        )
    elif commit.endswith("-dirty"):
        text = f"commit {commit[:12]} with changes that are not committed, {code}"
        yield yellow("code", text, "git commit, so that records name what ran")
    else:
        yield green("code", f"commit {commit[:12]}, nothing changed, {code}")
