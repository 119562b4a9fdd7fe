"""MLflow as a sink of the journals: everything once, whatever was lost; what is refused.

And the process that sends.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from dks.cli.main import main
from dks.config.errors import RequestError
from dks.config.identity import flatten
from dks.config.schema import Tracking, TrackingKind
from dks.machine.interruption import Interrupted
from dks.runs.journal import now
from dks.runs.record import Attempt, RunFolder, Status
from dks.runs.states import survey
from dks.tracking import mlflow_internals, sender, store, upload, upload_loop
from dks.tracking.sender import Sender, sending, sent_elsewhere
from dks.tracking.sync import close_dead, sync, tell_dead
from dks.tracking.upload_loop import Store, Uploaded, UploadLoop
from dks.tracking.upload_state import UploadState
from dks.training.run import run_cell
from tests.conftest import ROOT, TINY, config, queued, raise_at
from tests.support.slurm_cluster import free_ports

RunHere = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an experiment and nothing in it; making one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        store.prepare(Tracking(uri="sqlite:///mlflow.db"))
    return folder / "mlflow.db"


@pytest.fixture
def here(in_folder: Path, empty_store: Path) -> Path:
    """A current folder with an empty store, whose artifacts are kept in it."""
    shutil.copy(empty_store, in_folder / "mlflow.db")
    with closing(sqlite3.connect("mlflow.db")) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ?", (str(in_folder / "mlruns"),)
        )
    return in_folder


def uri() -> str:
    """Of the store in the current folder, as a whole.

    MLflow keeps stores open as long as the process lives, by their URIs.
    """
    return f"sqlite:///{Path.cwd()}/mlflow.db"


def tracked() -> tuple[str, ...]:
    return "tracking=local", f"tracking.uri={uri()}"


def execute(run: RunFolder, error: BaseException | None = None, step: int = 2) -> RunFolder:
    """One attempt at a run; nothing is sent yet."""
    with pytest.MonkeyPatch.context() as patch, sent_elsewhere():
        if error is not None:
            patch.setattr("dks.runs.terminal.RunView.stepped", raise_at(step, error))
        try:
            run_cell(run.path)
        except KeyboardInterrupt:
            assert isinstance(error, Interrupted)
    return run


def sent(run: RunFolder, **options: Any) -> Uploaded:
    (found,) = sync(str(run.path.parent), [run.cell_id], **options).runs
    return found


def client() -> Any:
    return store.open_client(uri())


def points(run_id: str, database: str = "mlflow.db") -> list[tuple[str, int, int, float]]:
    """Everything that a run has in the store, repeated steps included.

    Metric, step, time, value.
    """
    query = "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ?"
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute(query, (run_id,)).fetchall()
    return sorted(
        (key, step, when, math.nan if is_nan else value) for key, step, when, value, is_nan in found
    )


def check(run: RunFolder, database: str = "mlflow.db") -> None:
    """The store holds the journal.

    Every point once, and nothing else but what is told at the end.
    """
    note = UploadState.read(run)
    assert note is not None
    found = [
        point
        for point in points(note.run_id, database)
        if not point[0].startswith(("best/", "cost/"))
    ]
    expected = sorted(
        (
            name,
            entry.epoch,
            upload.milliseconds(entry.time),
            math.copysign(sys.float_info.max, value) if math.isinf(value) else value,
        )
        for entry in run.journal.read()
        for name, value in entry.metrics.items()
    )
    assert expected
    assert repr(found) == repr(expected)


def status(run: RunFolder) -> str:
    note = UploadState.read(run)
    assert note is not None
    return str(client().get_run(note.run_id).info.status)


# --- everything once


def test_a_run_that_goes_on_has_every_epoch_once(here: Path) -> None:
    run = execute(queued(here, *tracked(), "recipe.epochs=4"), Interrupted("SIGTERM"), step=3)
    first = sent(run)
    assert first.points == sum(len(entry.metrics) for entry in run.journal.read()) > 0
    assert (first.status, status(run)) == ("KILLED", "KILLED")
    check(run)
    execute(run)
    second = sent(run)
    assert second.points > 0
    assert status(run) == "FINISHED"
    check(run)
    assert sent(run) == Uploaded(run.cell_id, uri(), 0, "FINISHED", told=False)
    assert len(client().search_runs(["1"])) == 1
    tags = client().search_runs(["1"])[0].data.tags
    assert (tags["dks.attempts"], tags["dks.uid"]) == ("2", run.read_record().uid)  # type: ignore[union-attr]


def test_where_the_note_is_lost_the_run_is_found_again(here: Path) -> None:
    run = execute(queued(here, *tracked()))
    sent(run)
    for damage in (None, "", "{", '{"uri": 3}', "[]"):
        if damage is None:
            run.mlflow_file.unlink()
        else:
            run.mlflow_file.write_text(damage)
        assert sent(run).points == 0
        check(run)
    assert len(client().search_runs(["1"])) == 1


def test_a_store_that_is_made_anew_or_brought_back_gets_what_it_lacks(here: Path) -> None:
    run = execute(queued(here, *tracked(), "recipe.epochs=4"), Interrupted("SIGTERM"), step=3)
    shutil.copy("mlflow.db", "empty.db")
    sent(run)
    shutil.copy("mlflow.db", "backup.db")
    execute(run)
    total = sent(run).points
    assert total > 0
    shutil.copy("backup.db", "mlflow.db")
    again = sent(run)
    assert (again.points, again.status) == (total, "FINISHED")
    check(run)
    shutil.copy("empty.db", "mlflow.db")
    assert sent(run).points == sum(len(entry.metrics) for entry in run.journal.read())
    check(run)
    assert sent(run).points == 0


def test_what_is_measured_again_takes_the_place_of_what_was_sent(here: Path) -> None:
    """All checkpoints are lost, so the run begins again: MLflow holds its new journal alone."""
    run = execute(queued(here, *tracked(), "recipe.epochs=4"), Interrupted("SIGTERM"), step=3)
    sent(run)
    before = UploadState.read(run)
    shutil.rmtree(run.checkpoints)
    execute(run)
    sent(run)
    check(run)
    note = UploadState.read(run)
    assert note is not None and before is not None and note.run_id != before.run_id
    assert [found.info.run_id for found in client().search_runs(["1"])] == [note.run_id]
    assert client().get_run(before.run_id).info.lifecycle_stage == "deleted"


def test_a_damaged_journal_takes_nothing_away_from_the_store(here: Path) -> None:
    run = execute(queued(here, *tracked()))
    sent(run)
    note = UploadState.read(run)
    assert note is not None
    before = points(note.run_id)
    with run.journal.path.open("r+b") as file:
        file.truncate(run.journal.path.stat().st_size - 20)
    assert sent(run).points == 0
    assert points(note.run_id) == before


def test_what_mlflow_cannot_hold_is_kept_all_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = execute(queued(here, *tracked(), "recipe.epochs=1"))
    values = {"test/loss": math.inf, "train/loss": -math.inf, "test/top1_error": math.nan}
    run.journal.append(2, 2, values)
    long = "x" * 7000
    monkeypatch.setattr(upload, "flatten", lambda tree: {**flatten(tree), "data.name": long})
    assert sent(run).points > len(values)
    check(run)
    note = UploadState.read(run)
    assert note is not None
    told = client().get_run(note.run_id)
    assert told.data.params["data.name"].startswith("xxx")
    assert told.data.params["data.name"].endswith(
        "(7000 characters, all of them in the artifacts, params/)"
    )
    folder = Path(client().download_artifacts(note.run_id, ""))
    assert (folder / "params" / "data.name.txt").read_text() == long
    assert (folder / "metrics.jsonl").read_text() == run.journal.path.read_text(), (
        "NaN and infinity are in it as they were"
    )


def test_what_is_worth_keeping_is_kept_beside_the_metrics(here: Path) -> None:
    from dks.cli.sender import draw

    run = execute(queued(here, *tracked()))
    sent(run, draw=draw)
    note = UploadState.read(run)
    assert note is not None
    kept = {file.path for file in client().list_artifacts(note.run_id)}
    assert {
        "config.yaml",
        "record.json",
        "metrics.jsonl",
        "environment.json",
        "model.txt",
        "confusion.csv",
    } <= kept
    assert {"curves.png", "confusion.png"} <= kept
    assert (
        client().get_run(note.run_id).data.tags["mlflow.source.name"] == run.read_record().command
    )  # type: ignore[union-attr]


def test_a_run_under_way_is_sent_without_its_end(here: Path) -> None:
    run = queued(here, *tracked())
    record = run.read_record()
    assert record is not None
    record.status, record.attempts = Status.running, [Attempt(now(), "here", os.getpid(), "cpu", 1)]
    run.write_record(record)
    run.journal.append(1, 1, {"test/top1_error": 50.0})
    assert run.claim()
    try:
        assert sent(run) == Uploaded(run.cell_id, uri(), 1, "RUNNING", told=True)
    finally:
        run.release()


def test_a_run_that_was_deleted_stays_deleted(here: Path) -> None:
    run = execute(queued(here, *tracked()))
    sent(run)
    note = UploadState.read(run)
    assert note is not None
    client().delete_run(note.run_id)
    problem = sent(run).problem
    assert (
        problem
        == f"it was deleted in MLflow; mlflow runs restore --run-id {note.run_id} brings it back"
    )


# --- runs that died


def died(folder: Path, *overrides: str) -> RunFolder:
    """A run whose process was killed in its second epoch, which MLflow has as running."""
    run = queued(folder, *tracked(), *overrides)
    record = run.read_record()
    assert record is not None
    record.status = Status.running
    record.attempts = [Attempt(now(), os.uname().nodename, 1, "cpu", 1)]
    run.write_record(record)
    run.journal.append(1, 1, {"test/top1_error": 50.0})
    assert run.claim()
    sent(run)
    run.release()
    assert status(run) == "RUNNING"
    return run


def test_a_run_that_died_is_told_to_have(here: Path) -> None:
    run = died(here)
    assert sent(run).status == "KILLED"
    assert status(run) == "KILLED"
    record = run.read_record()
    assert record is not None
    assert (record.status, record.error) == (
        Status.killed,
        {"type": "Died", "message": "its process ended without a word"},
    )
    other = died(here, "seed=1")
    standings = close_dead(survey("runs", [other.cell_id]))
    assert tell_dead(standings) == []
    assert status(other) == "KILLED"
    assert tell_dead(standings) == [], "it is told once"


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
    runs = [execute(queued(here, *tracked(), "sweep=mine", f"seed={seed}")) for seed in (1, 2)]
    failed = execute(
        queued(here, *tracked(), "sweep=mine", "seed=3"), RuntimeError("out of memory")
    )
    sync("runs")
    (parent,) = client().search_runs(["1"], "tags.`dks.role` = 'sweep'")
    assert (parent.info.run_name, parent.info.status) == ("mine", "FAILED")
    children = client().search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.data.tags["dks.cell_id"] for run in children} == {
        run.cell_id for run in (*runs, failed)
    }
    execute(failed)
    sync("runs")
    assert client().get_run(parent.info.run_id).info.status == "FINISHED"


# --- the command


def test_the_command_says_what_it_sent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dks(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["sync", *arguments])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    code, _, err = dks()
    assert (code, err) == (
        2,
        "error: there is no run to send in runs_dir=runs; --runs-dir names another folder\n",
    )
    one, other = execute(queued(here, *tracked())), execute(queued(here, "seed=1"))
    count = sum(len(entry.metrics) for entry in one.journal.read())
    code, out, _ = dks()
    assert code == 0
    assert (
        f"{uri()}: {count} points of 1 run sent\n  {one.cell_id}  {count} points  FINISHED\n" in out
    )
    assert "tracking=off: 1 run left alone; --store URI sends them\n" in out
    code, out, _ = dks()
    assert (code, out.splitlines()[0]) == (
        0,
        f"{uri()}: 0 points of 0 runs sent; 1 run complete already",
    )
    code, out, _ = dks("--store", uri(), "--json", other.cell_id)
    answer = json.loads(out)
    assert (code, answer["points"]) == (0, count)
    assert [run["cell_id"] for run in answer["runs"]] == [other.cell_id]
    check(other)
    code, _, err = dks("--store", "postgresql://me:secret@host/db")
    assert code == 2
    assert "has a password in it" in err and "secret" not in err
    Path("mlflow.db").write_text("garbage")
    code, out, _ = dks(one.cell_id)
    assert code == 1
    assert (
        f"1 run not sent ({one.cell_id}): tracking.uri={uri()} cannot be opened: file is not a data"
        in out
    )


# --- stores


@pytest.mark.parametrize(
    ("overrides", "problem"),
    {
        (
            "tracking=server",
        ): "tracking.uri is empty; give https://HOST there or in MLFLOW_TRACKING_URI",
        (
            "tracking=server",
            "tracking.uri=sqlite:///x.db",
        ): "tracking.uri=sqlite:///x.db names no server; give https://HOST",
        (
            "tracking.uri=http://host:5000",
        ): "tracking.uri=http://host:5000 is a server; choose tracking=server",
        (
            "tracking.uri=mlruns",
        ): "tracking.uri=mlruns names no store; give sqlite:///FILE or postgresql://HOST/DATABASE",
        (
            "tracking=server",
            "tracking.uri=https://me:secret@host",
        ): "take it out and set MLFLOW_TRACKING_USERNAME and",
        (
            "tracking.uri=postgresql://me:secret@host/db",
        ): "take it out and set PGPASSWORD or a .pgpass file",
    }.items(),
)
def test_where_nothing_can_be_tracked_is_said_before_anything_runs(
    overrides: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(RequestError) as refused:
        config(*overrides)
    assert problem in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_server_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert config("tracking=server").tracking.uri == "https://mlflow.example.org"
    assert (
        config("tracking=server", "tracking.uri=https://other.example.org").tracking.uri
        == "https://other.example.org"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    with pytest.raises(RequestError, match="MLFLOW_TRACKING_SERVER_CERT_PATH"):
        store.prepare(Tracking(TrackingKind.server, "https://mlflow.example.org"))


@pytest.mark.parametrize(
    ("version", "advice"),
    [("89d4b8295536", "mlflow db upgrade sqlite:///"), ("fff", "install that")],
)
def test_a_store_of_another_version_is_refused_and_left_as_it_is(
    here: Path, version: str, advice: str
) -> None:
    with closing(sqlite3.connect("mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    before = Path("mlflow.db").read_bytes()
    with pytest.raises(RequestError, match=advice):
        store.prepare(Tracking(uri=uri()))
    assert Path("mlflow.db").read_bytes() == before


def test_the_newest_schema_is_the_one_that_mlflow_makes(here: Path) -> None:
    found = mlflow_internals.schema(uri())
    assert found is not None and found.fits
    assert mlflow_internals.schema("sqlite:///none.db") is None


def test_a_store_that_is_there_is_looked_at_and_prepared_without_mlflow(here: Path) -> None:
    code = (
        "import sys; from dks.config.schema import Tracking; from dks.tracking.store import "
        "look, prepare\n"
        "assert look(Tracking(uri='sqlite:///none.db')) is None\n"
        "assert look(Tracking(uri='sqlite:///mlflow.db', experiment='new')) is None\n"
        "tracking = Tracking(uri='sqlite:///mlflow.db')\n"
        "assert look(tracking) == prepare(tracking) == '1'\n"
        "assert 'mlflow' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_an_experiment_that_was_deleted_is_not_used(here: Path) -> None:
    client().delete_experiment("1")
    with pytest.raises(RequestError, match="mlflow experiments restore -x 1"):
        store.prepare(Tracking(uri=uri()))


def test_a_store_that_somebody_is_making_keeps_nobody_waiting(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOOK", 0.1)
    with FileLock(".mlflow.db.lock"):
        assert store.look(Tracking(uri=uri())) is None
    assert store.look(Tracking(uri=uri())) == "1"


SPOILT = {
    "UPDATE alembic_version SET version_num = '89d4b8295536'": "mlflow db upgrade "
    "sqlite:///mlflow.db",
    "UPDATE experiments SET lifecycle_stage = 'deleted'": "mlflow experiments restore -x 1",
    None: "sqlite:///mlflow.db cannot be opened: file is not a database",
}


@pytest.mark.parametrize(("change", "problem"), SPOILT.items())
def test_a_store_that_cannot_be_used_is_refused_before_anything_runs(
    here: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, change: str | None, problem: str
) -> None:
    monkeypatch.setattr(sender, "_start", lambda: pytest.fail("there is nothing to send"))
    if change is None:
        Path("mlflow.db").write_text("garbage")
    else:
        with closing(sqlite3.connect("mlflow.db")) as connection, connection:
            connection.execute(change)
    for arguments in ([*TINY], ["-m", *TINY, "seed=1,2"]):
        code, _, err = run_here(*arguments, tracking="local")
        assert code == 2
        assert problem in err
        assert not Path("runs").exists() and not Path("results", "launches").exists()


# --- the process that sends


def test_a_fresh_store_is_made_by_the_process_that_sends(in_folder: Path) -> None:
    code = (
        "import atexit, sys; from pathlib import Path; from dks.cli.main import train\n"
        "atexit.register(lambda: Path('imported').write_text(' '.join({'torch', 'mlflow', "
        "'sklearn'} & set(sys.modules))))\n"
        f"train({[*TINY]!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "tracking:" not in done.stderr
    assert Path("imported").read_text() == "torch"
    (path,) = Path("runs").iterdir()
    check(RunFolder(path))
    assert status(RunFolder(path)) == "FINISHED"


def test_what_a_server_says_is_heard_before_anything_runs() -> None:
    (port,) = free_ports(1)
    tracking = Tracking(TrackingKind.server, f"http://127.0.0.1:{port}")
    with sending(tracking, print) as process:
        assert process.open(tracking) == "it does not answer (Connection refused)"


def test_a_run_is_sent_by_a_process_of_its_own(here: Path) -> None:
    run = queued(here, *tracked())
    assert run_cell(run.path).value == "done"
    check(run)
    assert status(run) == "FINISHED"
    assert sent(run).points == 0


def test_the_process_that_sends_may_die(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = Sender.begin

    def killed(self: Sender, folder: Path) -> None:
        begin(self, folder)
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    monkeypatch.setattr(Sender, "begin", killed)
    run = queued(here, *tracked())
    assert run_cell(run.path).value == "done"
    assert "MLflow has not got everything: the process that sends is gone" in " ".join(
        capsys.readouterr().err.split()
    )
    assert sent(run).points > 0
    check(run)


def test_nothing_is_started_where_nothing_is_tracked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sender, "_start", lambda: pytest.fail("there is nothing to send"))
    with (
        sending(Tracking(TrackingKind.off), print) as off,
        sending(Tracking(TrackingKind.off), print),
    ):
        off.begin(tmp_path)
        off.end(tmp_path)
    with sent_elsewhere(), sending(Tracking(uri="sqlite:///mlflow.db"), print) as elsewhere:
        elsewhere.begin(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_loop, "FIRST_PAUSE", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_fails_is_asked_again_and_keeps_no_other_waiting(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = execute(queued(here, *tracked()))
    bad = execute(queued(here, "tracking=local", f"tracking.uri=sqlite:///{here}/bad.db"))
    assert good.cell_id == bad.cell_id, "where it is tracked is no part of a cell"
    bad = execute(queued(here / "more", "tracking=local", f"tracking.uri=sqlite:///{here}/bad.db"))
    Path("bad.db").write_text("no database")
    work = UploadLoop()
    work.handle({"begin": str(bad.path)})
    work.handle({"begin": str(good.path)})
    work.handle({"end": str(bad.path)})
    work.handle({"end": str(good.path)})
    work.work()
    (left,) = work.runs.values()
    assert left.folder.path == bad.path
    assert "does not take what is sent" in bad.log_file.read_text()
    begun = time.monotonic()
    assert work.finish(20)[0].endswith("1 run to be completed by: dks sync")
    assert time.monotonic() - begun < 10, "it was silent before, so it is asked once more only"
    shutil.copy("mlflow.db", "bad.db")
    again = UploadLoop()
    again.handle({"begin": str(bad.path)})
    again.handle({"end": str(bad.path)})
    assert again.finish(20) == []
    check(bad, "bad.db")


def pictures(run: RunFolder) -> set[str]:
    note = UploadState.read(run)
    assert note is not None
    return {file.path for file in client().list_artifacts(note.run_id)} & {
        "curves.png",
        "confusion.png",
    }


def test_pictures_wait_until_all_else_is_sent_and_have_little_time_at_the_end(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dks.cli.sender import draw

    runs = [execute(queued(here, *tracked(), f"seed={seed}")) for seed in (1, 2)]
    work = UploadLoop(draw)
    for run in runs:
        work.handle({"begin": str(run.path)})
        work.handle({"end": str(run.path)})
    work.work()
    assert [status(run) for run in runs] == ["FINISHED", "FINISHED"]
    assert not work.runs and sum(bool(pictures(run)) for run in runs) == 1, (
        "one at a time, when nothing else is to be sent"
    )
    monkeypatch.setattr(upload_loop, "PICTURES", 0.0)
    assert work.finish(30) == ["the pictures of 1 run are left to: dks sync"]
    assert sum(bool(pictures(run)) for run in runs) == 1
    for run in runs:
        assert sent(run, draw=draw).points == 0
        assert pictures(run) == {"curves.png", "confusion.png"}
        assert not sent(run, draw=draw).told, "once is enough"


@pytest.mark.usefixtures("impatient")
def test_what_fails_at_the_end_is_tried_again_until_time_is_up(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = execute(queued(here, *tracked()))
    failures = iter(range(3))
    log_batch = type(client()).log_batch

    def shaky(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(failures, None) is not None:
            raise ConnectionError("the line is down")
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(type(client()), "log_batch", shaky)
    work = UploadLoop()
    work.handle({"begin": str(run.path)})
    work.handle({"end": str(run.path)})
    assert work.finish(30) == []
    check(run)
    assert status(run) == "FINISHED"


def test_a_store_may_be_gone_for_days() -> None:
    gone = Store(Tracking(uri="sqlite:///mlflow.db"))
    for _ in range(5000):
        gone.fail(ConnectionError("nobody is there"))
    assert gone.quiet_until - time.monotonic() <= upload_loop.LONGEST_PAUSE


def test_a_store_is_that_of_the_current_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.open_client("sqlite:///mlflow.db").get_experiment_by_name("dks") is not None
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    with closing(sqlite3.connect("mlflow.db")):
        assert store.prepare(Tracking(uri="sqlite:///mlflow.db")) == "1"
    assert (here / "other" / "mlflow.db").stat().st_size > 0


def test_a_process_that_cannot_be_started_stops_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(sender, "_start", refused)
    run = queued(here, *tracked())
    assert run_cell(run.path).value == "done"
    assert "Cannot allocate memory); dks sync sends the rest" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("said", "short"),
    [
        (
            "API request to http://h:9/api/2.0/x failed with exception "
            "HTTPConnectionPool(host='h', port=9): Max retries "
            "exceeded with url: /api/2.0/x (Caused by "
            "NewConnectionError(\"HTTPConnection(host='h', port=9): Failed to "
            'establish a new connection: [Errno 111] Connection refused"))',
            "Connection refused",
        ),
        (
            "API request to https://h/api failed with exception HTTPSConnectionPool(host='h', "
            "port=443): Max retries exceeded "
            "with url: /api (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
            "CERTIFICATE_VERIFY_FAILED] certificate "
            "verify failed: self-signed certificate (_ssl.c:1006)')))",
            "certificate verify failed: self-signed certificate",
        ),
        (
            "API request to endpoint /api/2.0/x failed with error code 401 != 200. Response "
            "body: 'You are not authenticated.'",
            "HTTP 401: You are not authenticated.",
        ),
        (
            "API request to http://h/api failed with exception HTTPConnectionPool(host='h', "
            "port=80): Read timed out. "
            "(read timeout=10)",
            "Read timed out",
        ),
        ("database is locked", "database is locked"),
    ],
)
def test_what_goes_wrong_with_a_request_is_said_in_few_words(said: str, short: str) -> None:
    assert store.reason(RuntimeError(said)) == short


@pytest.mark.parametrize("secret", ["pass5", "a long password"])
@pytest.mark.parametrize(
    "variable", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"]
)
def test_what_a_store_says_is_told_without_its_password_however_short(
    monkeypatch: pytest.MonkeyPatch, variable: str, secret: str
) -> None:
    monkeypatch.setenv(variable, secret)
    assert (
        store.reason(RuntimeError(f"no access with {secret}; try again"))
        == "no access with ...; try again"
    )


def test_a_store_that_fails_twice_running_is_not_asked_for_every_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [died(here, f"seed={seed}") for seed in range(4)]
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


def test_a_damaged_configuration_keeps_no_dead_run_from_being_listed(here: Path) -> None:
    run = died(here)
    standings = close_dead(survey("runs", [run.cell_id]))
    run.config_file.write_text("{")
    (problem,) = tell_dead(standings)
    assert "config.yaml cannot be read" in problem
