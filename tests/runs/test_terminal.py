"""What is shown while runs go on."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dks.runs import terminal
from dks.runs.journal import Entry
from dks.runs.record import Attempt, Record, Status
from dks.runs.terminal import Display, Loudness, RunView, shown_by, speaking
from tests.conftest import ROOT


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    standing = Clock()
    monkeypatch.setattr(terminal, "time", standing)
    return standing


def record(name: str, status: Status = Status.running) -> Record:
    fresh = Record(
        cell_id=name,
        config_id="",
        seed=0,
        method="dks",
        choices={},
        label=f"seed={name}",
        overrides=[],
        status=status,
    )
    fresh.attempts.append(
        Attempt(started="", host="", pid=1, device="cpu", threads=1, seconds=7.25)
    )
    if status is Status.done:
        fresh.final = {"epoch": 4, "test/top1_error": 5.5}
        fresh.best = {"epoch": 3, "test/top1_error": 5.25}
    if status is Status.failed:
        fresh.error = {"type": "NonFiniteLoss", "message": "at [step 3]"}
    return fresh


def entry(epoch: int) -> Entry:
    return Entry(
        epoch,
        epoch,
        "",
        {"train/loss": 1.5, "test/top1_error": 12.5, "train/images_per_second": 2345.0},
    )


def log(runs: int) -> Display:
    return Display(runs, Console(file=io.StringIO(), highlight=False))


def on_terminal(runs: int, width: int = 120) -> Display:
    able = {"TERM": "xterm-256color"}  # whatever the terminal is that the tests are started from
    out = io.StringIO()
    return Display(
        runs,
        Console(
            file=out, force_terminal=True, width=width, height=24, highlight=False, _environ=able
        ),
    )


def written(display: Display) -> str:
    assert isinstance(display.console.file, io.StringIO)
    return display.console.file.getvalue()


def bars(display: Display) -> list[str]:
    """The lines on the screen, without colours."""
    assert display.bars is not None
    console = Console(
        file=io.StringIO(),
        width=display.console.width,
        force_terminal=True,
        no_color=True,
        color_system=None,
    )
    console.print(display.bars)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def begun(display: Display, name: str, finished: int = 0) -> RunView:
    """A run of 4 epochs with 100 images each."""
    view = display.run(record(name))
    view.started(4, 100, finished)
    return view


def test_a_log_has_a_line_for_every_finished_run() -> None:
    with log(3) as display:
        for name, status in (("1", Status.done), ("2", Status.failed), ("3", Status.killed)):
            begun(display, name).finished(record(name, status))
    assert written(display).splitlines() == [
        "[1/3] seed=1  error 5.50 %  (best epoch 5.25 %)  7.2 s",
        "[2/3] seed=2  failed  NonFiniteLoss: at [step 3]",
        "[3/3] seed=3  killed  7.2 s",
    ]


def test_a_log_has_a_line_now_and_then_however_many_run_at_a_time(clock: Clock) -> None:
    with log(20) as display:
        views = [begun(display, str(number)) for number in range(8)]
        for _ in range(200):  # 200 seconds
            clock.now += 1
            for view in views:
                view.stepped(1)
    lines = written(display).splitlines()
    assert 8 <= len(lines) <= 20, "one every 10 seconds"
    assert len({line.split()[0] for line in lines}) == 8, "each run has its turn"


def test_a_line_in_a_log_says_how_the_run_does(clock: Clock) -> None:
    with log(2) as display:
        view = begun(display, "1")
        clock.now += 5
        view.stepped(100)
        view.recorded(entry(1))
        clock.now += 15
        view.stepped(60)
    assert (
        written(display)
        == "      seed=1  epoch 1/4  error 12.50 %  loss 1.500  2,345 images/s  30.0 s left\n"
    )


def test_each_run_under_way_has_a_bar_below_the_one_of_the_sweep(clock: Clock) -> None:
    with on_terminal(3) as display:
        one, two = begun(display, "1"), begun(display, "2")
        clock.now += 10
        one.stepped(100)
        one.recorded(entry(1))
        two.stepped(200)
        sweep, first, second = bars(display)
        assert re.fullmatch(r"sweep +[━╸╺ ]+ 0/3 runs +about 30.0 s left", sweep)
        assert re.fullmatch(
            r"seed=1 +[━╸╺ ]+ epoch 1/4  error 12.50 %  loss 1.500  2,345 images/s +30.0 s left",
            first,
        )
        assert re.fullmatch(r"seed=2 +[━╸╺ ]+ epoch 1/4 +10.0 s left", second)
        one.finished(record("1", Status.done))
        three = begun(display, "3")
        assert [line.split()[0] for line in bars(display)] == ["sweep", "seed=2", "seed=3"]
        assert "1/3 runs" in bars(display)[0]
        three.finished(record("3", Status.done))
        two.finished(record("2", Status.done))


def bars_of_a_long_run(clock: Clock, width: int) -> list[str]:
    """What is shown of the first of nine runs, in its hundredth epoch, on a terminal so wide."""
    with on_terminal(9, width=width) as display:
        view = display.run(record("aux=ours strategy=topdown backbone=densenet40_12"))
        view.started(200, 50000, 0)
        clock.now += 100
        view.stepped(50000)
        view.recorded(entry(100))
        return bars(display)


def test_on_a_narrow_terminal_a_bar_still_names_its_run(clock: Clock) -> None:
    _, line = bars_of_a_long_run(clock, 80)  # one line each
    assert re.fullmatch(
        r"seed=aux=ours strategy=topdo… +[━╸╺]* +epoch 100/200  error 12.50 % 5:31:40 left", line
    )


def test_on_a_very_narrow_terminal_a_bar_is_still_one_line_that_names_its_run(clock: Clock) -> None:
    sweep, run = bars_of_a_long_run(clock, 40)
    assert re.fullmatch(r"sweep +[━╸╺ ]* *0/9 runs", sweep) and re.fullmatch(
        r"seed.*… +[━╸╺ ]* *epoch 100/200.*", run
    )
    assert max(len(sweep), len(run)) <= 40


def test_the_sweeps_time_left_follows_from_what_it_has_done_so_far(clock: Clock) -> None:
    with on_terminal(5) as display:
        one, two = begun(display, "1"), begun(display, "2")
        assert bars(display)[0].endswith("0/5 runs"), "nobody can tell yet"
        clock.now += 100
        one.stepped(400)
        two.stepped(100)  # 1.25 runs in 100 s, 3.75 to go; the second run alone needs 300 s
        assert bars(display)[0].endswith("about 5:00 left")
        one.finished(record("1", Status.done))
        clock.now += 100
        for name in "345":
            view = begun(display, name)
            view.stepped(400)
            view.finished(record(name, Status.done))
        # 4.375 runs in 200 s, 0.625 to go: but not faster than the run that is left, 333 s
        two.stepped(50)
        assert bars(display)[0].endswith("about 5:33 left")


def test_epochs_of_earlier_attempts_do_not_make_a_sweep_look_fast(clock: Clock) -> None:
    with on_terminal(2) as display:
        view = begun(display, "1", finished=2)
        clock.now += 100
        view.stepped(100)  # a quarter of a run in 100 s; 1.25 to go
        assert bars(display)[0].endswith("about 8:20 left")
        assert bars(display)[1].endswith(" 1:40 left")
        assert "seed=1 goes on after epoch 2 of 4" in written(display)


def test_a_run_that_is_tried_again_counts_once() -> None:
    with log(2) as display:
        begun(display, "1").finished(record("1", Status.failed))
        begun(display, "1").finished(record("1", Status.done))
        begun(display, "2").finished(record("2", Status.done))
    assert [line[:5] for line in written(display).splitlines()] == ["[1/2]", "[1/2]", "[2/2]"]


def test_hundreds_of_runs_leave_no_bars_behind() -> None:
    with on_terminal(500) as display:
        for number in range(500):
            begun(display, str(number)).finished(record(str(number), Status.done))
        assert display.views == []
        assert len(bars(display)) == 1
    assert written(display).count("error 5.50 %") == 500


def test_items_are_counted_on_a_terminal_and_passed_on_in_a_log() -> None:
    with on_terminal(2) as display:
        items: Iterator[int] = display.track(range(1000), 1000, "decoding images")
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        assert re.fullmatch(r"decoding images +[━╸╺]* +2/1,000", bars(display)[1])
        assert len(list(items)) == 997
        assert len(bars(display)) == 1
    with log(2) as display:
        assert list(display.track("abc", 3, "decoding images")) == ["a", "b", "c"]
    assert written(display) == ""


def test_a_log_has_a_line_now_and_then_about_what_is_counted(clock: Clock) -> None:
    with log(1) as display:
        for _ in display.track(range(100), 100, "decoding [all] images"):
            clock.now += 3.5
    lines = [line.strip() for line in written(display).splitlines()]
    assert (
        lines[:2] == ["decoding [all] images  3/100", "decoding [all] images  6/100"]
        and len(lines) == 33
    )


def test_a_run_talks_to_what_shows_it() -> None:
    class Elsewhere(Display):
        """Stands for the display of another process."""

    there = Elsewhere()
    assert Display.current() is not Display.current(), "alone, each run has its own"
    with log(2) as display:
        assert Display.current() is display
        with shown_by(there):
            assert Display.current() is there
        assert Display.current() is display


def test_who_wants_quiet_is_told_what_went_wrong_and_nothing_else() -> None:
    with speaking(Loudness.quiet), on_terminal(3) as display:
        assert display.bars is None
        for name, status in (("1", Status.done), ("2", Status.failed)):
            begun(display, name).finished(record(name, status))
        display.say("a line")
        display.say("a line that must be read", urgent=True)
        display.explain("why")
    said = re.sub("\x1b\\[[0-9;]*m", "", written(display))
    assert said.splitlines() == [
        "[2/3] seed=2  failed  NonFiniteLoss: at [step 3]",
        "a line that must be read",
    ]


def test_why_is_told_to_who_asks_for_it() -> None:
    for loudness, expected in ((Loudness.normal, "a line\n"), (Loudness.verbose, "a line\nwhy\n")):
        with speaking(loudness):
            display = log(1)
        display.say("a line")
        display.explain("why")
        assert written(display) == expected


SHOW = """
import time
from dks.runs.terminal import Display
from dks.runs.journal import Entry
from dks.runs.record import Record, Status
metrics = {"train/loss": 1.5, "test/top1_error": 12.5, "train/images_per_second": 2345.0}
with Display(2) as display:
    records = [Record(name, "", 0, "dks", {}, f"seed={name}", []) for name in "12"]
    views = [display.run(record) for record in records]
    for view in views:
        view.started(4, 100, 0)
        view.stepped(100)
        view.recorded(Entry(1, 1, "", metrics))
    time.sleep(0.6)
    for record, view in zip(records, views):
        record.status, record.final, record.best = Status.done, metrics, metrics
        view.finished(record)
"""


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_on_a_real_terminal_bars_are_drawn_and_gone_in_the_end(variables: dict[str, str]) -> None:
    """With NO_COLOR no letter is coloured or bold; where no cursor can be moved there is no bar."""
    ours, theirs = pty.openpty()
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")
    }
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        **variables,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW], stderr=theirs, cwd=Path("/"), env=environment
    )
    os.close(theirs)
    shown = b""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            got = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not got:
            break
        shown += got
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert ("epoch 1/4  error 12.50 %" in text) is ("TERM" not in variables)
    assert "[2/2] seed=2" in re.sub("\x1b\\[[0-9;]*m", "", text)
    assert text.rstrip().rpartition("\n")[2].count("━") == 0, "the last line is no bar"
    assert bool(re.search("\x1b\\[[0-9;]*3[0-9]m", text)) is (not variables)
    assert bool(re.search("\x1b\\[[0-9;]*m", text)) is (not variables)
    assert ("\x1b" in text) is ("TERM" not in variables)


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_a_log_has_whole_lines_and_nothing_that_moves_a_cursor(
    variables: dict[str, str], coloured: bool
) -> None:
    """As under SLURM; however narrow the terminal is said to be."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")
    }
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "20",
        "TERM": "xterm-256color",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, cwd=Path("/"), env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    assert bool(re.search("\x1b\\[[0-9;]*3[0-9]m", done.stderr)) is coloured
    plain = re.sub("\x1b\\[[0-9;]*m", "", done.stderr)
    assert "\x1b" not in plain
    assert [line.split("  ")[:2] for line in plain.splitlines()] == [
        ["[1/2] seed=1", "error 12.50 %"],
        ["[2/2] seed=2", "error 12.50 %"],
    ]
