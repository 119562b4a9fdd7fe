"""What a person sees while runs go on: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dks.tracking.journal import Entry
from dks.tracking.record import Record, Status

T = TypeVar("T")

# Seconds between two lines about the same run where there is no terminal.
LINE_EVERY = 10.0


class Display:
    """Shows the progress of a number of runs, one after another.

    On a terminal there is a bar for the current run and, where there are several runs, one for all of them. In a log there is
    a line for every finished run and one now and then for the current one. Everything goes to standard error.
    """

    _current: ContextVar[Display | None] = ContextVar("display", default=None)

    def __init__(self, runs: int = 1, console: Console | None = None) -> None:
        self.runs, self.finished = runs, 0
        self.console = console or Console(stderr=True, highlight=False)
        self.bars: Progress | None = None
        self.sweep_bar: TaskID | None = None
        self._token: Token[Display | None] | None = None

    @classmethod
    def current(cls) -> Display:
        """The display of the sweep under way, or a new one where a run stands alone."""
        return cls._current.get() or cls()

    def __enter__(self) -> Display:
        self._token = self._current.set(self)
        if self.console.is_terminal:
            self.bars = self._new_bars()
            if self.runs > 1:
                self.sweep_bar = self.bars.add_task("sweep", total=self.runs, status=f"0/{self.runs} runs")
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()
        if self._token is not None:
            self._current.reset(self._token)

    def _new_bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            transient=True,
        )

    def run(self, record: Record) -> RunView:
        """The view of one run, an observer of its training."""
        return RunView(self, record)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The items, with a bar of their own on a terminal."""
        if not self.console.is_terminal:
            yield from items
            return
        with nullcontext(self.bars) if self.bars is not None else self._new_bars() as bars:
            bar = bars.add_task(what, total=total, status="")
            for item in items:
                yield item
                bars.advance(bar)
            bars.remove_task(bar)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, soft_wrap=True)


class RunView:
    """Shows one run: epoch, loss, error, images/s, time left."""

    def __init__(self, display: Display, record: Record) -> None:
        self.display, self.label = display, record.label or "default configuration"
        self.epochs, self.images, self.seen = 0, 0, 0.0
        self.bar: TaskID | None = None
        self._begun = self._last_line = time.monotonic()
        self._seen_before = 0.0

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Training begins, after `finished` epochs of earlier attempts."""
        self.epochs, self.images, self.seen = epochs, images, float(finished * images)
        self._seen_before, self._begun = self.seen, time.monotonic()
        if finished:
            self.display.say(f"{escape(self.label)} goes on after epoch {finished} of {epochs}")
        if self.display.bars is not None:
            self.bar = self.display.bars.add_task(
                escape(self.label), total=epochs * images, completed=int(self.seen), status=f"epoch {finished + 1}/{epochs}"
            )

    def stepped(self, images: int) -> None:
        """A step was taken."""
        self.seen += images
        bars = self.display.bars
        if bars is not None and self.bar is not None:
            bars.update(self.bar, completed=self.seen)
            if self.display.sweep_bar is not None:
                part = self.seen / (self.epochs * self.images)
                bars.update(self.display.sweep_bar, completed=self.display.finished + part)

    def recorded(self, entry: Entry) -> None:
        """An epoch is finished."""
        metrics = entry.metrics
        status = (
            f"epoch {entry.epoch}/{self.epochs}  loss {metrics['train/loss']:.3f}  error {metrics['test/top1_error']:.2f} %  "
            f"{metrics['train/images_per_second']:,.0f} images/s"
        )
        if self.display.bars is not None and self.bar is not None:
            self.display.bars.update(self.bar, status=status)
        elif time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            speed = (self.seen - self._seen_before) / (self._last_line - self._begun)
            left = (self.epochs - entry.epoch) * self.images / speed
            self.display.say(f"      {escape(self.label)}  {status}  {duration(left)} left")

    def finished(self, record: Record) -> None:
        """The run is over, however it ended."""
        display = self.display
        if display.bars is not None and self.bar is not None:
            display.bars.remove_task(self.bar)
        display.finished += 1
        if display.bars is not None and display.sweep_bar is not None:
            status = f"{display.finished}/{display.runs} runs"
            display.bars.update(display.sweep_bar, completed=display.finished, status=status)
        count = escape(f"[{display.finished}/{display.runs}] ") if display.runs > 1 else ""
        display.say(f"{count}{escape(self.label)}  {outcome(record)}")


def outcome(record: Record) -> str:
    """How a run ended, in a few words (rich markup)."""
    took = duration(record.attempts[-1].seconds) if record.attempts else ""
    if record.status is Status.done:
        best = record.best["test/top1_error"]
        return f"[green]error {record.final['test/top1_error']:.2f} %[/]  (best epoch {best:.2f} %)  {took}"
    if record.error is not None and record.status is Status.failed:
        return f"[red]failed[/]  {escape(record.error['type'])}: {escape(record.error['message'])}"
    return f"[yellow]{record.status.value}[/]  {took}"


def duration(seconds: float) -> str:
    """7.2 s, 3:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
