"""Runs of another code than today's: told, gone on with, trained again.

The execution that makes room is kept, in no mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dks.config.errors import RequestError
from dks.config.schema import Tracking
from dks.machine import code
from dks.machine.interruption import Interrupted
from dks.runs import superseded
from dks.runs.attempts import Attempt, computed_by, contributing, other_codes
from dks.runs.record import RunFolder, Status
from dks.runs.states import State
from dks.runs.superseded import executions
from dks.sweeps.cell import Cell
from dks.sweeps.launch import queue
from dks.sweeps.plan import Plan, _chosen, plan
from dks.sweeps.spec import Grid, Point
from dks.sweeps.summary import single, summary
from dks.tracking.destination import Destination
from dks.tracking.mlflow_source import MlflowSource
from dks.tracking.records import RecordSource
from dks.tracking.sender import sent_elsewhere
from dks.tracking.sync import sync
from dks.tracking.upload import upload, upload_pictures
from dks.training.run import Outcome, run_cell
from hydra_plugins.dks_sweeper import sweeper
from tests.conftest import TINY, composed, queued, raise_at
from tests.support.tracking_services import mlflow_client

ONE, TWO = "1" * 64, "2" * 64
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says which code is today's."""

    def become(hexadecimal: str) -> None:
        monkeypatch.setattr(code, "_own", lambda: hexadecimal)

    become(ONE)
    return become


def planned(folder: Path, *overrides: str, same_code: bool = False) -> Plan:
    point = Point(
        (*TINY, "recipe.epochs=1", "tracking=off", f"runs_dir={folder / 'runs'}", *overrides), {}
    )
    return plan(Grid((), (point,), "mine"), lambda given: composed(*given), same_code=same_code)


def once_more(folder: Path, *overrides: str) -> RunFolder:
    """The cell trained again where another code has computed it."""
    (cell,) = planned(folder, *overrides, same_code=True).cells
    queue(cell)
    run = RunFolder(folder / "runs" / cell.cell_id)
    assert run_cell(run.path) in (Outcome.done, Outcome.already_done)
    return run


def codes_of(run: RunFolder) -> list[str | None]:
    record = run.read_record()
    assert record is not None
    return [each.code for each in computed_by(record.attempts)]


# --- what a result is made of


def attempt(first_step: int | None, hexadecimal: str | None) -> Attempt:
    return Attempt(
        "2026-01-02T03:04:05.000+00:00",
        "here",
        1,
        "cpu",
        1,
        first_step=first_step,
        code=hexadecimal,
    )


def test_a_result_is_made_of_the_attempts_since_the_last_beginning() -> None:
    a = attempt(0, ONE)
    b = attempt(0, TWO)
    never = attempt(None, TWO)
    on = attempt(7, TWO)
    old = attempt(None, None)
    for attempts, expected in (
        ([a], [a]),
        ([a, b], [b]),
        ([a, on], [a, on]),
        ([a, never, on], [a, on]),
        ([a, never, b], [b]),
        ([old, on], [old, on]),
        ([old, b], [b]),
        ([never], []),
        ([], []),
    ):
        assert contributing(attempts) == expected


def test_the_codes_that_are_not_todays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert other_codes([attempt(0, ONE)]) == []
    assert other_codes([attempt(0, ONE), attempt(3, TWO)]) == [TWO]
    assert other_codes([attempt(None, None)]) == [None] == other_codes([]), (
        "what does not tell it is not today's"
    )
    (tmp_path / "equal").write_text(f"{TWO} {ONE}\n")
    monkeypatch.setattr(code, "EQUAL", tmp_path / "equal")
    code._equal.cache_clear()
    assert other_codes([attempt(0, ONE), attempt(3, TWO)]) == []
    code._equal.cache_clear()


# --- told


@pytest.mark.slow
def test_a_done_cell_of_another_code_is_told_with_the_command_that_trains_it_again(
    run_here: Run, in_folder: Path, today: Callable[[str], None]
) -> None:
    arguments = (*TINY, "recipe.epochs=1")
    assert run_here(*arguments)[0] == 0
    (path,) = (in_folder / "runs").iterdir()
    before = RunFolder(path).weights_file.stat().st_ino
    assert "another code" not in run_here(*arguments)[2]
    today(TWO)
    _, out, err = run_here(*arguments)
    assert (
        "1 done cell was computed by another code than today's 222222222222 (111111111111: 1); "
        "trained again by: " in err
    )
    assert "hydra.sweeper.code=same" in err and RunFolder(path).weights_file.stat().st_ino == before
    status, out, err = run_here(*arguments, "hydra.sweeper.code=same")
    assert (status, out.splitlines()[0].split()[0]) == (0, str(path.relative_to(in_folder)))
    assert (
        f"running cell {path.name}" in err
        and "1 cell is trained again; what another code left is kept in superseded/" in err
    )
    assert codes_of(RunFolder(path)) == [TWO]
    (old,) = executions(RunFolder(path))
    assert (
        codes_of(old) == [ONE]
        and old.weights_file.stat().st_ino == before
        and old.cell_id == path.name
    )
    _, _, err = run_here(*arguments, "hydra.sweeper.code=same")
    assert (
        "the cell is done, nothing to launch" in err and len(list(executions(RunFolder(path)))) == 1
    )
    status, _, err = run_here(*arguments, "hydra.sweeper.code=some")
    assert (status, err) == (
        2,
        "error: hydra.sweeper.code=some: choose same, or null, which trains nothing again\n",
    )


def test_a_run_of_an_older_version_is_of_an_unknown_code(tmp_path: Path) -> None:
    run = once_more(tmp_path)
    values = json.loads(run.record_file.read_text())
    for name in ("code", "first_step"):
        del values["attempts"][0][name]
    run.record_file.write_text(json.dumps(values))
    assert "another code than today's 111111111111 (unknown: 1)" in summary(planned(tmp_path))
    assert codes_of(once_more(tmp_path)) == [ONE]


def test_nothing_is_chosen_by_runs_that_are_to_be_trained_again(
    tmp_path: Path, today: Callable[[str], None]
) -> None:
    held = ("data.holdout=8",)
    once_more(tmp_path, *held)
    (cell,) = planned(tmp_path, *held, same_code=True).cells
    assert _chosen({"1": (cell,)}) == ("1", ())
    today(TWO)
    (cell,) = planned(tmp_path, *held, same_code=True).cells
    assert (cell.anew, cell.state, _chosen({"1": (cell,)})) == (True, State.done, (None, ()))


# --- gone on with


THREE_STEPS = ("recipe.epochs=1", "data.train_images=96", "recipe.batch_size=32")


def saved(folder: Path) -> RunFolder:
    """A run that was asked to stop after its second step."""
    from dks.training.trainer import Trainer

    run, asked = queued(folder, *THREE_STEPS), Trainer._asked
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Trainer,
            "_asked",
            lambda self: Interrupted("SIGTERM") if self.progress.step == 2 else asked(self),
        )
        with pytest.raises(Interrupted):
            run_cell(run.path)
    return run


def test_a_run_that_goes_on_under_another_code_says_so_and_is_of_both(
    tmp_path: Path, today: Callable[[str], None]
) -> None:
    run = saved(tmp_path)
    assert "another code" not in summary(planned(tmp_path, *THREE_STEPS))
    today(TWO)
    said = summary(planned(tmp_path, *THREE_STEPS))
    assert (
        "1 unfinished run goes on under another code than before (111111111111: 1) and will be "
        "marked as of both; " in said
    )
    with pytest.MonkeyPatch.context() as patched:  # one that never trained leaves no trace
        patched.setattr("dks.training.run.build_network", raise_at(1, OSError("no disk")))
        assert run_cell(queued(tmp_path, *THREE_STEPS).path) is Outcome.failed
    assert run_cell(queued(tmp_path, *THREE_STEPS).path) is Outcome.done
    record = run.read_record()
    assert record is not None
    assert [(each.first_step, each.code) for each in record.attempts] == [
        (0, ONE),
        (None, TWO),
        (2, TWO),
    ]
    assert codes_of(run) == [ONE, TWO]
    assert "computed by another code than today's 222222222222 (111111111111: 1)" in summary(
        planned(tmp_path, *THREE_STEPS)
    )


def test_an_unfinished_run_of_another_code_begins_anew_when_one_code_is_asked_for(
    tmp_path: Path, today: Callable[[str], None]
) -> None:
    run = saved(tmp_path)
    today(TWO)
    once_more(tmp_path, *THREE_STEPS)
    assert codes_of(run) == [TWO]
    (old,) = executions(run)
    assert old.checkpoints.is_dir() and codes_of(old) == [ONE]
    killed = old.read_record()
    assert killed is not None and killed.status is Status.killed


def test_a_run_that_begins_at_its_first_step_is_of_todays_code_alone(
    tmp_path: Path, today: Callable[[str], None]
) -> None:
    run = queued(tmp_path, *THREE_STEPS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dks.runs.terminal.RunView.stepped", raise_at(2, OSError("no checkpoint")))
        assert run_cell(run.path) is Outcome.failed
    today(TWO)
    assert single(planned(tmp_path, *THREE_STEPS)) == f"running cell {run.cell_id}"
    assert run_cell(queued(tmp_path, *THREE_STEPS).path) is Outcome.done
    assert codes_of(run) == [TWO]


# --- trained again


def test_every_execution_that_makes_room_is_kept_and_another_process_may_come_first(
    tmp_path: Path, today: Callable[[str], None]
) -> None:
    run = once_more(tmp_path)
    for number, hexadecimal in enumerate((TWO, "3" * 64), 1):
        today(hexadecimal)
        late = planned(tmp_path, same_code=True).cells[0]
        once_more(tmp_path)
        queue(late)  # planned before the other one was done
        assert codes_of(run) == [hexadecimal]
        assert [each.path.name for each in executions(run)] == [
            str(each) for each in range(1, number + 1)
        ]
    assert [codes_of(each) for each in executions(run)] == [[ONE], [TWO]]


class Killed(BaseException):
    """A stand-in for SIGKILL."""


def test_a_move_that_is_killed_anywhere_loses_nothing_and_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = once_more(tmp_path)
    content = {
        path.name: path.read_bytes()
        for path in made.path.iterdir()
        if path.name not in superseded.STAYS
    }
    assert {"record.json", "config.yaml", "metrics.jsonl", "weights.safetensors"} <= content.keys()
    cell = planned(tmp_path).cells[0]
    steps = len(content) + 1  # each file, and the folder's name
    for step in range(1, steps + 1):
        run = RunFolder(tmp_path / f"killed{step}" / cell.cell_id)
        run.path.mkdir(parents=True)
        for name, each in content.items():
            (run.path / name).write_bytes(each)
        taken = 0

        def move(self: Path, target: Path, original: Callable[..., Any], last: int = step) -> Any:
            nonlocal taken
            taken += 1
            if taken == last:
                raise Killed
            return original(self, target)

        with monkeypatch.context() as patched:
            for name in ("replace", "rename"):
                original = getattr(Path, name)
                patched.setattr(
                    Path, name, lambda self, target, original=original: move(self, target, original)
                )
            with pytest.raises(Killed):
                superseded.supersede(run)
        rows = RecordSource(run.path.parent).runs()
        assert len(rows) == (step == 1), "from the first file on the cell has not begun"
        cell.config.runs_dir = str(run.path.parent)
        queue(cell)  # as any command does that wants to run it
        record = run.read_record()
        if step == 1:
            assert record is not None and record.status is Status.done
            continue
        assert record is not None and record.status is Status.queued and record.attempts == []
        (kept,) = executions(run)
        assert {path.name: path.read_bytes() for path in kept.path.iterdir()} == content
        assert not (run.path / "superseded" / superseded.MOVING).exists()


# --- MLflow


def noted(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.mlflow_file.read_text())
    return found


def test_a_store_keeps_the_run_that_made_room_and_tells_the_same_as_the_folders(
    in_folder: Path, today: Callable[[str], None]
) -> None:
    uri = f"sqlite:///{in_folder / 'mlflow.db'}"
    for hexadecimal in (ONE, TWO):
        today(hexadecimal)
        with sent_elsewhere():
            run = once_more(in_folder, "tracking.kind=local", f"tracking.uri={uri}")
        assert not sync("runs").failed
    client, (old,) = mlflow_client(uri), executions(run)
    before, after = (client.get_run(noted(each)["run_id"]) for each in (old, run))
    assert before.data.tags["dks.superseded"] == "1" and before.info.status == "FINISHED"
    assert before.data.tags["dks.code"] == ONE and after.data.tags["dks.code"] == TWO
    assert "dks.superseded" not in after.data.tags
    runs, theirs = RecordSource("runs").runs(), MlflowSource(uri).runs()
    pd.testing.assert_frame_equal(runs.drop(columns="place"), theirs.drop(columns="place"))
    assert theirs["mlflow_run_id"].tolist() == [after.info.run_id]
    assert [each["code"] for each in theirs["computed_by"][0]] == [TWO]
    # Again, and with a note that was lost.
    assert [(sent.points, sent.told, sent.superseded) for sent in sync("runs").runs] == [
        (0, False, None),
        (0, False, "1"),
    ]
    old.mlflow_file.unlink()
    sync("runs")
    assert len(client.search_runs([before.info.experiment_id], "tags.`dks.role` = 'cell'")) == 2


@pytest.mark.slow
def test_a_store_learns_of_the_old_run_before_the_new_one_is_there_and_one_made_anew_of_both(
    in_folder: Path, today: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is killed, no reader finds two runs of the cell."""
    from mlflow import MlflowClient

    uri, again = (f"sqlite:///{in_folder / name}.db" for name in ("mlflow", "again"))
    overrides = ("tracking.kind=local", f"tracking.uri={uri}")
    with sent_elsewhere():
        first = once_more(in_folder, *overrides)
    sync("runs")
    old = noted(first)["run_id"]
    today(TWO)
    with sent_elsewhere():
        once_more(in_folder, *overrides)

    def fail(*arguments: Any, **named: Any) -> Any:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_run", fail)
        sync("runs")
    assert mlflow_client(uri).get_run(old).data.tags["dks.superseded"] == "1"
    assert MlflowSource(uri).runs().empty
    assert not sync("runs").failed
    assert [each["code"] for each in MlflowSource(uri).runs()["computed_by"][0]] == [TWO]
    for points in (True, False):
        assert (
            bool(sum(sent.points for sent in sync("runs", target=Tracking(uri=again)).runs))
            is points
        )
    pd.testing.assert_frame_equal(
        *(
            MlflowSource(each).runs().drop(columns=["place", "mlflow_run_id"])
            for each in (uri, again)
        )
    )


def test_nobody_sends_what_is_being_moved(tmp_path: Path) -> None:
    """The sender of an earlier command may still draw pictures.

    Its note would be that of the next execution.
    """
    run = once_more(tmp_path)
    superseded.supersede(run)
    store = Destination(None, "sqlite:///x.db", "1")  # type: ignore[arg-type]
    assert upload(run, store) == 0
    assert upload_pictures(run, store, lambda folder, into: []) is False
    assert not run.mlflow_file.exists()


def test_a_launch_that_is_refused_puts_it_back(
    run_here: Run, in_folder: Path, today: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ("sweep=mine", *TINY, "recipe.epochs=1", "hydra/launcher=basic")
    assert run_here("-m", "seed=1,2", *tiny)[0] == 0
    today(TWO)
    assert run_here("-m", "seed=1", *tiny, "hydra.sweeper.code=same")[0] == 0
    today("3" * 64)

    def files() -> dict[Path, bytes]:
        return {
            path: path.read_bytes()
            for path in in_folder.glob("runs/**/*.*")
            if path.is_file() and path.suffix != ".lock"
        }

    before = files()

    def refuse(_: object, cells: list[Cell]) -> list[Exception]:
        runs = {cell.config.seed: RunFolder(in_folder / "runs" / cell.cell_id) for cell in cells}
        assert {seed: len(list(executions(run))) for seed, run in runs.items()} == {1: 2, 2: 1}
        raise RequestError("no room")

    monkeypatch.setattr(sweeper.HydraLauncher, "launch", refuse)
    status, _, err = run_here("-m", "seed=1,2", *tiny, "hydra.sweeper.code=same")
    assert (status, "no room" in err) == (2, True)
    assert files() == before
    assert len(list(in_folder.glob("runs/*/superseded"))) == 1
