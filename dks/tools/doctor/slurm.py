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
        yield grey(
            "SLURM",
            "not installed: sweeps run on this machine, and --launcher slurm works where sbatch is",
        )
        return
    if missing:
        yield red(
            "commands",
            f"not on the PATH: {', '.join(missing)}",
            "install SLURM's client commands (Debian: slurm-client)",
        )
        return
    try:
        version = answer("sbatch", "--version", patience=PATIENCE).strip()
        ping = one_line(answer("scontrol", "ping", patience=PATIENCE))
    except SchedulerSilentError as error:
        said = one_line(str(error))
        advice = "log in where SLURM is, or let SLURM_CONF=FILE name its configuration"
        # installed and never set up, which harms nobody who does not ask for it
        if "configuration source" in said:
            yield yellow(
                "SLURM",
                f"installed without a configuration, so --launcher slurm will not work: {said}",
                advice,
            )
        else:
            yield red("controller", said, advice)
        return
    if "UP" not in ping.split():
        yield red(
            "controller",
            f"{version}; {ping}",
            "ask who runs the cluster; jobs cannot be submitted until it is UP",
        )
        return
    yield green("controller", f"{version}; {ping}")
    yield from _partitions()
    yield _accounting()
    yield _submitit()


def _partitions() -> Iterator[Finding]:
    """Partition -> its state, nodes (allocated/idle/other/all), time limit, GPUs."""
    try:
        lines = answer(
            "sinfo", "--noheader", "--format=%P|%a|%F|%l|%G", patience=PATIENCE
        ).splitlines()
    except SchedulerSilentError as error:
        yield red(
            "partitions", one_line(str(error)), "sinfo must work before jobs can be submitted"
        )
        return
    if not lines:
        yield red(
            "partitions", "none that this account sees", "ask who runs the cluster for a partition"
        )
    for line in lines:
        name, state, nodes, limit, gpus = line.split("|")
        allocated, idle, other, everything = nodes.split("/")
        time = "no time limit" if limit == "infinite" else f"at most {limit}"
        text = (
            f"{state}, {everything} nodes ({idle} idle, {allocated} allocated, {other} "
            f"other), {time}, "
        )
        text += "no GPUs" if gpus == "(null)" else gpus
        label = f"partition {name}"
        if state != "up":
            yield yellow(label, text, "choose another: hydra.launcher.partition=NAME")
        elif other == everything:
            yield yellow(
                label,
                text,
                "none of its nodes takes jobs now: scontrol show nodes says why; jobs will wait",
            )
        else:
            yield green(label, text)


def _accounting() -> Finding:
    try:
        answer("sacct", "--noheader", "--allocations", "--starttime=now", patience=PATIENCE)
    except SchedulerSilentError as error:
        said = one_line(str(error))
        if "disabled" in said:
            return grey(
                "accounting",
                "not set up: what the controller has forgotten of a job is taken from its record",
            )
        return yellow(
            "accounting",
            said,
            "nothing depends on it; why a lost job ended is then taken from its record",
        )
    return green("accounting", "sacct answers")


def _submitit() -> Finding:
    try:
        versions = [
            f"{name} {metadata.version(name)}" for name in ("submitit", "hydra-submitit-launcher")
        ]
    except metadata.PackageNotFoundError as error:
        return red(
            "submitit",
            f"{error.name or error} is not installed",
            "pip install submitit hydra-submitit-launcher",
        )
    return green("submitit", ", ".join(versions))
