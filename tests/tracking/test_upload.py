"""MLflow is brought up to what the folder of a run says: everything once, whatever was lost."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dks.config.identity import flatten
from dks.runs.record import RunFolder, Status
from dks.runs.states import survey
from dks.tracking import upload
from dks.tracking.sync import close_dead, sync, tell_dead
from dks.tracking.upload_loop import Uploaded
from tests.support.journaled import TWO, attempted, journaled
from tests.tracking.conftest import check, client, state, status, tracked, uri

KILLED = Status.killed


def sent(run: RunFolder, **options: Any) -> Uploaded:
    (found,) = sync(str(run.path.parent), [run.cell_id], **options).runs
    return found


def test_a_run_that_goes_on_has_every_epoch_once(here: Path) -> None:
    run = journaled(here, *tracked(), epochs=TWO[:1], status=KILLED)
    assert sent(run) == Uploaded(run.cell_id, uri(), 3, "KILLED", told=True)
    assert status(run) == "KILLED"
    check(run)
    attempted(run, TWO[1:])
    assert sent(run) == Uploaded(run.cell_id, uri(), 3, "FINISHED", told=True)
    check(run)
    assert sent(run) == Uploaded(run.cell_id, uri(), 0, "FINISHED", told=False)
    (found,) = client().search_runs(["1"])
    record = run.read_record()
    assert record is not None
    assert found.info.status == "FINISHED"
    assert (found.data.tags["dks.attempts"], found.data.tags["dks.uid"]) == ("2", record.uid)
    assert found.data.metrics["best/test/top1_error"] == 40.0
    assert found.data.metrics["cost/seconds"] == 3.0


def test_where_mlflow_json_is_lost_the_run_is_found_again(here: Path) -> None:
    run = journaled(here, *tracked())
    sent(run)
    for damage in (None, "", "{", '{"uri": 3}', "[]"):
        if damage is None:
            run.mlflow_file.unlink()
        else:
            run.mlflow_file.write_text(damage)
        assert sent(run).points == 0
        check(run)
    assert len(client().search_runs(["1"])) == 1


def test_what_an_earlier_version_noted_is_read(here: Path) -> None:
    """A note of the first edition, key for key."""
    run = journaled(here, *tracked())
    sent(run)
    values = json.loads(run.mlflow_file.read_text())
    kept = ("uri", "run_id", "experiment_id", "epoch", "time", "attempts", "status", "ended")
    assert set(values) == {*kept, "pictured", "superseded", "cell_id"}
    run.mlflow_file.write_text(json.dumps({**{key: values[key] for key in kept}, "other": 1}))
    assert sent(run).points == 0
    assert json.loads(run.mlflow_file.read_text())["run_id"] == values["run_id"]


def test_a_store_that_is_made_anew_or_brought_back_gets_what_it_lacks(here: Path) -> None:
    run = journaled(here, *tracked(), epochs=TWO[:1], status=KILLED)
    shutil.copy("mlflow.db", "empty.db")
    sent(run)
    shutil.copy("mlflow.db", "backup.db")
    attempted(run, TWO[1:])
    sent(run)
    for copy, points in (("backup.db", 3), ("empty.db", 6)):
        shutil.copy(copy, "mlflow.db")
        again = sent(run)
        assert (again.points, again.status) == (points, "FINISHED")
        check(run)
    assert sent(run).points == 0


def test_what_is_measured_again_takes_the_place_of_what_was_sent(here: Path) -> None:
    """All checkpoints are lost, so the run begins again: MLflow holds its new journal alone."""
    run = journaled(here, *tracked(), epochs=TWO[:1], status=KILLED)
    sent(run)
    before = state(run).run_id
    run.journal.path.unlink()
    attempted(run, TWO)
    sent(run)
    check(run)
    assert [found.info.run_id for found in client().search_runs(["1"])] == [state(run).run_id]
    assert client().get_run(before).info.lifecycle_stage == "deleted"


def test_a_damaged_journal_takes_nothing_away_from_the_store(here: Path) -> None:
    run = journaled(here, *tracked())
    sent(run)
    before = client().get_run(state(run).run_id).data
    with run.journal.path.open("r+b") as file:
        file.truncate(run.journal.path.stat().st_size - 20)
    assert sent(run).points == 0
    after = client().get_run(state(run).run_id).data
    assert (after.metrics, after.tags) == (before.metrics, before.tags)


def test_long_histories_are_sent_in_whole_epochs(here: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(upload, "POINTS", 7)  # two epochs of three, not a third one
    calls = []
    log_batch = type(client()).log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), **options: Any) -> None:
        calls.append(len(metrics))
        log_batch(self, run_id, metrics=metrics, **options)

    monkeypatch.setattr(type(client()), "log_batch", counted)
    run = journaled(here, *tracked(), epochs=TWO * 2 + TWO[:1])
    assert sent(run).points == 15
    assert [count for count in calls if count] == [6, 6, 3, 6], "and the summary, of 6 points"
    check(run)


def test_what_mlflow_cannot_hold_is_kept_all_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"test/loss": math.inf, "train/loss": -math.inf, "test/top1_error": math.nan}
    run = journaled(here, *tracked(), epochs=(TWO[0], odd))
    long = "x" * 7000
    monkeypatch.setattr(upload, "flatten", lambda tree: {**flatten(tree), "data.name": long})
    assert sent(run).points == 6
    check(run)
    told = client().get_run(state(run).run_id).data.params["data.name"]
    assert len(told) < 6000 and told.startswith("xxx") and "7000 characters" in told
    folder = Path(client().download_artifacts(state(run).run_id, ""))
    assert (folder / "params" / "data.name.txt").read_text() == long
    assert (folder / "metrics.jsonl").read_text() == run.journal.path.read_text(), (
        "NaN and infinity are in it as they were"
    )


def test_files_and_pictures_are_kept_beside_the_metrics(here: Path) -> None:
    run = journaled(here, *tracked())
    for name in ("environment.json", "model.txt", "run.log"):
        (run.path / name).write_text("{}")

    def draw(folder: RunFolder, into: Path) -> list[Path]:
        (into / "curves.png").touch()
        return [into / "curves.png"]

    assert sent(run, draw=draw).told
    kept = {file.path for file in client().list_artifacts(state(run).run_id)}
    assert kept == {
        "config.yaml",
        "curves.png",
        "environment.json",
        "metrics.jsonl",
        "model.txt",
        "record.json",
        "run.log",
    }
    assert not sent(run, draw=draw).told, "once is enough"


def test_a_run_under_way_is_sent_without_its_end(here: Path) -> None:
    run = journaled(here, *tracked(), epochs=TWO[:1], status=Status.running)
    assert run.claim()
    try:
        assert sent(run) == Uploaded(run.cell_id, uri(), 3, "RUNNING", told=True)
    finally:
        run.release()


def test_a_run_that_was_deleted_stays_deleted(here: Path) -> None:
    run = journaled(here, *tracked())
    sent(run)
    client().delete_run(state(run).run_id)
    problem = str(sent(run).problem)
    assert "deleted" in problem and f"mlflow runs restore --run-id {state(run).run_id}" in problem
    assert client().search_runs(["1"]) == []


# --- runs that died


def died(folder: Path, *overrides: str) -> RunFolder:
    """A run whose process was killed in its second epoch, which MLflow has as running."""
    run = journaled(folder, *tracked(), *overrides, epochs=TWO[:1], status=Status.running)
    assert run.claim()
    sent(run)
    run.release()
    assert status(run) == "RUNNING"
    return run


def test_a_run_that_died_is_told_to_have(here: Path) -> None:
    run = died(here)
    assert (sent(run).status, status(run)) == ("KILLED", "KILLED")
    record = run.read_record()
    assert record is not None and record.error is not None
    assert (record.status, record.error["type"]) == (Status.killed, "Died")
    other = died(here, "seed=1")
    standings = close_dead(survey("runs", [other.cell_id]))
    assert tell_dead(standings) == []
    assert status(other) == "KILLED"
    assert tell_dead(standings) == [], "it is told once"
    third = died(here, "seed=2")
    standings = close_dead(survey("runs", [third.cell_id]))
    third.config_file.write_text("{")
    (problem,) = tell_dead(standings)
    assert "config.yaml" in problem


def test_a_run_elsewhere_that_is_silent_is_killed_in_mlflow_and_its_record_left_alone(
    here: Path,
) -> None:
    run = died(here)
    record = run.read_record()
    assert record is not None
    record.attempts[-1].host = "another"
    run.write_record(record)
    assert sent(run).status == "KILLED"
    after = run.read_record()
    assert after is not None and after.status is Status.running


def test_the_run_of_a_sweep_stands_as_its_cells_do(here: Path) -> None:
    mine = (*tracked(), "sweep=mine")
    runs = [journaled(here, *mine, "seed=1")]
    runs.append(journaled(here, *mine, "seed=2", epochs=TWO[:1], status=Status.failed))
    sync("runs")
    (parent,) = client().search_runs(["1"], "tags.`dks.role` = 'sweep'")
    assert (parent.info.run_name, parent.info.status) == ("mine", "FAILED")
    children = client().search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.data.tags["dks.cell_id"] for run in children} == {run.cell_id for run in runs}
    attempted(runs[1], TWO[1:])
    sync("runs")
    assert client().get_run(parent.info.run_id).info.status == "FINISHED"


def test_nobody_has_a_name_in_some_containers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError(os.getuid())

    monkeypatch.setattr(upload, "getuser", unknown)
    run = journaled(here, *tracked())
    sent(run)
    assert "mlflow.user" not in client().get_run(state(run).run_id).data.tags
