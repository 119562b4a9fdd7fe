"""Standard output and standard error that cannot be written any more.

Commands go on, and say at the end what was lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dks.machine import output
from dks.runs.record import RunFolder, Status
from tests.conftest import ROOT, TINY, queued

SWEEP = ("train.py", "-m", "seed=1,2", "sweep=mine", *TINY, "tracking=off")
TABLE = {"table.md", "table.tex", "table.csv", "table.html", "provenance.json"}


def shell(line: str, folder: Path) -> tuple[int, str, str]:
    """A line of bash, in which `dks` is the command: exit status, output, errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f'set -o pipefail; dks() {{ {sys.executable} -m dks "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def records(folder: Path) -> list[tuple[Status, str | None]]:
    """How the runs of a folder ended, and the message of their error."""
    found = [RunFolder(path).read_record() for path in (folder / "runs").iterdir()]
    return [
        (each.status, each.error and each.error["message"]) for each in found if each is not None
    ]


# --- what cannot be written is lost


def test_a_stream_outlives_its_reader_and_a_full_disk() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for file, number in ((writer, errno.EPIPE), (full, errno.ENOSPC)):
        raw = output._Lasting(file, "w")
        stream = output._stream(raw, None)
        for _ in range(2):
            print("a line", file=stream, flush=True)
        assert raw.lost is not None and raw.lost.errno == number
        stream.close()


def test_what_lies_in_files_as_well_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    full = output._Lasting(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr(output, "_output", full)
    stream = output._stream(full, None)
    monkeypatch.setattr(sys, "stdout", stream)
    with output.kept_elsewhere():
        print("a table")
    assert output.loss() is None
    print("a list")
    lost = output.loss()
    assert lost is not None and lost.errno == errno.ENOSPC
    with output.kept_elsewhere():
        print("a table")
    assert output.loss() is lost
    stream.close()


NO_ROOM = "error: standard output cannot be written: No space left on device\n"


@pytest.mark.rest_slow(3)
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("dks completion bash > /dev/full", 1, NO_ROOM),
        ("dks --version > /dev/full", 1, NO_ROOM),
        (
            "dks table yours > /dev/full",
            2,
            "error: no sweep 'yours' in results; there are none yet\n",
        ),
        ("dks table yours 2> /dev/full", 2, ""),
        ("dks completion bash >&- <&- 2>&-", 0, ""),
        ("dks completion bash | head -1 > /dev/null", 0, ""),
    ],
)
def test_what_could_not_be_printed_is_said_without_a_traceback(
    line: str, status: int, said: str, tmp_path: Path
) -> None:
    assert shell(line, tmp_path) == (status, "", said)


# --- runs go on


@pytest.mark.slow
@pytest.mark.parametrize("where", ["2>&1 | true", "> /dev/full 2> /dev/full", ">&- 2>&- <&-"])
def test_runs_go_on_when_nobody_reads_what_they_print(where: str, tmp_path: Path) -> None:
    assert shell(f"{sys.executable} {ROOT}/{' '.join(SWEEP)} {where}", tmp_path) == (0, "", "")
    assert records(tmp_path) == [(Status.done, None)] * 2
    assert {path.name for path in (tmp_path / "results" / "mine").iterdir()} >= TABLE
    assert not [path for path in tmp_path.rglob("*.log") if path.read_text()]


@pytest.mark.slow
def test_a_job_whose_log_is_on_a_full_disk_runs_its_cells(tmp_path: Path) -> None:
    cells = [queued(tmp_path, f"seed={seed}", "recipe.epochs=1") for seed in (1, 2)]
    code = (
        f"from dks.sweeps.launchers.slurm import Cells; "
        f"Cells({[str(each.path) for each in cells]!r})()"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "7",
    }
    with Path("/dev/full").open("w") as full:
        job = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, stdout=full, stderr=full
        )
    assert job.returncode == 0
    assert records(tmp_path) == [(Status.done, None)] * 2


# --- a terminal that is closed


def on_terminal(folder: Path, command: str, *, closed_when: Callable[[], bool]) -> int:
    """Run a command in a session whose terminal is closed meanwhile; its exit status."""
    ours, theirs = pty.openpty()

    def log_in() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=log_in,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    until = time.monotonic() + 120
    while not closed_when():
        assert process.poll() is None and time.monotonic() < until
        try:
            os.read(ours, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
    os.close(ours)  # the system sends SIGHUP to the session
    return process.wait(60)


def trained(folder: Path) -> bool:
    return len(list(folder.glob("runs/*/metrics.jsonl"))) == 2


LONG = f"{sys.executable} {ROOT}/{' '.join(SWEEP)} data.train_images=640 recipe.epochs="


@pytest.mark.slow
def test_runs_outlive_a_terminal_that_is_gone(tmp_path: Path) -> None:
    """As after `nohup` or `disown`: no signal comes, and nothing can be printed."""
    status = on_terminal(
        tmp_path, f"trap '' HUP; exec {LONG}4", closed_when=lambda: trained(tmp_path)
    )
    assert status == 0
    assert records(tmp_path) == [(Status.done, None)] * 2
    assert {path.name for path in (tmp_path / "results" / "mine").iterdir()} >= TABLE
    assert [len(RunFolder(path).journal.read()) for path in (tmp_path / "runs").iterdir()] == [4, 4]


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.slow
def test_runs_are_saved_when_their_terminal_is_closed(tmp_path: Path) -> None:
    status = on_terminal(tmp_path, f"exec {LONG}100000", closed_when=lambda: trained(tmp_path))
    assert status == 130
    assert records(tmp_path) == [(Status.killed, "SIGHUP")] * 2
    assert [
        path.name for path in tmp_path.glob("runs/*/checkpoints/*") if path.name == "last.pt"
    ] == ["last.pt"] * 2
