"""What a user types, end to end: the main job, typing it again, Ctrl-C, two at once, failures."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from dks import __version__
from dks.cli.main import main
from dks.runs.record import RunFolder, Status
from dks.tracking.database import SQLITE, read_sqlite
from tests.conftest import ROOT, TINY, start, train
from tests.support.tracking_services import mlflow_client

MAIN_JOB = "-m aux=ours,shallow,narrow strategy=topdown,bottomup,bidir"
Run = Callable[..., tuple[int, str, str]]


def records(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(folder.glob("runs/*/record.json"))
    }


@pytest.mark.slow
def test_the_main_job_from_nothing_to_its_table_and_into_mlflow(in_folder: Path) -> None:
    """The verbatim command, only with fewer epochs: nine runs, the table, the store.

    Then again, then one column more.
    """
    status, out, err = train(in_folder, *MAIN_JOB.split(), "recipe.epochs=1")
    assert status == 0, err
    assert "9 cells (9 missing); 9 to run" in err
    assert all(f"[{number}/9] aux=" in err for number in range(1, 10))
    assert "] aux=narrow strategy=bidir  error" in err
    assert [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")] == [
        "ours",
        "shallow",
        "narrow",
    ]
    assert all(f"strategy={name}" in out for name in ("topdown", "bottomup", "bidir"))
    # Nothing but what is documented lies in the folder, and every run is complete.
    (sweep,) = (in_folder / "results").iterdir()
    assert sorted(path.name for path in sweep.iterdir()) == [
        "launches",
        "provenance.json",
        "sweep.json",
        "table.csv",
        "table.html",
        "table.md",
        "table.tex",
    ]
    assert {path.name for path in in_folder.iterdir()} <= {
        "runs",
        "results",
        "mlflow.db",
        ".mlflow.db.lock",
        "mlruns",
    }
    made = records(in_folder)
    assert [record["status"] for record in made.values()] == ["done"] * 9
    for cell_id, record in made.items():
        assert record["cell_id"] == cell_id
    provenance = json.loads((sweep / "provenance.json").read_text())
    assert {run["cell_id"] for cell in provenance["cells"] for run in cell["runs"]} == set(made)
    for cell in provenance["cells"]:
        assert f"{cell['numbers']['test/top1_error']['mean']:.2f}" in out
    tracked = {
        run["mlflow_run_id"]: run["cell_id"] for cell in provenance["cells"] for run in cell["runs"]
    }
    # What a busy machine had no time for is drawn now.
    process = start(["-m", "dks", "sync"], in_folder)
    process.communicate(timeout=200)
    assert process.returncode == 0
    # MLflow: one parent, nine finished children with learning curves.
    client = mlflow_client("sqlite:///mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("dks").experiment_id])
    parents = [run for run in runs if run.data.tags["dks.role"] == "sweep"]
    children = [run for run in runs if run.data.tags["dks.role"] == "cell"]
    assert [(run.info.status, run.info.run_name) for run in parents] == [("FINISHED", sweep.name)]
    assert [run.info.status for run in children] == ["FINISHED"] * 9
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.run_id: run.data.tags["dks.cell_id"] for run in children} == tracked
    assert set(tracked.values()) == set(made)
    for run in children:
        history = client.get_metric_history(run.info.run_id, "test/top1_error")
        journal = RunFolder(in_folder / "runs" / run.data.tags["dks.cell_id"]).journal.read()
        assert [(point.step, point.value) for point in history] == [
            (entry.epoch, entry.metrics["test/top1_error"]) for entry in journal
        ]
        assert run.data.params["aux_design.kind"] == "blocks"
        # there while code changes
        assert {file.path for file in client.list_artifacts(run.info.run_id)} - {"code.diff"} == {
            *(
                "config.yaml",
                "record.json",
                "metrics.jsonl",
                "environment.json",
                "model.txt",
                "confusion.csv",
                "run.log",
            ),
            *("curves.png", "confusion.png"),
        }

    status, again, err = train(in_folder, *MAIN_JOB.split(), "recipe.epochs=1")
    assert status == 0
    assert "all 9 cells are done, nothing to launch" in err
    assert again == out
    assert records(in_folder) == made

    status, wider, err = train(in_folder, *f"{MAIN_JOB},none".split(), "recipe.epochs=1")
    assert status == 0
    assert "12 cells (3 missing, 9 done); 3 to run" in err
    assert "strategy=none" in wider
    assert {cell: record for cell, record in records(in_folder).items() if cell in made} == made


def test_a_single_run_prints_the_errors_of_every_classifier(run_here: Run, in_folder: Path) -> None:
    status, out, err = run_here(*TINY)
    assert status == 0
    (cell_id,) = records(in_folder)
    lines = out.splitlines()
    assert lines[0].startswith(f"runs/{cell_id}  top-1 / top-5 test error")
    assert [line.split()[0] for line in lines[1:]] == ["c1", "c2", "c3"]
    assert run_here(*TINY)[1:] == (out, "the cell is done, nothing to launch\n")
    assert not (in_folder / "results").exists()


@pytest.mark.slow
def test_seeds_are_averaged_and_gains_are_over_the_baseline(run_here: Run, in_folder: Path) -> None:
    status, out, _ = run_here("-m", "method=baseline,dks", "seed=1,2", *TINY)
    assert status == 0
    errors: dict[str, list[float]] = {}
    for record in records(in_folder).values():
        errors.setdefault(record["method"], []).append(record["final"]["test/top1_error"])
    mean = {method: sum(values) / 2 for method, values in errors.items()}
    sd = {method: abs(values[0] - values[1]) / 2**0.5 for method, values in errors.items()}
    assert f"{mean['baseline']:.2f}({sd['baseline']:.2f})" in out
    row = next(line for line in out.splitlines() if line.startswith("│ dks"))
    assert re.split(r"[│*\s]+", row)[2:4] == [
        f"{mean['dks']:.2f}({sd['dks']:.2f})",
        f"{mean['baseline'] - mean['dks']:.2f}",
    ]
    assert "Welch's t test" in out and "p (Holm)" in out
    assert "n = 2 seeds" in out


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others_and_is_not_averaged_away(
    run_here: Run, in_folder: Path
) -> None:
    status, out, err = run_here(
        "-m", "recipe.lr=0.01,1e30", "aux=ours,shallow", *TINY, "data.train_images=320"
    )
    assert status == 1
    assert sorted(record["status"] for record in records(in_folder).values()) == [
        "done",
        "done",
        "failed",
        "failed",
    ]
    assert sum(line.count("failed") for line in out.splitlines() if line.startswith("│")) == 2
    assert "of 4 runs 2 failed" in out
    assert "failed  NonFiniteLoss: non-finite loss at epoch 1, step" in err


def test_the_same_cell_under_two_names_runs_once(run_here: Run, in_folder: Path) -> None:
    status, out, err = run_here("-m", "recipe.milestones=[1],[1.0]", *TINY)
    assert status == 0
    assert "1 cell (1 missing); 1 to run" in err
    assert len(records(in_folder)) == 1


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)
    return found


def sent_epochs(folder: Path) -> int:
    """How many epochs the store in a folder has of all runs."""
    with (
        suppress(sqlite3.OperationalError),
        closing(read_sqlite(f"{SQLITE}{folder}/mlflow.db")) as store,
    ):
        return int(
            store.execute("SELECT count(*) FROM metrics WHERE key = 'train/loss'").fetchone()[0]
        )
    return 0


@pytest.mark.slow
def test_ctrl_c_leaves_a_killed_run_and_the_next_call_goes_on(in_folder: Path) -> None:
    long = "seed=1,2 recipe.epochs=400 data.train_images=640 hydra.launcher.slots=1"
    command = [str(ROOT / "train.py"), "-m", *TINY, *long.split()]
    process = start(command, in_folder)
    wait_for(
        lambda: [
            path for path in in_folder.glob("runs/*/metrics.jsonl") if path.stat().st_size > 2000
        ]
    )
    # who interrupts does not wait for a store that is just being made
    wait_for(lambda: sent_epochs(in_folder))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: the same command goes on from here" in err
    assert "killed" in err
    assert "Traceback" not in err
    states = {record["seed"]: record["status"] for record in records(in_folder).values()}
    assert states == {1: "killed", 2: "queued"}
    assert "1 killed, 1 missing" in out
    (killed,) = [
        cell for cell, record in records(in_folder).items() if record["status"] == "killed"
    ]
    folder = RunFolder(in_folder / "runs" / killed)
    done = len(folder.journal.read())
    assert done >= 1
    client = mlflow_client(f"sqlite:///{in_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dks").experiment_id
    assert {run.info.status for run in client.search_runs([experiment])} == {"KILLED"}

    # The next call: seed 1 goes on where it was, seed 2 begins. It is stopped as well, for 400
    #     epochs are many.
    process = start(command, in_folder)
    wait_for(lambda: sent_epochs(in_folder) > done)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"seed=1 goes on after epoch {done} of 400" in err
    assert [entry.epoch for entry in folder.journal.read()] == list(
        range(1, len(folder.journal.read()) + 1)
    )
    (run,) = [
        run
        for run in client.search_runs([experiment])
        if run.data.tags.get("dks.cell_id") == killed
    ]
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == [entry.epoch for entry in folder.journal.read()], (
        "no gap and no repeat"
    )


@pytest.mark.slow
def test_two_processes_that_want_the_same_cell_run_it_once(in_folder: Path) -> None:
    longer = ("recipe.epochs=25", "data.train_images=640", "tracking=off")
    command = [str(ROOT / "train.py"), *TINY, *longer]
    processes = [start(command, in_folder) for _ in range(2)]
    ended = [(process.communicate(timeout=200), process.returncode) for process in processes]
    assert [status for _, status in ended] == [0, 0], ended
    (record,) = records(in_folder).values()
    assert record["status"] == "done"
    assert len(record["attempts"]) == 1
    said = [err for (_, err), _ in ended]
    assert sum("another process" in err for err in said) == 1, said
    (cell_id,) = records(in_folder)
    assert [
        entry.epoch for entry in RunFolder(in_folder / "runs" / cell_id).journal.read()
    ] == list(range(1, 26))


@pytest.mark.slow
def test_dks_table_prints_a_sweep_again_in_every_format(
    run_here: Run, in_folder: Path, capsys: Any
) -> None:
    _, printed, _ = run_here("-m", "aux=ours,shallow", "sweep=mine", *TINY)
    signs = {"terminal": "┃", "md": "|:---|", "latex": "\\toprule", "csv": "cell_ids"}
    shown = {}
    for form, sign in signs.items():
        with pytest.raises(SystemExit) as left:
            main(["table", "mine", "--format", form])
        assert left.value.code == 0
        shown[form] = capsys.readouterr().out
        assert sign in shown[form]
    assert shown["terminal"] == printed
    assert shown["md"] == (in_folder / "results" / "mine" / "table.md").read_text()


def test_a_run_is_not_stopped_by_a_store_that_breaks(
    run_here: Run, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store goes away after it was prepared.

    The run finishes, its journal is whole, and it says so in its log.
    """
    from dks.tracking.sender import Sender

    begin = Sender.begin

    def broken(self: Sender, folder: Path) -> None:
        (in_folder / "mlflow.db").write_text("the disk is gone")
        begin(self, folder)

    monkeypatch.setattr(Sender, "begin", broken)
    status, _, err = run_here(*TINY, tracking="local")
    assert status == 0
    said = (
        "sqlite:///mlflow.db has not got everything: tracking.uri=sqlite:///mlflow.db cannot "
        "be opened: file is not a database"
    )
    assert said in " ".join(err.split())
    assert "1 run to be completed by: dks sync" in " ".join(err.split())
    (record,) = records(in_folder).values()
    assert record["status"] == Status.done.value
    (cell_id,) = records(in_folder)
    folder = RunFolder(in_folder / "runs" / cell_id)
    assert len(folder.journal.read()) == 2
    log = folder.log_file.read_text()
    assert said in log
    assert "the journal is complete, and dks sync sends the rest" in log


def test_the_version_is_told(capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"dks {__version__}\n")


@pytest.mark.slow
def test_quiet_leaves_the_result_and_verbose_says_what_is_decided(
    run_here: Run, in_folder: Path
) -> None:
    small = (*TINY, "recipe.epochs=1", "hydra/launcher=basic")
    status, out, err = run_here("-q", "-m", "seed=1,2", *small)
    assert (status, err) == (0, "")
    assert "error (%)" in out
    status, again, err = run_here("-m", "--verbose", "seed=1,2,3", *small)
    assert status == 0
    decided = [
        line.split("  ")[2:4]
        for line in err.splitlines()
        if line.startswith("  ") and " is " in line
    ]
    assert sorted(decided) == [
        ["done: is left alone", "seed=1"],
        ["done: is left alone", "seed=2"],
        ["missing: is run", "seed=3"],
    ]
    status, out, err = run_here("-q", "recipe.lr=1e30", *TINY, "data.train_images=320")
    assert status == 1
    assert "failed  NonFiniteLoss" in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        ("sweep", "list"),
        ("bench", "--list"),
        ("table", "--help"),
        ("--help",),
        ("--version",),
        ("train", "--help"),
    ],
    ids=" ".join,
)
def test_a_reader_that_has_gone_ends_a_command_silently(
    in_folder: Path, arguments: tuple[str, ...], buffered: bool
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before the command begins
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "" if buffered else "1",
    }
    try:
        command = [sys.executable, "-m", "dks", *arguments]
        done = subprocess.run(
            command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
