"""Where the time of a training epoch goes: into data, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch


class Phases:
    """Seconds in phases that follow one another without a gap.

    On CUDA a phase ends where its work ends on the device: an event is put into the stream, and
        nothing waits before `seconds`.

    Args:
        device: where the work is done.
        seconds: spent in each phase before, by an attempt that was stopped.
    """

    def __init__(self, device: torch.device, seconds: Mapping[str, float] | None = None) -> None:
        self._device = device
        self._seconds = dict(seconds or {})
        self._marks: list[tuple[str, Any]] = []  # the phase that ended, and when

    def begin(self) -> None:
        """The first phase begins."""
        self._marks = [("", self._now())]

    def end(self, phase: str) -> None:
        """This phase ends, and the next one begins."""
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """What has been spent in each phase; on CUDA it waits for the last of them."""
        if len(self._marks) > 1 and self._device.type == "cuda":
            self._marks[-1][1].synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            self._seconds[phase] = self._seconds.get(phase, 0.0) + self._between(before, after)
        del self._marks[:-1]
        return dict(self._seconds)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, before: Any, after: Any) -> float:
        seconds: float = (
            before.elapsed_time(after) / 1000 if self._device.type == "cuda" else after - before
        )
        return seconds
