"""What a person sees while runs go on: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from types import TracebackType
from typing import Protocol, TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from dks.config.errors import visible
from dks.runs.journal import Entry
from dks.runs.record import Record, Status

T = TypeVar("T")

# Seconds between two lines in a log about runs under way, whichever run they are about.
LINE_EVERY = 10.0
# Times a second that the bars are drawn.
FRAMES = 4
# Columns of a terminal on which a bar has room for loss and images/s as well, and below which there
# is none for time left.
WIDE, NARROW = 110, 60
# The part of a sweep that must be over before its time left is guessed.
ENOUGH = 0.01


def console(out: TextIO | None = None, stderr: bool = False, width: int | None = None) -> Console:
    """What lines are printed on: a file, standard error, or standard output.

    With NO_COLOR there is no escape code for how letters look, bold ones included, which rich would
    leave.
    """
    plain = os.environ.get("NO_COLOR", "") != ""
    return Console(
        file=out,
        stderr=stderr,
        width=width,
        highlight=False,
        color_system=None if plain else "auto",
    )


class Loudness(IntEnum):
    """How much is told of runs under way."""

    quiet = 0  # only what went wrong
    normal = 1
    verbose = 2  # also what is read and decided


_loudness: ContextVar[Loudness] = ContextVar("loudness", default=Loudness.normal)


@contextmanager
def speaking(loudness: Loudness) -> Iterator[None]:
    """Inside this context displays that are made tell so much."""
    token = _loudness.set(loudness)
    try:
        yield
    finally:
        _loudness.reset(token)


class View(Protocol):
    """What one run tells of itself."""

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Training begins.

        `epochs` in all, `images` an epoch, `finished` epochs done by earlier attempts.
        """

    def stepped(self, images: int) -> None:
        """That many more training images were seen."""

    def recorded(self, entry: Entry) -> None:
        """An epoch is finished."""

    def finished(self, record: Record) -> None:
        """The run is over, however it ended."""


class Shows(Protocol):
    """What runs talk to: a `Display`, or in a worker process what passes everything on to one."""

    def run(self, record: Record) -> View:
        """The view of one run, an observer of its training."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The items, while it is shown how many there have been."""

    def say(self, line: str, urgent: bool = False) -> None:
        """A line that stays (rich markup).

        One that is urgent is told to those who want quiet as well.
        """


_current: ContextVar[Shows | None] = ContextVar("display", default=None)


@contextmanager
def shown_by(shows: Shows) -> Iterator[None]:
    """Inside this context runs talk to it."""
    token = _current.set(shows)
    try:
        yield
    finally:
        _current.reset(token)


class Display:
    """Shows the progress of a number of runs, one after another or several at a time.

    On a terminal there is a bar for every run under way and, where there are several runs, one for
    all of them. In a log, and on a terminal that cannot move its cursor (TERM=dumb), there is a
    line for every finished run and one now and then for those under way. Everything goes to
    standard error.
    """

    def __init__(self, runs: int = 1, on: Console | None = None) -> None:
        """on: what it shows them on; None: standard error."""
        self.runs = runs
        self.console = on or console(stderr=True)
        self.loudness = _loudness.get()
        # FORCE_COLOR has rich take a file for a terminal; a bar would fill it with what moves a
        # cursor.
        is_terminal = self.console.is_terminal and (on is not None or sys.stderr.isatty())
        self.draws = (
            self.loudness > Loudness.quiet and is_terminal and not self.console.is_dumb_terminal
        )
        self.bars: Progress | None = None
        self.views: list[RunView] = []  # of the runs under way
        self.ended: set[str] = set()  # cells whose run is over; one that is tried again counts once
        self._sweep_bar: TaskID | None = None
        self._began: float | None = None  # when the first run started
        self._before = 0.0  # runs' worth of epochs that were done before this command
        self._shown = shown_by(self)

    @classmethod
    def current(cls) -> Shows:
        """What shows the sweep under way, or a new display where a run stands alone."""
        return _current.get() or cls()

    def __enter__(self) -> Display:
        self._shown.__enter__()
        if self.draws:
            self.bars = self.new_bars()
            if self.runs > 1:
                self._sweep_bar = self.bars.add_task("sweep", total=self.runs, status="", left="")
                self.refresh()
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None
        self._shown.__exit__(None, None, None)

    def new_bars(self) -> Progress:
        """Bars as this display draws them, not yet on the screen."""
        width = self.console.width
        left = TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True, justify="right"))
        return Progress(
            TextColumn(
                "{task.description}",
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            BarColumn(bar_width=16 if width >= WIDE else 8 if width >= NARROW else 4),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            *([left] if width >= NARROW else []),
            console=self.console,
            transient=True,
            expand=True,
            refresh_per_second=FRAMES,
        )

    def run(self, record: Record) -> RunView:
        """The view of one run, an observer of its training."""
        return RunView(self, record)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The items, with a bar of their own on a terminal and a line now and then in a log."""
        view = self.count(what)
        try:
            for done, item in enumerate(items):
                view.show(done, total)
                yield item
        finally:
            view.close()

    def count(self, what: str) -> CountView:
        """A bar for how many there have been, or in a log a line now and then."""
        return CountView(self, what)

    def say(self, line: str, urgent: bool = False) -> None:
        """A line that stays."""
        if urgent or self.loudness > Loudness.quiet:
            self.console.print(visible(line), soft_wrap=True)

    def explain(self, line: str) -> None:
        """A line on what is decided, and why, for those who asked for it."""
        if self.loudness is Loudness.verbose:
            self.console.print(visible(line), soft_wrap=True)

    def started(self, view: RunView) -> None:
        """A run begins to train."""
        if self._began is None:
            self._began = time.monotonic()
        if view.cell_id not in self.ended:
            self._before += view.part
        self.refresh()

    def refresh(self) -> None:
        """Bring the bar of the sweep up to date."""
        if self.bars is not None and self._sweep_bar is not None:
            over = len(self.ended)
            # A cell that is tried again has a view as well.
            done = min(
                over + sum(view.part for view in self.views if view.cell_id not in self.ended),
                self.runs,
            )
            left = self._left(done)
            self.bars.update(
                self._sweep_bar,
                completed=done,
                status=f"{over}/{self.runs} runs",
                left="starting"
                if self._began is None
                else ""
                if left is None
                else f"about {duration(left)} left",
            )

    def _left(self, done: float) -> float | None:
        """Seconds until the sweep is over, None while nobody can tell.

        What was done in this command, and the time that took, say how long the rest takes if its
        cells are like those; towards the end, when fewer cells run at a time, it takes at least as
        long as the slowest of the runs under way.
        """
        here = done - self._before
        if self._began is None or here < ENOUGH * self.runs:
            return None
        as_before = (time.monotonic() - self._began) / here * (self.runs - done)
        return max([as_before, *(view.left for view in self.views if math.isfinite(view.left))])


class CountView:
    """A bar for something countable that is neither a run nor a sweep.

    In a log a line now and then.
    """

    def __init__(self, display: Display, what: str) -> None:
        self._display, self._what = display, what
        self._bars: Progress | None = None
        self._alone = False  # there are no bars of a sweep
        self._bar: TaskID | None = None
        self._last_line = time.monotonic()

    def show(self, done: int, total: int) -> None:
        """So many there have been."""
        if not self._display.draws:
            if time.monotonic() - self._last_line > LINE_EVERY:
                self._last_line = time.monotonic()
                self._display.say(f"      {escape(self._what)}  {done:,}/{total:,}")
            return
        if self._bars is None:
            self._alone = self._display.bars is None
            self._bars = self._display.bars or self._display.new_bars()
            self._bar = self._bars.add_task(self._what, total=total, status="", left="")
            if self._alone:
                self._bars.start()
        assert self._bar is not None
        self._bars.update(self._bar, completed=done, status=f"{done:,}/{total:,}")

    def close(self) -> None:
        """It is over; the bar goes."""
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            if self._alone:
                self._bars.stop()
            self._bars = self._bar = None


class RunView:
    """Shows one run: epoch, loss, error, images/s, time left."""

    def __init__(self, display: Display, record: Record) -> None:
        self.display, self.cell_id = display, record.cell_id
        self.label = visible(record.label) or "default configuration"
        self.epochs, self.images, self.seen = 0, 0, 0.0
        self._bar: TaskID | None = None
        self._status = ""
        self._begun = self._last_line = time.monotonic()
        self._seen_before = 0.0
        display.views.append(self)

    @property
    def part(self) -> float:
        """How much of the run is done, in [0, 1]."""
        return min(self.seen / (self.epochs * self.images), 1.0) if self.epochs else 0.0

    @property
    def left(self) -> float:
        """Seconds until it is over at the speed so far, evaluations included.

        Infinite before the first step.
        """
        seen, seconds = self.seen - self._seen_before, time.monotonic() - self._begun
        return (self.epochs * self.images - self.seen) * seconds / seen if seen else math.inf

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Training begins, after `finished` epochs of earlier attempts."""
        self.epochs, self.images, self.seen = epochs, images, float(finished * images)
        self._seen_before, self._begun = self.seen, time.monotonic()
        self._status = f"epoch {finished + 1}/{epochs}"
        self.display.started(self)
        if finished:
            self.display.say(f"{escape(self.label)} goes on after epoch {finished} of {epochs}")
        if self.display.bars is not None:
            self._bar = self.display.bars.add_task(
                escape(self.label),
                total=epochs * images,
                completed=int(self.seen),
                status=self._status,
                left="",
            )

    def stepped(self, images: int) -> None:
        """A step was taken."""
        self.seen += images
        if self.display.bars is not None and self._bar is not None:
            self.display.bars.update(self._bar, completed=self.seen, left=self._time_left())
            self.display.refresh()
        elif time.monotonic() - self._last_line > LINE_EVERY * len(self.display.views):
            self._last_line = time.monotonic()
            self.display.say(f"      {escape(self.label)}  {self._status}  {self._time_left()}")

    def recorded(self, entry: Entry) -> None:
        """An epoch is finished."""
        metrics = entry.metrics
        self._status = (
            f"epoch {entry.epoch}/{self.epochs}  error {metrics['test/top1_error']:.2f} %"
        )
        if self.display.bars is None or self.display.console.width >= WIDE:
            self._status += (
                f"  loss {metrics['train/loss']:.3f}  "
                f"{metrics['train/images_per_second']:,.0f} images/s"
            )
        if self.display.bars is not None and self._bar is not None:
            self.display.bars.update(self._bar, status=self._status)

    def finished(self, record: Record) -> None:
        """The run is over, however it ended."""
        display = self.display
        if display.bars is not None and self._bar is not None:
            display.bars.remove_task(self._bar)
        display.views.remove(self)
        display.ended.add(self.cell_id)
        display.refresh()
        count = escape(f"[{len(display.ended)}/{display.runs}] ") if display.runs > 1 else ""
        display.say(
            f"{count}{escape(self.label)}  {outcome(record)}", urgent=record.status is Status.failed
        )

    def _time_left(self) -> str:
        return f"{duration(self.left)} left" if math.isfinite(self.left) else ""


def say(line: str, urgent: bool = False) -> None:
    """A line (rich markup) on what shows the sweep under way, or on a new display where a run
    stands alone.
    """
    Display.current().say(line, urgent)


def explain(line: str) -> None:
    """A line (plain text) on what is read or decided, for those who asked for it."""
    Display().explain(escape(line))


def outcome(record: Record) -> str:
    """How a run ended, in a few words (rich markup)."""
    took = duration(record.attempts[-1].seconds) if record.attempts else ""
    if record.status is Status.done:
        best = record.best["test/top1_error"]
        return (
            f"[green]error {record.final['test/top1_error']:.2f} %[/]  (best epoch {best:.2f} "
            f"%)  {took}"
        )
    if record.error is not None and record.status is Status.failed:
        return f"[red]failed[/]  {escape(record.error['type'])}: {escape(record.error['message'])}"
    return f"[yellow]{record.status.value}[/]  {took}"


def error_text(metrics: Mapping[str, float], ending: str = "", width: int = 0) -> str:
    """`12.34 / 1.23`, the top-1 and the top-5 test error of the classifier with this ending (`_c2`,
    ...); the latter where there is one, which is not so with five classes or fewer.
    """
    five = metrics.get(f"test/top5_error{ending}")
    return f"{metrics[f'test/top1_error{ending}']:{width}.2f}" + (
        "" if five is None else f" / {five:.2f}"
    )


def error_head(metrics: Mapping[str, float]) -> str:
    """What `error_text` tells."""
    return "top-1 / top-5" if "test/top5_error" in metrics else "top-1"


def duration(seconds: float) -> str:
    """7.2 s, 3:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
