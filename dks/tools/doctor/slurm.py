"""SLURM: its commands, its controller, what jobs may ask for, and what submits them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import metadata

from dks.config.errors import one_line
from dks.runs.scheduler import SchedulerSilentError, answer
from dks.tools.doctor.check import Finding, green, grey, red, yellow

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct")
PATIENCE = 8.0  # seconds for one answer


def slurm() -> Iterator[Finding]:
    """Nothing of it installed is no fault; half of it is."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if len(missing) == len(COMMANDS):
        here = "sweeps run on this machine, and --launcher slurm works where sbatch is"
        yield grey("SLURM", f"not installed: {here}")
        return
    if missing:
        advice = "install SLURM's client commands (Debian: slurm-client)"
        yield red("commands", f"not on the PATH: {', '.join(missing)}", advice)
        return
    try:
        version = answer("sbatch", "--version", patience=PATIENCE).strip()
        ping = one_line(answer("scontrol", "ping", patience=PATIENCE))
    except SchedulerSilentError as error:
        said = one_line(str(error))
        advice = "log in where SLURM is, or let SLURM_CONF=FILE name its configuration"
        # installed and never set up, which harms nobody who does not ask for it
        if "configuration source" in said:
            text = "installed without a configuration, so --launcher slurm will not work"
            yield yellow("SLURM", f"{text}: {said}", advice)
        else:
            yield red("controller", said, advice)
        return
    if "UP" not in ping.split():
        advice = "ask who runs the cluster; jobs cannot be submitted until it is UP"
        yield red("controller", f"{version}; {ping}", advice)
        return
    yield green("controller", f"{version}; {ping}")
    yield from _partitions()
    yield _accounting()
    yield _submitit()


def _partitions() -> Iterator[Finding]:
    """Partition -> its state, nodes (allocated/idle/other/all), time limit, GPUs."""
    try:
        told = answer("sinfo", "--noheader", "--format=%P|%a|%F|%l|%G", patience=PATIENCE)
    except SchedulerSilentError as error:
        advice = "sinfo must work before jobs can be submitted"
        yield red("partitions", one_line(str(error)), advice)
        return
    if not told.strip():
        advice = "ask who runs the cluster for a partition"
        yield red("partitions", "none that this account sees", advice)
    for line in told.splitlines():
        name, state, nodes, limit, gpus = line.split("|")
        allocated, idle, other, everything = nodes.split("/")
        text = ", ".join(
            [
                state,
                f"{everything} nodes ({idle} idle, {allocated} allocated, {other} other)",
                "no time limit" if limit == "infinite" else f"at most {limit}",
                "no GPUs" if gpus == "(null)" else gpus,
            ]
        )
        label = f"partition {name}"
        if state != "up":
            yield yellow(label, text, "choose another: hydra.launcher.partition=NAME")
        elif other == everything:
            why = "none of its nodes takes jobs now: scontrol show nodes says why; jobs will wait"
            yield yellow(label, text, why)
        else:
            yield green(label, text)


def _accounting() -> Finding:
    record = "is taken from its record"
    try:
        answer("sacct", "--noheader", "--allocations", "--starttime=now", patience=PATIENCE)
    except SchedulerSilentError as error:
        said = one_line(str(error))
        if "disabled" in said:
            text = f"not set up: what the controller has forgotten of a job {record}"
            return grey("accounting", text)
        advice = f"nothing depends on it; why a lost job ended then {record}"
        return yellow("accounting", said, advice)
    return green("accounting", "sacct answers")


def _submitit() -> Finding:
    names = ("submitit", "hydra-submitit-launcher")
    try:
        versions = [f"{name} {metadata.version(name)}" for name in names]
    except metadata.PackageNotFoundError as error:
        return red("submitit", f"{error.name} is not installed", f"pip install {' '.join(names)}")
    return green("submitit", ", ".join(versions))
