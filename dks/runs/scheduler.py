"""What SLURM says of jobs, asked through its own commands.

A scheduler that does not answer is no answer: nothing is concluded from its silence. `sacct` is
asked about jobs that the controller has forgotten, where accounting is set up; nothing depends on
it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

# Seconds that a command may take before the scheduler counts as silent.
PATIENCE = 20.0
# Job ids in one command line.
AT_ONCE = 500


class Stage(str, Enum):
    """Where a job stands."""

    pending = "pending"  # waits to begin, for the first time or again
    running = "running"
    ended = "ended"
    unknown = "unknown"  # the scheduler answers, and does not know it


# States of a node, by sinfo's %T; the marks behind them are cut off.
_TAKES_JOBS = {"idle", "allocated", "mixed", "completing", "reserved", "planned"}

_PENDING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


@dataclass(frozen=True)
class Job:
    """What the scheduler says of one job or task of an array."""

    stage: Stage
    state: str = ""  # SLURM's own word: PENDING, FAILED, OUT_OF_MEMORY, ...
    reason: str = ""  # why it waits, or how it ended
    node: str = ""

    @property
    def was_cancelled(self) -> bool:
        """Did somebody end it on purpose?"""
        return self.state.startswith("CANCELLED")

    def __str__(self) -> str:
        return " ".join(
            part
            for part in (self.state, f"({self.reason})" if self.reason else "", self.node)
            if part
        )


_UNKNOWN = Job(Stage.unknown)


class SchedulerSilentError(Exception):
    """The scheduler's commands are missing, or it does not answer."""


class Scheduler:
    """SLURM, through squeue, sacct, scancel and scontrol."""

    def has_nodes(self, partition: str | None) -> bool:
        """Is there a node that takes jobs now, in that partition or in any?

        Raises:
            SchedulerSilentError: it does not answer.
        """
        where = [] if partition is None else [f"--partition={partition}"]
        states = answer("sinfo", "--noheader", "--Node", "--format=%T", *where).split()
        return any(state.rstrip("*~#!%$@^-+") in _TAKES_JOBS for state in states)

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """What it says of these jobs, "12" or "12_3"; those it does not know are `unknown`.

        Empty where it does not answer.
        """
        wanted = set(ids)
        if not wanted:
            return {}
        arrays = sorted({job.partition("_")[0] for job in wanted}, key=int)
        found: dict[str, Job] = {}
        try:
            for some in _chunks(arrays):
                found |= read_queue(_queue(some))
        except SchedulerSilentError:
            return {}
        forgotten = sorted({job.partition("_")[0] for job in wanted - found.keys()}, key=int)
        for some in _chunks(forgotten):
            found |= {
                job: each
                for job, each in read_accounts(_accounts(some)).items()
                if job not in found
            }
        return {job: found.get(job, _UNKNOWN) for job in wanted}

    def named(self, prefix: str) -> dict[str, str]:
        """Name -> id of this user's jobs whose name begins with `prefix`.

        Of an array the id of the whole.

        Raises:
            SchedulerSilentError: it does not answer.
        """
        user = f"--user={os.getuid()}"
        lines = answer("squeue", user, "--states=all", "--noheader", "--format=%F|%j").splitlines()
        pairs = (line.split("|", 1) for line in lines if "|" in line)
        return {name: job for job, name in pairs if name.startswith(prefix)}

    def cancel(self, ids: Sequence[str]) -> None:
        """End these jobs: those that run get a signal first.

        Raises:
            SchedulerSilentError: it does not answer.
        """
        for some in _chunks(ids):
            answer("scancel", "--quiet", *some)  # one that has ended meanwhile is no error

    def release(self, ids: Sequence[str]) -> None:
        """Let jobs go that were submitted held.

        Raises:
            SchedulerSilentError: it does not answer.
        """
        for some in _chunks(ids):
            answer("scontrol", "release", ",".join(some))

    def max_array_size(self) -> int:
        """How many tasks an array may have.

        Raises:
            SchedulerSilentError: it does not answer.
        """
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", answer("scontrol", "show", "config"))
        return int(found.group(1)) if found else 1001  # SLURM's default


def read_queue(text: str) -> dict[str, Job]:
    """The output of `_queue`.

    Lines of id, state, reason and node, each task of an array on a line of its own.
    """
    found = {}
    for line in text.splitlines():
        job, state, reason, node = line.split("|", 3)
        stage = (
            Stage.pending
            if state in _PENDING
            else Stage.running
            if state in _RUNNING
            else Stage.ended
        )
        found[job] = Job(stage, state, "" if reason == "None" else reason, node)
    return found


def read_accounts(text: str) -> dict[str, Job]:
    """The output of `_accounts`.

    Lines of id, state, exit code ("1:0", or "0:9" for signal 9) and node.
    """
    found = {}
    for line in text.splitlines():
        job, state, code, node = line.split("|", 3)
        word = state.split()[0] if state else ""
        stage = (
            Stage.pending
            if word in _PENDING
            else Stage.running
            if word in _RUNNING
            else Stage.ended
        )
        status, _, number = code.partition(":")
        reason = (
            f"signal {number}"
            if number not in ("", "0")
            else f"exit status {status}"
            if status not in ("", "0")
            else ""
        )
        found[job] = Job(stage, word, reason, node)
    return found


def _queue(arrays: Sequence[str]) -> str:
    options = (
        "--array",
        "--states=all",
        "--noheader",
        "--format=%i|%T|%r|%N",
        f"--jobs={','.join(arrays)}",
    )
    try:
        return answer("squeue", *options)
    except SchedulerSilentError as error:
        if "Invalid job id" in str(error):  # said where it knows none of them
            return ""
        raise


def _accounts(arrays: Sequence[str]) -> str:
    options = (
        "--noheader",
        "--parsable2",
        "--allocations",
        "--format=JobID,State,ExitCode,NodeList",
    )
    try:
        return answer("sacct", *options, f"--jobs={','.join(arrays)}")
    except SchedulerSilentError:
        return ""


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[begin : begin + AT_ONCE] for begin in range(0, len(ids), AT_ONCE))


def answer(*command: str, patience: float | None = None) -> str:
    """The standard output of one of SLURM's commands.

    Raises:
        SchedulerSilentError: there is no such command, it fails, or takes longer than `patience`
            seconds, PATIENCE if None.
    """
    if shutil.which(command[0]) is None:
        raise SchedulerSilentError(f"there is no {command[0]} on this machine")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience or PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerSilentError(f"{command[0]} does not answer: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        # the last line is what it all came to
        reason = re.sub(rf"^{command[0]}: ((error|fatal): )?", "", lines[-1])
        raise SchedulerSilentError(f"{command[0]} says: {reason}")
    return done.stdout
