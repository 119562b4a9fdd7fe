"""Many runs and stores: one that fails keeps no other waiting, and time at the end is bounded."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dks.config.schema import Tracking
from dks.runs.record import RunFolder, Status
from dks.tracking import upload_loop
from dks.tracking.sync import sync
from dks.tracking.upload_loop import Store, UploadLoop
from tests.support.journaled import TWO, journaled
from tests.tracking.conftest import check, client, state, status, tracked


def over(loop: UploadLoop, *runs: RunFolder) -> UploadLoop:
    """Told that these runs began and ended."""
    for command in ("begin", "end"):
        for run in runs:
            loop.handle({command: str(run.path)})
    return loop


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_loop, "FIRST_PAUSE", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_fails_is_asked_again_and_keeps_no_other_waiting(here: Path) -> None:
    elsewhere = ("tracking=local", f"tracking.uri=sqlite:///{here}/bad.db")
    good, bad = journaled(here, *tracked()), journaled(here / "more", *elsewhere)
    assert good.cell_id == bad.cell_id, "where it is tracked is no part of a cell"
    Path("bad.db").write_text("no database")
    loop = over(UploadLoop(), bad, good)
    loop.work()
    (left,) = loop.runs.values()
    assert left.folder.path == bad.path
    assert "bad.db" in bad.log_file.read_text()
    begun = time.monotonic()
    (line,) = loop.finish(20)
    assert "1 run " in line and "dks sync" in line
    assert time.monotonic() - begun < 10, "it was silent before, so it is asked once more only"
    shutil.copy("mlflow.db", "bad.db")
    assert over(UploadLoop(), bad).finish(20) == []
    check(bad, f"sqlite:///{here}/bad.db")


def test_a_run_under_way_is_sent_as_it_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_loop, "FIRST", 0.0)
    monkeypatch.setattr(upload_loop, "EVERY", 0.0)
    run = journaled(here, *tracked(), epochs=TWO[:1], status=Status.running)
    loop = UploadLoop()
    loop.handle({"begin": str(run.path)})
    assert loop.is_busy() and loop.work() < 1
    assert (state(run).epoch, status(run)) == (1, "RUNNING")
    run.journal.append(2, 2, TWO[1])
    loop.work()
    assert state(run).epoch == 2 and loop.runs
    check(run)


def test_pictures_wait_until_all_else_is_sent_and_have_little_time_at_the_end(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(folder: RunFolder, into: Path) -> list[Path]:
        (into / "curves.png").touch()
        return [into / "curves.png"]

    def pictured() -> int:
        return sum(state(run).pictured is not None for run in runs)

    runs = [journaled(here, *tracked(), f"seed={seed}") for seed in (1, 2)]
    loop = over(UploadLoop(draw), *runs)
    loop.work()
    assert [status(run) for run in runs] == ["FINISHED", "FINISHED"]
    assert not loop.runs and pictured() == 1, "one at a time, when nothing else is to be sent"
    monkeypatch.setattr(upload_loop, "PICTURES", 0.0)
    (line,) = loop.finish(30)
    assert "pictures of 1 run" in line and pictured() == 1
    report = sync("runs", draw=draw)
    assert [(run.points, run.told) for run in report.runs].count((0, True)) == 1
    assert pictured() == 2


@pytest.mark.usefixtures("impatient")
def test_what_fails_at_the_end_is_tried_again_until_time_is_up(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = journaled(here, *tracked())
    failures = iter(range(3))
    log_batch = type(client()).log_batch

    def shaky(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(failures, None) is not None:
            raise ConnectionError("the line is down")
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(type(client()), "log_batch", shaky)
    assert over(UploadLoop(), run).finish(30) == []
    check(run)
    assert status(run) == "FINISHED"


def test_a_damaged_configuration_keeps_no_other_run_waiting(here: Path) -> None:
    good, bad = (journaled(here, *tracked(), f"seed={seed}") for seed in (1, 2))
    bad.config_file.write_text("{")
    (line,) = over(UploadLoop(), bad, good).finish(20)
    assert str(bad.path) in line
    check(good)


def test_a_store_may_be_gone_for_days() -> None:
    gone = Store(Tracking(uri="sqlite:///mlflow.db"))
    for _ in range(5000):
        gone.fail(ConnectionError("nobody is there"))
    assert gone.quiet_until - time.monotonic() <= 30


def test_a_store_that_fails_twice_running_is_not_asked_for_every_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [journaled(here, *tracked(), f"seed={seed}") for seed in range(4)]
    asked = []

    def silent(folder: RunFolder, *arguments: Any, **options: Any) -> int:
        asked.append(folder.cell_id)
        raise ConnectionError("nobody is there")

    with monkeypatch.context() as patch:
        patch.setattr(upload_loop, "upload", silent)
        report = sync("runs")
    assert len(asked) == 2
    assert [run.problem for run in report.runs] == ["nobody is there"] * len(runs)
    assert not sync("runs").failed
