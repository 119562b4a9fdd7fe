"""The attempts at a run, and what its result was computed by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from dks.config.extensions import cited
from dks.machine import code


@dataclass
class Attempt:
    """One execution: a run that was killed and went on has several."""

    started: str  # UTC, ISO 8601
    host: str
    pid: int
    device: str  # for example "cpu" or "cuda:0 (NVIDIA H100)"
    threads: int  # CPU threads of torch
    processes: int = 1  # that trained together
    first_epoch: int = 1  # the epoch it began with, counted from 1
    # steps that had been taken when its training began; None: it never began
    first_step: int | None = None
    code: str | None = None  # as `dks.machine.code` tells it; None: of an older version
    # of the code; "-dirty" is appended where files had changed or were new
    git_commit: str | None = None
    job: str | None = None  # SLURM's id, such as "12_3" for a task of an array
    # python, torch, and on CUDA cuda and NVIDIA's driver
    versions: dict[str, str] = field(default_factory=dict)
    # kind, name and version of each, and package and package_version, or file and the sha256 of its
    # content
    extensions: list[dict[str, str]] = field(default_factory=list)
    ended: str | None = None
    status: str = "running"  # as that of a record
    seconds: float = 0.0

    def end(self, status: str, seconds: float) -> None:
        """It ends now, after so many seconds by a clock that nobody sets.

        One that was set back does not end it before then.
        """
        least = datetime.fromisoformat(self.started) + timedelta(seconds=seconds)
        self.ended = max(least, datetime.now(timezone.utc)).isoformat(timespec="milliseconds")
        self.status, self.seconds = status, round(seconds, 3)


@dataclass(frozen=True)
class ComputedBy:
    """What an attempt computed with; None: not known, or not there."""

    code: str | None = None
    git_commit: str | None = None
    device: str | None = None  # "cpu", or a GPU's model
    processes: int | None = None
    threads: int | None = None
    torch: str | None = None
    driver: str | None = None  # NVIDIA's, of a run on CUDA


def computed_by(attempts: Sequence[Attempt]) -> list[ComputedBy]:
    """What the result of these attempts was computed by, each once."""
    found = (
        ComputedBy(
            attempt.code,
            attempt.git_commit,
            device_model(attempt.device),
            attempt.processes,
            attempt.threads,
            _version(attempt, "torch"),
            None if attempt.device == "cpu" else _version(attempt, "driver"),
        )
        for attempt in contributing(attempts)
    )
    return list(dict.fromkeys(found))


def _version(attempt: Attempt, name: str) -> str | None:
    return str(attempt.versions[name]) if name in attempt.versions else None


def codes(made: Sequence[ComputedBy]) -> tuple[str, ...]:
    """The different codes in it, those that are known to be equal as one."""
    return tuple(dict.fromkeys(code.canonical(each.code) for each in made))


def contributing(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Those that a result is made of.

    From the last one that began at the first step, without those that trained nothing.
    """
    found = []
    for attempt in reversed(attempts):
        if attempt.first_step is not None or attempt.code is None:
            found.append(attempt)
        if attempt.first_step == 0:
            break
    return found[::-1]


def other_codes(attempts: Sequence[Attempt]) -> list[str | None]:
    """The codes that a result is made of and that do not compute what today's does, each once.

    None: one that is not known.
    """
    used = cited(attempts[-1].extensions) if attempts else []
    today = code.canonical(
        code.current(tuple((each.get("kind", ""), each.get("name", "")) for each in used))
    )
    found = dict.fromkeys(attempt.code for attempt in contributing(attempts)) or {None: None}
    return [each for each in found if code.canonical(each) != today]


def begun_with(attempts: Sequence[Attempt]) -> tuple[int, str] | None:
    """Processes that train together and kind of device ("cpu", "cuda") of a run that goes on.

    None: not known.
    """
    for attempt in reversed(contributing(attempts)):
        return attempt.processes, device_kind(attempt.device)
    return None


def cannot_go_on(begun: tuple[int, str], now: tuple[int, str]) -> str:
    """Why a run that was begun so does not go on so; both as `begun_with` has it."""
    (before, device), (processes, other) = begun, now
    if before != processes:
        return (
            f"begun with {_processes(before)} and cannot go on with {_processes(processes)}: "
            f"each normalises its own part of a "
            "batch, so the result would be of neither"
        )
    names = {"cpu": "the CPU", "cuda": "CUDA"}
    return (
        f"begun on {names.get(device, device)} and cannot go on on {names.get(other, other)}: "
        f"the result would be of neither"
    )


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes that train together"


def device_kind(device: str) -> str:
    """ "cpu" or "cuda"."""
    return device.partition(":")[0]


def device_model(device: str) -> str:
    """ "cpu", or a GPU's model without its number: "cuda:0 (NVIDIA H100)" -> "NVIDIA H100"."""
    return device.partition("(")[2].rstrip(")") or device
