"""How a sweep does, read by anybody at any time: `dks sweep status`, `wait` and `cancel`."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.markup import escape

from dks.config.errors import RequestError
from dks.runs import heartbeat
from dks.runs.earlier import is_earlier, of_sweep
from dks.runs.launches import Launch, LaunchFolder
from dks.runs.record import Status
from dks.runs.scheduler import Scheduler, SchedulerSilentError
from dks.runs.states import Standing, State, has_diverged, survey
from dks.runs.terminal import duration
from dks.sweeps.launchers.slurm import log_file
from dks.sweeps.manifest import Manifest
from dks.sweeps.summary import code_lines, same_code_command
from dks.tracking.sync import close_dead

SPEED = "train/images_per_second"

# The order in which a person wants to read them, and how many cells of each state are named.
NAMED = {State.running: 50, State.failed: 50, State.lost: 20, State.killed: 20}


@dataclass(frozen=True)
class SweepStatus:
    """Where all cells of a sweep stand."""

    sweep: Manifest
    standings: Mapping[str, Standing]  # cell_id -> where it stands
    changed: str | None = None  # how it is another one now than when it was begun

    @property
    def counts(self) -> dict[State, int]:
        """State -> how many cells are in it."""
        found = Counter(standing.state for standing in self.standings.values())
        return {state: found[state] for state in State if found[state]}

    @property
    def is_over(self) -> bool:
        """Is nobody working on any cell, nor about to?"""
        return not {State.queued, State.running} & self.counts.keys()

    @property
    def exit_status(self) -> int:
        """0 unless some cell failed or got lost, or a value cannot be chosen because training
        diverged with all of them.
        """
        settled = self._settled()
        ended = {each.state for cell_id, each in self.standings.items() if cell_id not in settled}
        return 1 if {State.failed, State.killed, State.lost} & ended else 0

    def _settled(self) -> set[str]:
        """Candidates of a choice that have diverged, where others have not.

        They are the worst, and nothing waits for them.
        """
        diverged = {
            cell_id for cell_id, each in self.standings.items() if has_diverged(each.record)
        }
        settled = set[str]()
        for choice in self.sweep.choices:
            if not all(diverged.intersection(cells) for cells in choice.values()):
                settled |= diverged.intersection(
                    cell_id for cells in choice.values() for cell_id in cells
                )
        return settled

    def headline(self) -> str:
        """One line: how many cells are in which state."""
        counts = ", ".join(f"{count} {state.value}" for state, count in self.counts.items())
        return f"{self.sweep.name}: {len(self.standings)} cells: {counts}"

    def __str__(self) -> str:
        """What a person reads (rich markup)."""
        labels = {cell.cell_id: cell.labels for cell in (*self.sweep.cells, *self.sweep.selection)}
        said = [*self.sweep.undecided, *filter(None, [self.changed, self.earlier])]
        lines = [f"[bold]{escape(self.headline())}[/]", *map(escape, said)]
        for state, limit in NAMED.items():
            named = [
                (cell_id, each) for cell_id, each in self.standings.items() if each.state is state
            ]
            for cell_id, each in named[:limit]:
                label = (
                    " ".join(f"{key}={value}" for key, value in labels[cell_id].items()) or cell_id
                )
                lines.append(
                    f"  [{_COLOURS[state]}]{state.value:<8}[/]{escape(label)}  "
                    f"{escape(_story(each))}"
                )
            if len(named) > limit:
                lines.append(f"  ... and {len(named) - limit} more {state.value}; --json lists all")
        if reasons := Counter(
            each.job.reason for each in self.standings.values() if _waits(each) and each.job
        ):
            lines.append(
                escape(
                    "  queued at SLURM: "
                    + ", ".join(f"{count} ({why})" for why, count in reasons.items())
                )
            )
        if drifted := _drifted(self.standings):
            lines.append(escape(f"  {drifted}"))
        return "\n".join([*lines, *(escape(f"  {line}") for line in self.code_lines())])

    @property
    def earlier(self) -> str | None:
        """What is to be said of cells of an earlier version."""
        return of_sweep(sum(is_earlier(each.record) for each in self.standings.values()))

    def code_lines(self) -> list[str]:
        """What is to be said of cells that another code than today's has computed, or begun."""
        sweep = self.sweep
        return code_lines(
            ((each.state, each.other_codes()) for each in self.standings.values()),
            same_code_command(sweep.name, sweep.named, sweep.request),
        )

    def to_json(self) -> str:
        """The same for programs."""
        labels = {cell.cell_id: cell.labels for cell in (*self.sweep.cells, *self.sweep.selection)}
        cells = [
            {"cell_id": cell_id, "labels": labels[cell_id], **_facts(each)}
            for cell_id, each in self.standings.items()
        ]
        counts = {state.value: count for state, count in self.counts.items()}
        notes = [*filter(None, [self.earlier]), *self.code_lines()]
        told = {
            "name": self.sweep.name,
            "counts": counts,
            "changed": self.changed,
            "notes": notes,
            "cells": cells,
        }
        return json.dumps(told, indent=1)


def status(sweep: Manifest, scheduler: Scheduler | None = None) -> SweepStatus:
    """Where the cells of a begun sweep stand now.

    What the scheduler knows of jobs that died is noted in the runs' records.
    """
    return SweepStatus(
        sweep, close_dead(survey(sweep.runs_dir, sweep.cell_ids, scheduler or Scheduler()))
    )


def wait(look: Callable[[], SweepStatus], every: float, say: Callable[[str], None]) -> SweepStatus:
    """Look again every `every` seconds until the sweep is over, saying what changes.

    Ctrl-C ends the waiting, not the runs.

    Args:
        say: shows a line (rich markup).
    """
    said = ""
    while True:
        seen = look()
        if seen.headline() != said:
            said = seen.headline()
            say(f"{datetime.now():%H:%M:%S}  {escape(said)}")
        if seen.is_over:
            return seen
        time.sleep(every)


@dataclass(frozen=True)
class Cancelled:
    """What came of cancelling a sweep."""

    name: str
    withdrawn: tuple[str, ...]  # cells that had not begun
    stopping: tuple[str, ...]  # cells that were told to stop
    jobs: tuple[str, ...]  # of SLURM, that were cancelled
    processes: tuple[int, ...]  # of this machine, that were told
    elsewhere: tuple[Launch, ...]  # that go on, for a process of another machine runs them

    def __str__(self) -> str:
        done = (
            f"{len(self.withdrawn)} queued cells withdrawn, {len(self.stopping)} running ones "
            f"told to stop"
        )
        text = done if self.withdrawn or self.jobs or self.processes else "nothing to cancel"
        for content in self.elsewhere:
            text += f"; process {content.pid} on {content.host} runs some: stop it there"
        return text

    def to_json(self) -> str:
        """The same for programs."""
        elsewhere = [{"host": each.host, "pid": each.pid} for each in self.elsewhere]
        return json.dumps(vars(self) | {"elsewhere": elsewhere}, indent=1)


def cancel(seen: SweepStatus, scheduler: Scheduler) -> Cancelled:
    """Stop what runs and withdraw what waits. Runs stop between two steps and can go on later.

    Raises:
        RequestError: the scheduler does not answer, so its jobs go on; no cell was withdrawn, no
            process was told to stop.
    """
    jobs = [
        each.job_id
        for each in seen.standings.values()
        if each.job_id and each.state in (State.queued, State.running)
    ]
    try:
        scheduler.cancel(jobs)
    except SchedulerSilentError as error:
        what = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
        raise RequestError(
            f"{what} could not be cancelled: {error}; cancel again where SLURM answers"
        ) from error
    queued = {
        cell_id: each for cell_id, each in seen.standings.items() if each.state is State.queued
    }
    withdrawn = [cell_id for cell_id, each in queued.items() if _withdraw(each)]
    launches = {
        each.launch.path: each.launch for each in seen.standings.values() if each.launch is not None
    }
    alive = {path: launch.read() for path, launch in launches.items() if launch.is_alive()}
    told = {
        path: content for path, content in alive.items() if content.host == socket.gethostname()
    }
    for content in told.values():
        os.kill(content.pid, signal.SIGTERM)
    stopping = [
        cell_id
        for cell_id, each in seen.standings.items()
        if each.state is State.running
        and (each.job_id or (each.launch is not None and each.launch.path in told))
    ]
    return Cancelled(
        seen.sweep.name,
        tuple(withdrawn),
        tuple(stopping),
        tuple(jobs),
        tuple(content.pid for content in told.values()),
        tuple(content for path, content in alive.items() if path not in told),
    )


def _withdraw(standing: Standing) -> bool:
    """Mark a cell that has not begun as killed."""
    error = {"type": "Cancelled", "message": "withdrawn before it began"}
    return standing.folder.close(Status.killed, error, {Status.queued})


_COLOURS = {State.running: "green", State.failed: "red", State.lost: "red", State.killed: "yellow"}


def _waits(standing: Standing) -> bool:
    return standing.state is State.queued and standing.job is not None


def _story(standing: Standing) -> str:
    """What is to be said of a cell, in a line."""
    facts = _facts(standing)
    where = f"on {facts['host']}" if facts["host"] else ""
    if standing.state is State.running:
        parts = [f"epoch {facts['epoch']}/{facts['epochs']}"] if facts["epoch"] else ["starting"]
        if facts["images_per_second"]:
            parts.append(f"{facts['images_per_second']:,.0f} images/s")
        if facts["ends"]:
            left = datetime.fromisoformat(facts["ends"]) - datetime.now(timezone.utc)
            parts.append(f"{duration(max(0.0, left.total_seconds()))} left")
        return "  ".join([*parts, where])
    told = (facts["error"] or "").strip().splitlines()
    if standing.state is State.lost:
        told = [
            f"no heartbeat for {_ago(facts['silent_seconds'])}, and the scheduler does not know it"
        ]
    return "  ".join(part for part in (told[-1] if told else "", where, facts["log"] or "") if part)


def _ago(seconds: float | None) -> str:
    return "ever" if seconds is None else duration(seconds)


def _facts(standing: Standing) -> dict[str, Any]:
    """What is known of a cell, by name; None where nothing is."""
    record, folder = standing.record, standing.folder
    attempt = record.attempts[-1] if record is not None and record.attempts else None
    beat = heartbeat.read(folder.path) if standing.state is State.running else None
    # it may be newer than the last beat
    last = entries[-1] if beat and (entries := folder.journal.read()) else None
    error = record.error if record is not None and standing.state is not State.done else None
    log = folder.log_file if folder.log_file.exists() else None
    if log is None and standing.launch is not None and standing.job_id is not None:
        log = log_file(standing.launch, standing.job_id)
    return {
        "state": standing.state.value,
        "epoch": max(beat.epoch, min(last.epoch + 1, beat.epochs) if last else 0) if beat else None,
        "epochs": beat.epochs if beat else None,
        "images_per_second": (beat.images_per_second or (last.metrics[SPEED] if last else None))
        if beat
        else None,
        "ends": beat.ends if beat else None,
        "host": attempt.host if attempt and standing.state is not State.done else None,
        "job": standing.job_id,
        "attempts": len(record.attempts) if record else 0,
        "other_codes": list(standing.other_codes()),
        "error": f"{error['type']}: {error['message']}" if error else None,
        "log": str(log)
        if log and standing.state in (State.failed, State.killed, State.lost)
        else None,
        "silent_seconds": heartbeat.age(folder.path) if standing.state is State.lost else None,
    }


def _drifted(standings: Mapping[str, Standing]) -> str | None:
    """A line on runs that were computed by another commit than the one that planned them."""
    planned: dict[Path, str | None] = {}
    count = 0
    for each in standings.values():
        if each.launch is None or each.record is None or not each.record.attempts:
            continue
        if each.launch.path not in planned:
            planned[each.launch.path] = _commit(each.launch)
        count += planned[each.launch.path] != each.record.attempts[-1].git_commit
    return (
        f"{count} runs were computed by another commit than the one that launched them"
        if count
        else None
    )


def _commit(launch: LaunchFolder) -> str | None:
    try:
        return launch.read().git_commit
    except RequestError:
        return None
