"""Cells one after another in this process, and what a worker tells the pool."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from dks.config.errors import RequestError
from dks.runs.record import Status
from dks.runs.terminal import shown_by
from dks.sweeps.launchers.worker import RemoteDisplay, run_cells
from tests.conftest import queued
from tests.support.launched import EXPLODES, failures, launched, log_display, record_of, said


def test_a_cell_that_fails_is_tried_again_and_the_next_ones_run(tmp_path: Path) -> None:
    """Its log records go into its folder and only there."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    fails, works = launched(tmp_path, EXPLODES, (), retries=2)
    with log_display(2) as display:
        run_cells([fails.path, works.path])
    assert (list(root.handlers), root.level) == before
    assert [attempt.status for attempt in record_of(fails).attempts] == ["failed"] * 3
    assert len(record_of(works).attempts) == 1
    assert failures(fails) == {fails.cell_id}
    assert said(display).count("is tried again (") == 2
    text = fails.log_file.read_text()
    assert text.count(" ERROR dks.training.run: ") == text.count("Traceback") == 3
    assert not works.log_file.exists() or "Traceback" not in works.log_file.read_text()


def test_after_too_many_failures_no_cell_is_begun(tmp_path: Path) -> None:
    cells = launched(tmp_path, EXPLODES, (*EXPLODES, "seed=1"), (), max_failures=2)
    run_cells([cell.path for cell in cells])
    assert [record_of(cell).status for cell in cells] == [
        Status.failed,
        Status.failed,
        Status.queued,
    ]


def test_a_cell_that_cannot_begin_does_not_stop_the_others(tmp_path: Path) -> None:
    broken, works = launched(tmp_path, (), ("seed=1",))
    broken.config_file.unlink()
    with pytest.raises(RequestError, match=r"config.yaml"):
        run_cells([broken.path, works.path])
    assert record_of(works).status is Status.done
    assert failures(works) == {broken.cell_id}
    assert "Traceback" in broken.log_file.read_text()


def messages(connection: Any) -> list[tuple[Any, ...]]:
    found = []
    while connection.poll():
        found.append(connection.recv())
    return found


def test_a_worker_tells_what_its_run_does(tmp_path: Path) -> None:
    cell = queued(tmp_path, "data.train_images=640")
    ours, theirs = multiprocessing.Pipe()
    with shown_by(RemoteDisplay(theirs)):
        run_cells([cell.path])
    told = messages(ours)
    assert told[:2] == [("run",), ("started", 2, 640, 0)]
    assert told[-1] == ("finished", Status.done, None)
    assert [each[1].epoch for each in told if each[0] == "recorded"] == [1, 2]
    steps = [each[1] for each in told if each[0] == "stepped"]
    assert sum(steps) == 2 * 640
    assert len(steps) < 2 * 10, "not one message a step"


def test_a_run_goes_on_when_the_pool_is_gone(tmp_path: Path) -> None:
    cell = queued(tmp_path)
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    with shown_by(RemoteDisplay(theirs)):
        run_cells([cell.path])
    assert record_of(cell).status is Status.done


def test_items_are_counted_for_the_other_side() -> None:
    ours, theirs = multiprocessing.Pipe()
    assert list(RemoteDisplay(theirs).track("abc", 3, "decoding images")) == ["a", "b", "c"]
    first, *_, last = messages(ours)
    assert first == ("track", "decoding images", 0, 3)
    assert last == ("track", "decoding images", 3, 3)
