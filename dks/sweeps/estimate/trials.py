"""Processes that train one network side by side for some seconds (`dks/sweeps/estimate/trial.py`),
and what they reach together.
"""

from __future__ import annotations

import json
import pickle
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from dks.runs.terminal import Display
from dks.sweeps.estimate.trial import Task

SECONDS, ROUNDS = 1.5, 2  # how long each number of cells is tried, and how often, in turn
ENOUGH = 20.0  # seconds of all trials together, after which none is repeated
PATIENCE = 180.0  # seconds until a process must have answered
PART = 0.9  # of the free memory, that cells may take


class TrialError(Exception):
    """The processes could not be tried; says why."""


@dataclass(frozen=True)
class Trial:
    """So many cells side by side."""

    cells: int
    threads: int  # CPU threads of each
    images_per_second: float  # of all together


class Trials:
    """The processes; they end with this context.

    Args:
        environment: of a process.
        on_gpu: do they compute on a GPU, and is its memory what counts?
    """

    def __init__(self, task: Task, environment: Mapping[str, str], on_gpu: bool) -> None:
        self._task, self._environment, self._on_gpu = task, environment, on_gpu
        self._processes: list[_Process] = []
        self._logs = tempfile.TemporaryDirectory(prefix="dks-")

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.end()
        self._logs.cleanup()

    def free(self) -> float:
        """MiB of the device's memory; raises a TrialError if no process tells."""
        (process,) = self._started(1)
        return process.ask(do="look")["free_mib"]

    def run(
        self, numbers: Sequence[int], threads: Callable[[int], int], free: float
    ) -> tuple[list[Trial], float]:
        """Try these numbers of processes side by side, as far as they fit into the memory.

        Args:
            numbers: rising from 1.
            threads: of each of so many.
            free: MiB of memory, before any of them has started.

        Returns:
            The trials, and the MiB of memory that one takes.

        Raises:
            TrialError: not even one could be tried.
        """
        need, most = self._memory(threads(1), free, len(numbers) > 1)
        numbers = [number for number in numbers if number <= most]
        self._started(numbers[-1])
        rates: dict[int, list[float]] = {number: [] for number in numbers}
        order, end = [*numbers] * ROUNDS, time.perf_counter() + ENOUGH
        for number in Display.current().track(order, len(order), "trying cells side by side"):
            if number in rates and (not rates[number] or time.perf_counter() < end):
                try:
                    rates[number].append(self._rate(number, threads(number)))
                except TrialError:
                    if number == 1:
                        raise
                    rates = {each: seen for each, seen in rates.items() if each < number}
        return [Trial(number, threads(number), fmean(seen)) for number, seen in rates.items()], need

    def _memory(self, threads: int, free: float, more: bool) -> tuple[float, int]:
        """MiB that a process takes, and how many fit."""
        (first,) = self._started(1)
        found = first.ask(do="prepare", threads=threads)
        if not self._on_gpu:
            return found["memory_mib"], max(1, int(PART * free / found["memory_mib"]))
        need, left = free - found["free_mib"], found["free_mib"]
        if not more:
            return need, 1
        # what the second one takes is all its own: of the first one, libraries may have loaded
        #     before
        try:
            need = left - self._started(2)[1].ask(do="prepare", threads=threads)["free_mib"]
        except TrialError:
            return need, 1
        return need, 1 + int(PART * left / max(need, 1.0))

    def _rate(self, number: int, threads: int) -> float:
        """Images a second of so many processes together."""
        processes = self._started(number)
        for order in ({"do": "prepare", "threads": threads}, {"do": "train", "seconds": SECONDS}):
            for process in processes:
                process.tell(order)
            answers = [process.answer() for process in processes]
        return sum(answer["images_per_second"] for answer in answers)

    def _started(self, number: int) -> list[_Process]:
        """The first so many of them."""
        while len(self._processes) < number:
            log = Path(self._logs.name, str(len(self._processes)))
            self._processes.append(_Process(self._task, self._environment, log))
        return self._processes[:number]


class _Process:
    def __init__(self, task: Task, environment: Mapping[str, str], log: Path) -> None:
        """`log` receives what it prints."""
        self._log = log
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dks.sweeps.estimate.trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C in the terminal reaches only this process
            )
        self._send(pickle.dumps(task))

    def ask(self, **order: Any) -> dict[str, float]:
        """Raises a TrialError if it has died, or takes too long."""
        self.tell(order)
        return self.answer()

    def tell(self, order: Mapping[str, Any]) -> None:
        self._send(json.dumps(order).encode() + b"\n")

    def answer(self) -> dict[str, float]:
        """To an order; raises what `ask` raises."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise TrialError(f"no step was taken in {PATIENCE:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise TrialError(self._last_words())
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        """At once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _send(self, content: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; its answer says so
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def _last_words(self) -> str:
        self._process.wait()
        printed = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return (
            printed[-1]
            if printed
            else f"its process left with exit status {self._process.returncode}"
        )
