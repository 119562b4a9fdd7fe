"""What computes here: torch and its devices, threads; the clock, and the code's commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.errors import one_line
from dks.machine.control_groups import cpu_quota
from dks.tools.doctor.check import Finding, green, grey, red, yellow

if TYPE_CHECKING:
    import torch

# seconds that a clock may be off before it is worth a word, and before it is wrong
SKEW, WRONG = 2.0, 60.0
# A convolution y = image * kernel, and the gradients of the sum of y squared to the kernel and to
# the image. The numbers are small integers, so they are exact everywhere.
IMAGE = [[0, 5, 3, 1, 6], [3, 1, 6, 4, 2], [6, 4, 2, 0, 5], [2, 0, 5, 3, 1], [5, 3, 1, 6, 4]]
KERNEL = [[1, -2, 0], [3, 1, -1], [0, 2, 1]]
RIGHT = [
    [[4, 8, 26], [26, 16, 6], [6, 10, 35]],
    [[788, 520, 1190], [1190, 894, 570], [570, 736, 1056]],
    [
        [8, 0, 20, -104, 0],
        [76, -16, 112, 12, -52],
        [168, 160, 86, -40, 40],
        [36, 176, 334, 106, -58],
        [0, 24, 52, 160, 70],
    ],
]


def torch_works() -> Iterator[Finding]:
    """torch is imported and computes on the CPU."""
    began = time.monotonic()
    try:
        import torch
    except Exception as error:  # ImportError; OSError of a library it needs
        text = f"cannot be imported: {one_line(str(error)) or type(error).__name__}"
        pip = f"{sys.executable} -m pip install --force-reinstall"
        yield red("torch", text, f"{pip} -c constraints.txt torch torchvision")
        return
    yield green("torch", f"{torch.__version__}, imported in {time.monotonic() - began:.1f} s")
    advice = "reinstall torch; if that does not help, the processor or its memory is faulty"
    yield _computes(torch.device("cpu"), "CPU", advice)


def cuda(device: str) -> Iterator[Finding]:
    """Every CUDA device, or why there is none. `device`: the one that the configuration names."""
    import torch

    # torch says why it cannot use a driver in a warning
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        reasons = [str(each.message) for each in said]
    driver = _driver()
    if count == 0:
        yield _no_cuda(device, driver, reasons)
        return
    text = f"{torch.version.cuda}, driver {driver or 'of unknown version'}, {count} device(s)"
    yield green("CUDA", text)
    for number in range(count):
        yield from _cuda_device(number)
    if device.partition(":")[2].isdecimal() and int(device.partition(":")[2]) >= count:
        text = f"device={device}, but there are {count}, counted from 0"
        yield red("device", text, "device=auto")


def _no_cuda(device: str, driver: str, reasons: list[str]) -> Finding:
    import torch

    wanted = device.startswith("cuda")
    if not driver and not wanted:
        return grey("CUDA", "no NVIDIA driver here: the CPU computes")
    if not driver:
        text = f"device={device}, but there is no NVIDIA driver here"
        return red("CUDA", text, "device=auto, or a machine with a GPU")
    try:
        torch.cuda.init()
        reasons.append("it finds no device")
    except Exception as error:  # AssertionError: not compiled with CUDA enabled; RuntimeError
        reasons.append(str(error))
    if torch.version.cuda is None:
        where = "https://pytorch.org/get-started/locally"
        advice = f"this torch is built without CUDA: install a build for CUDA, see {where}"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        advice = "CUDA_VISIBLE_DEVICES hides all devices; unset it"
    else:
        advice = (
            f"nvidia-smi must list a GPU; torch is built for CUDA {torch.version.cuda}: update "
            f"the driver, or take another torch"
        )
    text = f"NVIDIA driver {driver} is there, but torch cannot use it"
    return (red if wanted else yellow)("CUDA", f"{text}: {one_line(' '.join(reasons))}", advice)


def _cuda_device(number: int) -> Iterator[Finding]:
    import torch

    name = f"cuda:{number}"
    try:
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        with torch.cuda.device(number):
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    except RuntimeError as error:
        advice = "see with nvidia-smi who uses it and in which mode; or choose another device"
        yield red(name, one_line(str(error)), advice)
        return
    text = f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, {bf16}"
    if free < total / 10:
        yield yellow(name, text, "other processes hold most of its memory; nvidia-smi names them")
    else:
        yield green(name, text)
    advice = f"nvidia-smi -i {number} -q shows errors of its memory; or use another device"
    yield _computes(torch.device("cuda", number), name, advice)


def _computes(device: torch.device, name: str, advice: str) -> Finding:
    import torch

    name = f"{name} computes"
    try:
        image, kernel = (
            torch.tensor([[each]], dtype=torch.float32, device=device, requires_grad=True)
            for each in (IMAGE, KERNEL)
        )
        y = torch.nn.functional.conv2d(image, kernel)
        gradients = torch.autograd.grad((y * y).sum(), (kernel, image))
        found = [each.detach().cpu().squeeze().tolist() for each in (y, *gradients)]
    except RuntimeError as error:
        return red(name, f"a convolution fails: {one_line(str(error))}", advice)
    if found != RIGHT:
        return red(name, "a convolution gives wrong numbers", advice)
    return green(name, "a convolution and its gradients are right")


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
    numbers = [word for word in words if word[0].isdigit() and "." in word]
    return [*numbers, "of unknown version"][0] if words else ""


def threads(configured: int | None) -> Iterator[Finding]:
    """Threads asked for against cores that may be used."""
    everything = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everything
    quota = cpu_quota()
    usable = cores if quota is None else min(cores, max(1, round(quota)))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    text = f"{usable} of {everything} cores"
    if quota is not None and quota < cores:
        text += f" (a control group allows the time of {quota:g})"
    text += f", OMP_NUM_THREADS={asked}" if asked else ", OMP_NUM_THREADS is not set"
    too_many, export = "more threads than cores wait for each other", "export OMP_NUM_THREADS"
    if configured is not None and configured > usable:
        advice = f"threads={usable}: {too_many}"
        yield yellow("threads", f"{text}, threads={configured}", advice)
    elif asked.isdecimal() and int(asked) > usable:
        yield yellow("threads", text, f"{export}={usable}: {too_many}")
    elif not asked and configured is None and usable < cores:
        would = f"torch would start {cores} threads, which wait for each other"
        yield yellow("threads", text, f"{export}={usable}: {would}")
    else:
        yield green("threads", text)


def clock(runs_dir: Path) -> Iterator[Finding]:
    """The clock is not behind what was written before: the code, and the newest run."""
    written = list(runs_dir.iterdir()) if runs_dir.is_dir() else []
    written = written or list(Path(__file__).resolve().parents[2].rglob("*.py"))
    newest, what = max((path.stat().st_mtime, path) for path in written)
    behind = newest - time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if behind <= SKEW:
        yield green("clock", f"{shown}; not before anything that dks wrote")
        return
    where = "on this machine or on the server of that file system"
    yield (red if behind > WRONG else yellow)(
        "clock",
        f"{shown} is {behind:,.0f} s before {what} was written",
        f"set the clock, {where}: timedatectl set-ntp true",
    )


def code() -> Iterator[Finding]:
    """The hash and the commit that records will name."""
    from dks import __version__
    from dks.machine.code import current
    from dks.machine.commit import git_commit

    commit, code = git_commit(), f"code {current()}"
    if commit is None:
        text = f"dks {__version__}, {code}; not in a Git repository, so records name no commit"
        yield green("code", text)
    elif commit.endswith("-dirty"):
        text = f"commit {commit[:12]} with changes that are not committed, {code}"
        yield yellow("code", text, "git commit, so that records name what ran")
    else:
        yield green("code", f"commit {commit[:12]}, nothing changed, {code}")
