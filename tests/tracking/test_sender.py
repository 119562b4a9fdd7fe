"""The background process: what it does for runs, and that none waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dks.config.schema import Tracking, TrackingKind
from dks.machine.interruption import Interrupted
from dks.runs.record import RunFolder
from dks.tracking import sender
from dks.tracking.sender import Sender, sending, sent_elsewhere
from dks.tracking.sync import sync
from dks.training.run import run_cell
from tests.conftest import ROOT, TINY, queued
from tests.support.slurm_cluster import free_ports
from tests.tracking.conftest import check, tracked

LOCAL = Tracking(uri="sqlite:///mlflow.db")


@pytest.mark.slow
def test_a_fresh_store_is_made_and_filled_while_a_process_trains_without_mlflow(
    in_folder: Path,
) -> None:
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
    (found,) = sync("runs").runs
    assert (found.points, found.status) == (0, "FINISHED")


@pytest.mark.slow
def test_what_a_server_says_is_heard_before_anything_runs() -> None:
    (port,) = free_ports(1)
    tracking = Tracking(TrackingKind.server, f"http://127.0.0.1:{port}")
    with sending(tracking, print) as process:
        assert process.open(tracking) == "it does not answer (Connection refused)"


@pytest.mark.parametrize("harm", ["killed", "not started"])
def test_the_process_that_sends_may_die(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    begin = Sender.begin

    def killed(self: Sender, folder: Path) -> None:
        begin(self, folder)
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def refused() -> None:
        raise OSError(12, "Cannot allocate memory")

    if harm == "killed":
        monkeypatch.setattr(Sender, "begin", killed)
    else:
        monkeypatch.setattr(sender, "_start", refused)
    run = queued(here, *tracked())
    assert run_cell(run.path).value == "done"
    said = " ".join(capsys.readouterr().err.split())
    assert "MLflow has not got everything" in said and "dks sync" in said
    assert ("Cannot allocate memory" in said) == (harm == "not started")
    (sent,) = sync("runs").runs
    assert sent.points > 0
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
    with sent_elsewhere(), sending(LOCAL, print) as elsewhere:
        elsewhere.begin(tmp_path)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process hears nothing and says nothing."""

    def start() -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(["/bin/sleep", "60"], stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    monkeypatch.setattr(sender, "_start", start)
    monkeypatch.setattr(sender, "HASTE", 0.4)


def interrupted(run: Path | None) -> tuple[float, list[str]]:
    """Seconds until an interrupted command is over, and what is said; the process is gone."""
    said: list[str] = []
    with suppress(Interrupted), sending(LOCAL, said.append) as process:
        assert isinstance(process, Sender) and process.open(LOCAL) is None
        if run is not None:
            process.begin(run)
        begun = time.monotonic()
        raise Interrupted("SIGINT")
    assert process._process is not None
    assert process._process.returncode == -signal.SIGKILL
    return time.monotonic() - begun, said


@pytest.mark.usefixtures("hanging")
def test_an_interrupted_command_waits_for_no_store_that_nobody_has_used(in_folder: Path) -> None:
    seconds, said = interrupted(None)
    assert seconds < 1 and said == []
    assert not Path("mlflow.db").exists()


@pytest.mark.usefixtures("hanging")
def test_an_interrupted_command_waits_little_for_a_process_that_hangs(in_folder: Path) -> None:
    seconds, said = interrupted(in_folder / "runs" / "a")
    assert seconds < 4
    assert len(said) == 1 and "dks sync" in said[0]


@pytest.mark.usefixtures("hanging")
def test_thousands_of_runs_do_not_wait_for_a_process_that_hangs(here: Path) -> None:
    process = Sender(print)
    begun = time.monotonic()
    for number in range(3000):
        process.begin(here / f"{number:060}")
    assert time.monotonic() - begun < 2
    assert len(process.finish(0.0, hurry=True)) == 1
