"""A full disk, at whatever moment: the run fails with one line.

With room again it goes on and ends bitwise the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dks.config.schema import Tracking
from dks.runs import disk
from dks.runs.disk import DiskFull
from dks.runs.journal import Journal
from dks.runs.record import RunFolder, Status, write_atomically
from dks.runs.states import State, look_up
from dks.sweeps.launchers import worker
from dks.tracking.store import prepare
from dks.training import checkpoint, run
from dks.training.run import Outcome, run_cell
from tests.conftest import ROOT, TINY, assert_same_result, queued, train
from tests.support.tracking_services import assert_holds_journal, mlflow_client

EPOCHS = 3
RECORD = ".record.json"  # the draft of a record; its name goes on with the number of the process
SMALL = ("recipe.batch_size=16", f"recipe.epochs={EPOCHS}")


def drafts(folder: RunFolder) -> list[Path]:
    """What was begun and not finished."""
    return [*folder.path.glob(".*"), *folder.path.glob(f"checkpoints/{checkpoint.DRAFT}")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that always had room."""
    folder = queued(tmp_path_factory.mktemp("straight"), *SMALL)
    assert run_cell(folder.path) is Outcome.done
    return folder


# --- a disk that refuses at the lowest level


class Refusing:
    """The disk takes so many bytes of the file of this name at its `time`-th writing, and then no
    more of anything.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, time: int, taken: int = 0
    ) -> None:
        self.name, self.time, self.left = name, time, taken
        self.full, self._begun, self._write, self._fsync = False, 0, os.write, os.fsync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def write(self, descriptor: int, content: Any) -> int:
        if (
            not self.full
            and Path(f"/proc/self/fd/{descriptor}").readlink().name.removesuffix(f".{os.getpid()}")
            == self.name
        ):
            self._begun += 1
            self.full = self._begun == self.time
        if not self.full:
            return self._write(descriptor, content)
        part, self.left = memoryview(content)[: self.left], 0
        if not part:
            raise OSError(28, "No space left on device")
        return self._write(descriptor, part)

    def fsync(self, descriptor: int) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self._fsync(descriptor)


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("taken", [0, 100])
@pytest.mark.parametrize(
    ("name", "time", "file"),
    [
        ("metrics.jsonl", 1, "metrics.jsonl"),
        ("metrics.jsonl", EPOCHS, "metrics.jsonl"),
        (checkpoint.DRAFT, 1, "checkpoints/last.pt"),
        (checkpoint.DRAFT, 3, "checkpoints/last.pt"),
        (".weights.safetensors", 1, "weights.safetensors"),
        (RECORD, 2, "record.json"),  # when all is done but this
    ],
)
def test_a_full_disk_fails_the_run_with_one_line_and_the_same_call_goes_on(
    tmp_path: Path,
    straight: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    time: int,
    file: str,
    taken: int,
) -> None:
    folder = queued(tmp_path, *SMALL)
    with monkeypatch.context() as patched:
        refusing = Refusing(patched, name, time, taken)
        assert run_cell(folder.path) is Outcome.failed
        assert refusing.full
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"failed  DiskFull: {folder.path / file} cannot be written: the disk at " in said
    assert " to write, " in said
    assert "make room, then the same command goes on" in said
    assert drafts(folder) == []
    if folder.journal.path.exists():
        assert folder.journal.path.read_bytes()[-1:] in (b"\n", b"")
    assert look_up(str(tmp_path / "runs"), folder.cell_id)[0] is State.killed, (
        "not even the record could be written"
    )
    assert queued(tmp_path, *SMALL).path == folder.path
    assert run_cell(folder.path) is Outcome.done
    assert_same_result(straight, folder)


def test_the_record_says_why_where_there_is_room_for_it(
    tmp_path: Path, straight: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft of the checkpoint is gone by then."""
    folder = queued(tmp_path, *SMALL)
    with monkeypatch.context() as patched:
        refusing = Refusing(patched, checkpoint.DRAFT, 2)
        discard = Path.unlink

        def making_room(path: Path, missing_ok: bool = False) -> None:
            discard(path, missing_ok)
            refusing.full = False

        patched.setattr(Path, "unlink", making_room)
        assert run_cell(folder.path) is Outcome.failed
    record = folder.read_record()
    assert record is not None
    assert record.error is not None
    assert (record.status, record.error["type"]) == (Status.failed, "DiskFull")
    assert record.error["message"].startswith(
        f"{folder.checkpoints / 'last.pt'} cannot be written: the disk at "
    )
    assert run_cell(folder.path) is Outcome.done
    assert_same_result(straight, folder)


@pytest.mark.parametrize("number", [28, 122])
def test_a_quota_that_is_used_up_is_a_full_disk(tmp_path: Path, number: int) -> None:
    line = (
        r"x cannot be written: the disk at /.* \(3\.0 MiB to write, [\d.]+ \w+ free\); make "
        r"room, then"
    )
    with pytest.raises(DiskFull, match=line), disk.writing(tmp_path / "x", 3 << 20):
        raise OSError(number, "...")


def test_a_file_that_may_not_grow_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ulimit -f`; the system says EFBIG."""
    line = (
        r"metrics.jsonl cannot be written: a file may have 3\.0 KiB at most \(ulimit -f\); "
        r"raise that limit; then the same"
    )
    monkeypatch.setattr(disk.resource, "getrlimit", lambda which: (3072, -1))
    monkeypatch.setattr(
        os,
        "write",
        lambda descriptor, content: (_ for _ in ()).throw(OSError(27, "File too large")),
    )
    with pytest.raises(DiskFull, match=line):
        Journal(tmp_path / "metrics.jsonl").append(1, 1, {"train/loss": 1.0})
    assert (
        not (tmp_path / "metrics.jsonl").exists()
        or (tmp_path / "metrics.jsonl").read_bytes() == b""
    )


def test_another_error_names_its_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"Input/output error: '.*/x'") as raised,
        disk.writing(tmp_path / "x", 1),
    ):
        raise OSError(5, "Input/output error")
    assert not isinstance(raised.value, DiskFull)


def test_a_file_is_replaced_as_a_whole_or_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patched:
        Refusing(patched, RECORD, 1, 2)
        with pytest.raises(DiskFull):
            write_atomically(path, "newer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, straight: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """`/dev/full` takes nothing, as a full disk."""
    folder = queued(tmp_path, *SMALL, "recipe.lr=1e30")
    folder.log_file.symlink_to("/dev/full")
    worker.run_cells([folder.path])
    said = capsys.readouterr().err
    assert "failed  NonFiniteLoss" in said
    assert "Traceback" not in said
    assert "Logging error" not in said


# --- a real one

needs_root = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 and os.environ.get("CI") != "true",
        reason="only root may mount the small disk that is filled",
    ),
]


class SmallDisk:
    """A file system of its own."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.ballast = path, path / "ballast"
        path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True
        )

    def fill(self, free: int = 0) -> None:
        """Leave that many bytes, up to a page."""
        left = shutil.disk_usage(self.path).free - free
        with self.ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), max(left, 1))
        assert shutil.disk_usage(self.path).free <= max(free, 0) + 4096

    def make_room(self) -> None:
        self.ballast.unlink()

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path / "disk", 96 << 20)
    try:
        yield made
    finally:
        made.close()


def before(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, time: int, what: Callable[[], None]
) -> None:
    """`what` happens before the call of that number."""
    original, calls = getattr(where, name), [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == time:
            what()
        return original(*arguments, **named)

    monkeypatch.setattr(where, name, counted)


class TestRealDisk:
    pytestmark = needs_root

    @pytest.mark.parametrize("free", [0, 65536])
    @pytest.mark.parametrize(
        ("where", "name", "time", "file"),
        [
            (Journal, "append", 1, "metrics.jsonl"),
            (Journal, "append", 2, "metrics.jsonl"),
            (checkpoint, "save", 1, "last.pt"),
            (checkpoint, "save", 2, "last.pt"),
            (checkpoint, "save", 3, "last.pt"),
            (run, "_save_weights", 1, "weights.safetensors"),
            (run, "_write_last", 1, "record.json"),
        ],
    )
    def test_whatever_is_written_when_the_disk_is_full_the_run_goes_on_later(
        self,
        small_disk: SmallDisk,
        straight: RunFolder,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        where: Any,
        name: str,
        time: int,
        file: str,
        free: int,
    ) -> None:
        folder = queued(small_disk.path, *SMALL)
        with monkeypatch.context() as patched:
            before(patched, where, name, time, lambda: small_disk.fill(free))
            outcome = run_cell(folder.path)
        # Only the record fits, and then it was the last thing to write; a journal's line is
        # followed by a checkpoint.
        assert outcome is (Outcome.done if free and file == "record.json" else Outcome.failed)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if outcome is Outcome.failed:
            assert said.count("\n") == 1
            assert f"the disk at {small_disk.path} is full" in said
            assert "make room, then the same command goes on" in said
        assert drafts(folder) == []
        state, record = look_up(str(small_disk.path / "runs"), folder.cell_id)
        assert record is not None
        if not free:
            assert state in (State.killed, State.failed)
        elif outcome is Outcome.failed:
            assert state is State.failed
            assert record.error is not None
            assert record.error["type"] == "DiskFull"
        small_disk.make_room()
        if outcome is Outcome.failed:
            assert run_cell(folder.path) is Outcome.done
        assert_same_result(straight, folder)

    def test_a_command_on_a_full_disk_ends_with_one_line_and_the_same_command_goes_on(
        self, small_disk: SmallDisk, tmp_path: Path
    ) -> None:
        command = (
            *TINY,
            *SMALL,
            "tracking=off",
            f"runs_dir={small_disk.path / 'runs'}",
            f"results_dir={tmp_path / 'results'}",
        )
        small_disk.fill()
        status, _, err = train(tmp_path, *command)
        assert status == 1
        assert err.splitlines()[-1].startswith(f"error: {small_disk.path / 'runs'}")
        assert "is full" in err
        assert "Traceback" not in err
        small_disk.make_room()
        small_disk.fill(256 << 10)  # for the record and less than a checkpoint
        status, _, err = train(tmp_path, *command)
        assert status == 1
        assert err.count("DiskFull: ") == 1
        assert "Traceback" not in err
        small_disk.make_room()
        status, _, err = train(tmp_path, *command)
        assert status == 0, err

    def test_a_store_on_a_full_disk_stops_no_run_and_gets_the_rest_later(
        self, small_disk: SmallDisk, tmp_path: Path
    ) -> None:
        uri = f"sqlite:///{small_disk.path / 'mlflow.db'}"
        tracked = (
            *TINY,
            *SMALL,
            "tracking=local",
            f"tracking.uri={uri}",
            "tracking.drain_seconds=3",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            prepare(Tracking(uri="sqlite:///mlflow.db"))
        # what MLflow opens in this process stays open
        shutil.copy(tmp_path / "mlflow.db", small_disk.path)
        small_disk.fill()
        status, _, err = train(tmp_path, *tracked)
        assert status == 0, err
        assert (
            "mlflow.db has not got everything: database or disk is full; 1 run to be completed "
            "by: dks sync" in err
        )
        assert "Traceback" not in err
        (folder,) = (RunFolder(path) for path in (tmp_path / "runs").iterdir())
        assert len(folder.journal.read()) == EPOCHS
        small_disk.make_room()
        sync = [sys.executable, "-m", "dks", "sync"]
        done = subprocess.run(
            sync,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        copy = shutil.copy(small_disk.path / "mlflow.db", tmp_path / "copy.db")
        assert_holds_journal(mlflow_client(f"sqlite:///{copy}"), folder.path)

    def test_every_cell_of_a_sweep_on_a_full_disk_says_so_in_a_line(
        self, small_disk: SmallDisk, tmp_path: Path
    ) -> None:
        command = (
            *("-m", "seed=1,2,3", "hydra.launcher.slots=2", "tracking=off"),
            *(
                *TINY,
                *SMALL,
                f"runs_dir={small_disk.path / 'runs'}",
                f"results_dir={tmp_path / 'results'}",
            ),
        )
        small_disk.fill(200 << 10)
        status, _, err = train(tmp_path, *command)
        assert status == 1
        assert err.count("failed  DiskFull: ") == 3, err
        assert "Traceback" not in err
        small_disk.make_room()
        status, _, err = train(tmp_path, *command)
        assert status == 0, err
