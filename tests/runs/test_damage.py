"""Files of a run that were damaged.

What can be read is read, what was lost is said in a line, and the same command goes on.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dks.cli import main as cli
from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.machine.interruption import Interrupted
from dks.runs import damage
from dks.runs.journal import Journal
from dks.runs.record import RunFolder, Status
from dks.runs.states import State, look_up
from dks.training.run import Outcome, run_cell
from tests.conftest import assert_same_result, finished_run, queued, raise_at, sampled, train

# --- the journal


def journal(path: Path, epochs: int) -> Journal:
    written = Journal(path / "metrics.jsonl")
    for epoch in range(1, epochs + 1):
        written.append(epoch, 10 * epoch, {"m": float(epoch)})
    return written


def epochs(written: Journal) -> list[int]:
    return [entry.epoch for entry in written.read()]


@pytest.mark.parametrize(
    ("garbage", "dropped"),
    [(b'{"epoch": 4, "st', 16), (b"\xff\xfe\n", 3), (b'{"epoch":"4"}\n{"epoch":5}\n', 26)],
)
def test_what_is_dropped_of_a_journal_is_said_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, garbage: bytes, dropped: int
) -> None:
    written = journal(tmp_path, 3)
    assert epochs(written) == [1, 2, 3]
    assert not caplog.records
    with written.path.open("ab") as file:
        file.write(garbage)
    assert epochs(written) == [1, 2, 3]
    assert caplog.messages == [
        f"{written.path} is damaged behind line 3: 3 lines are kept, {dropped} bytes are dropped"
    ]


def test_an_empty_journal_has_no_lines_and_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert Journal(tmp_path / "metrics.jsonl").read() == []
    assert not caplog.records


@given(st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_no_line_is_glued_to_one_that_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    written = journal(tmp_path_factory.mktemp("journal"), 3)
    content = written.path.read_bytes()[:-cut]
    written.path.write_bytes(content)
    written.append(9, 90, {"m": 9.0})
    assert epochs(written) == [*range(1, content.count(b"\n") + 1), 9]
    assert written.path.read_bytes().startswith(content[: content.rfind(b"\n") + 1])


@pytest.mark.parametrize("taken", [0, 1, 40])
@pytest.mark.parametrize("before", [0, 2])
def test_a_line_that_could_not_be_written_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, before: int
) -> None:
    """The disk takes some bytes of it and no more."""
    written = journal(tmp_path, before)
    content = written.path.read_bytes() if before else b""
    write = os.write

    def full(descriptor: int, part: memoryview) -> int:
        if len(part) > taken and (size := os.fstat(descriptor).st_size) < len(content) + taken:
            return write(descriptor, part[: len(content) + taken - size])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(
            OSError, match=r"metrics\.jsonl cannot be written: the disk at .* is full"
        ):
            written.append(before + 1, 0, {"m": 0.5})
    assert written.path.read_bytes() == content
    written.append(before + 1, 0, {"m": 0.5})
    assert epochs(written) == [*range(1, before + 2)]


def test_a_journal_is_read_on_from_where_one_stopped(tmp_path: Path) -> None:
    written = journal(tmp_path, 2)
    first, offset = written.read_from(0)
    assert [entry.epoch for entry in first] == [1, 2]
    assert offset == written.path.stat().st_size
    assert written.read_from(offset) == ([], offset)
    line = written.append(3, 30, {"m": 3.0}).to_json().encode()
    with written.path.open("ab") as file:
        file.write(line[:20])
    more, end = written.read_from(offset)
    assert [entry.epoch for entry in more] == [3]
    assert end == offset + len(line) + 1
    assert written.read_from(end) == ([], end)
    with written.path.open("ab") as file:
        file.write(line[20:] + b"\n")
    assert written.read_from(end) == (more, written.path.stat().st_size)
    assert written.read_from(10**6) == ([], 10**6), "it was cut back since"
    assert Journal(tmp_path / "none").read_from(7) == ([], 7)


def test_what_lies_before_an_offset_is_not_read(tmp_path: Path) -> None:
    """A file of a terabyte, of which nothing but the end is on the disk."""
    line = journal(tmp_path, 1).path.read_bytes()
    huge = Journal(tmp_path / "huge.jsonl")
    with huge.path.open("wb") as file:
        file.seek(1 << 40)
        file.write(line)
    entries, end = huge.read_from(1 << 40)
    assert [entry.epoch for entry in entries] == [1]
    assert end == (1 << 40) + len(line)


# --- files set aside


def test_what_is_set_aside_never_takes_the_place_of_something_else(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        (tmp_path / "record.json").write_text(str(number))
        names.append(damage.set_aside(tmp_path / "record.json").name)
    assert names == ["record.damaged.json", "record.damaged-2.json", "record.damaged-3.json"]
    assert [(tmp_path / name).read_text() for name in names] == ["0", "1", "2"]


def test_the_same_line_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with damage.shown():
        for line in ("is cut", "is cut", "is gone"):
            damage.report(tmp_path, line)
    damage.report(tmp_path, "is cut")
    assert capsys.readouterr().err == f"warning: {tmp_path} is cut\nwarning: {tmp_path} is gone\n"


# --- the record


@pytest.mark.rest_slow(2)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'"x"', b"\xff\xfe", b'{"schema_version": "1"}']
)
def test_a_damaged_record_of_a_finished_run_is_rebuilt(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = finished_run(tmp_path)
    before = folder.read_record()
    assert before is not None
    folder.record_file.write_bytes(content)
    state, record = look_up(str(tmp_path / "runs"), folder.cell_id)
    assert state is State.done
    assert record is not None
    same = ("cell_id", "config_id", "seed", "method", "sweep", "status", "final", "best", "error")
    assert {name: getattr(record, name) for name in same} == {
        name: getattr(before, name) for name in same
    }
    for name in ("images_per_second", "seconds_per_epoch"):
        assert record.cost[name] == before.cost[name]
    assert folder.record_file.read_bytes() == content, "who only looks writes nothing"
    (line,) = caplog.messages
    assert line.startswith(f"{folder.record_file} is damaged (")
    # Who works on the cell puts the rebuilt one in its place.
    assert run_cell(folder.path) is Outcome.already_done
    assert (folder.path / "record.damaged.json").read_bytes() == content
    assert folder.read_record() == record
    assert not folder.record_is_damaged


@pytest.mark.parametrize("harm", ["weights", "cut weights", "journal", "configuration"])
def test_a_run_without_its_weights_or_epochs_is_not_taken_for_finished(
    tmp_path: Path, harm: str
) -> None:
    folder = finished_run(tmp_path)
    folder.record_file.write_text("")
    if harm == "weights":
        folder.weights_file.unlink()
    elif harm == "cut weights":
        folder.weights_file.write_bytes(folder.weights_file.read_bytes()[:-1])
    elif harm == "journal":
        folder.journal.path.write_bytes(folder.journal.path.read_bytes()[:-1])
    else:  # another seed, and so another cell
        folder.config_file.write_text(folder.config_file.read_text().replace("seed: 0", "seed: 1"))
    record = folder.read_record()
    assert record is not None
    assert record.status is Status.killed
    assert look_up(str(tmp_path / "runs"), folder.cell_id)[0] is State.killed


def test_a_record_that_cannot_be_mended_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished_run(tmp_path)
    folder.record_file.write_text("{")

    def full(descriptor: int, part: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"record\.json cannot be written"):
            folder.mend_record()
    assert folder.record_file.read_text() == "{"
    assert not list(folder.path.glob("*damaged*")) + list(folder.path.glob(".record*"))


def test_a_configuration_that_became_another_ones_is_not_run(tmp_path: Path) -> None:
    """It was cut at the end of a line, so it has another seed now."""
    folder = queued(tmp_path, "seed=7")
    lines = folder.config_file.read_text().splitlines(keepends=True)
    (end,) = [number for number, line in enumerate(lines) if line == "seed: 7\n"]
    folder.config_file.write_text("".join(lines[:end]))
    with pytest.raises(RequestError, match=rf"config\.yaml is not that of cell {folder.cell_id}"):
        run_cell(folder.path)
    assert not folder.config_is_whole()
    assert queued(tmp_path, "seed=7").config_is_whole()
    assert run_cell(folder.path) is Outcome.done


# --- every file, every kind of damage, every command

SWEEP = (
    "-m",
    "data=synthetic",
    "data.image_size=8",
    "data.train_images=64",
    "data.test_images=32",
    "data.pad=1",
    "recipe.batch_size=16",
    "recipe.epochs=3",
    "threads=1",
    "tracking=off",
    "hydra/launcher=basic",
    "seed=2,1",
)
FILES = (
    "config.yaml",
    "record.json",
    "metrics.jsonl",
    "heartbeat.json",
    "mlflow.json",
    "checkpoints/last.pt",
    "weights.safetensors",
    "run.log",
)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def randomised(path: Path) -> None:
    path.write_bytes(bytes((37 * number * number + 11) % 256 for number in range(500)))


def not_utf8(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\xe9" + path.read_bytes())


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


DAMAGES = (
    cut,
    pytest.param(a_folder, marks=pytest.mark.slow),
    pytest.param(randomised, marks=pytest.mark.slow),
    *sampled(
        [
            pytest.param(emptied, marks=pytest.mark.slow),
            pytest.param(not_utf8, marks=pytest.mark.slow),
        ],
        [],
    ),
)


Command = Callable[..., tuple[int, str, str]]  # arguments -> exit status, output, errors


@pytest.fixture
def dks_here(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`dks ARGUMENTS` in this process and an empty folder."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def second_run(folder: Path) -> RunFolder:
    (path,) = [
        path.parent
        for path in folder.glob("runs/*/config.yaml")
        if "\nseed: 1\n" in path.read_text()
    ]
    return RunFolder(path)


def sweep_name() -> str:
    (path,) = Path("results").iterdir()
    return path.name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sweep, finished and stopped in the third epoch of its second run: folders to copy."""
    folders = {}
    for kind in ("finished", "stopped"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folders[kind])
            if kind == "stopped":
                patched.setattr(
                    "dks.runs.terminal.RunView.stepped", raise_at(12 + 10, Interrupted("SIGTERM"))
                )
            with pytest.raises(SystemExit) as left:
                cli.main(("train", *SWEEP))
            assert left.value.code == (130 if kind == "stopped" else 0)
            second_run(Path()).log_file.write_text("a line\n")
            second_run(Path()).mlflow_file.write_text(
                '{"uri": "sqlite:///mlflow.db", "run_id": "f00", "epoch": 1}'
            )
    return folders


def taken_over(made: dict[str, Path], kind: str) -> RunFolder:
    """Such a sweep in the current folder, and its second run."""
    shutil.copytree(made[kind], ".", dirs_exist_ok=True)
    return second_run(Path())


def look(dks_here: Command, folder: RunFolder) -> str:
    """What commands that only look say on standard error.

    None of them writes into the folder of the run.
    """
    before = {path: path.lstat().st_mtime_ns for path in folder.path.rglob("*")}
    said = ""
    for command in (("sweep", "status"), ("table",), ("sweep", "plan", "--probe=0")):
        status, _, err = dks_here(*command, sweep_name())
        assert status == 0, (command, err)
        assert "Traceback" not in err
        said += err
    after = {path: path.lstat().st_mtime_ns for path in folder.path.rglob("*")}
    assert {path: time for path, time in after.items() if path.name != "lock"} == {
        path: time for path, time in before.items() if path.name != "lock"
    }
    return said


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_run_whose_files_were_damaged_goes_on_with_the_same_command(
    made: dict[str, Path], dks_here: Command, name: str, harm: Callable[[Path], None]
) -> None:
    folder = taken_over(made, "stopped")
    if name == "weights.safetensors":  # of an attempt that died before its record was written
        shutil.copy(second_run(made["finished"]).weights_file, folder.path)
    harm(folder.path / name)
    said = look(dks_here, folder)
    if name == "record.json":
        assert said.count(f"warning: {folder.record_file} is damaged (") == 3, (
            "each command says it once"
        )
    status, _, err = dks_here("train", *SWEEP)
    assert status == 0, err
    assert "Traceback" not in err
    assert dks_here("sweep", "status", sweep_name())[2] == ""
    record = folder.read_record()
    assert record is not None
    assert (record.status, record.label, record.choices["data"]) == (
        Status.done,
        "seed=1",
        "synthetic",
    )
    assert cell_id(folder.read_config()) == folder.cell_id
    assert not folder.checkpoints.exists()
    assert_same_result(folder, second_run(made["finished"]))


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("checkpoints")])
def test_a_finished_run_whose_files_were_damaged_stays_finished(
    made: dict[str, Path], dks_here: Command, name: str, harm: Callable[[Path], None]
) -> None:
    folder = taken_over(made, "finished")
    record = folder.read_record()
    harm(folder.path / name)
    look(dks_here, folder)
    status, _, err = dks_here("train", *SWEEP)
    assert status == 0, err
    assert "Traceback" not in err
    found = folder.read_record()
    assert found is not None
    assert record is not None
    assert (found.status, found.final, found.best) == (Status.done, record.final, record.best)
    assert (found.label, found.choices, found.overrides) == (
        record.label,
        record.choices,
        record.overrides,
    )
    assert cell_id(folder.read_config()) == folder.cell_id
    status, _, err = dks_here("evaluate", folder.cell_id)
    assert "Traceback" not in err
    if name == "weights.safetensors":
        assert status == 2
        assert f"{folder.weights_file}" in err
        assert err.count("\n") == 1
    else:
        assert status == 0, err


@pytest.fixture
def reads_only_its_own() -> Iterator[None]:
    """Root reads everything.

    While the test lasts it does without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, as others do.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, effective = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, effective) == 0
    before = effective[0]
    effective[0] = before & ~0b110
    assert libc.capset(header, effective) == 0
    yield
    effective[0] = before
    assert libc.capset(header, effective) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.slow
@pytest.mark.usefixtures("reads_only_its_own")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_not_be_read_is_no_damaged_one(
    made: dict[str, Path], dks_here: Command, name: str
) -> None:
    """It is named, left alone, and counts again once it may be read."""
    folder = taken_over(made, "stopped")
    file = folder.path / name
    if name == "weights.safetensors":
        shutil.copy(second_run(made["finished"]).weights_file, folder.path)
    file.chmod(0)
    plan = ("sweep", "plan", "--probe=0", sweep_name())
    for command in (
        ("sweep", "status", sweep_name()),
        ("table", sweep_name()),
        plan,
        ("train", *SWEEP),
    ):
        status, _, err = dks_here(*command)
        assert "Traceback" not in err
        assert status in (0, 1, 2)
        if status:
            assert err.count(f"{file}") == 1, err
            assert "ermission denied" in err
        if name == "record.json":
            assert status == 2
    if file.exists():
        file.chmod(0o644)
    assert not list(folder.path.rglob("*damaged*"))
    status, _, err = dks_here("train", *SWEEP)
    assert status == 0, err
    assert_same_result(folder, second_run(made["finished"]))


# --- files of a sweep


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_sweep_whose_file_was_damaged_is_written_again_by_its_command(
    made: dict[str, Path], dks_here: Command, harm: Callable[[Path], None]
) -> None:
    folder = taken_over(made, "finished")
    name = sweep_name()
    file = Path("results") / name / "sweep.json"
    before = file.read_text()
    harm(file)
    for command in (("sweep", "status"), ("table",), ("sweep", "plan", "--probe=0")):
        status, _, err = dks_here(*command, name)
        assert status == 2
        assert err.startswith(f"error: {file} ")
        assert err.count("\n") == 1
    status, out, err = dks_here("sweep", "list")
    assert status == 0
    assert "table3" in out, "the others are listed"
    assert err.startswith(f"warning: {file} ")
    assert err.count("\n") == 1
    status, _, err = dks_here("train", *SWEEP)
    assert status == 0, err
    assert "Traceback" not in err
    assert file.read_text() == before
    assert dks_here("sweep", "status", name)[0] == 0
    record = folder.read_record()
    assert record is not None
    assert len(record.attempts) == 1, "no run was touched"


@pytest.mark.slow
@pytest.mark.parametrize("harm", DAMAGES)
def test_a_launch_whose_file_was_damaged_stops_nobody(
    made: dict[str, Path], dks_here: Command, harm: Callable[[Path], None]
) -> None:
    folder = taken_over(made, "stopped")
    record = folder.read_record()
    assert record is not None
    (launch,) = (Path("results") / sweep_name() / "launches").iterdir()
    record.launch = str(launch.absolute())
    folder.write_record(record)
    harm(launch / "launch.json")
    assert look(dks_here, folder) == ""
    assert dks_here("sweep", "cancel", sweep_name())[0] == 0
    status, _, err = dks_here("train", *SWEEP)
    assert status == 0, err
    assert "Traceback" not in err
    assert_same_result(folder, second_run(made["finished"]))


@pytest.mark.slow
def test_worker_processes_go_on_where_a_folder_took_the_place_of_a_log(tmp_path: Path) -> None:
    command = [
        "hydra.launcher.slots=2" if each == "hydra/launcher=basic" else each for each in SWEEP
    ]
    assert train(tmp_path, *command)[0] == 0
    for path in (tmp_path / "runs").iterdir():
        (path / "weights.safetensors").unlink()
        (path / "record.json").write_text("{")
        (path / "run.log").unlink(missing_ok=True)
        (path / "run.log" / "inside").mkdir(parents=True)
    status, _, err = train(tmp_path, *command)
    assert status == 0, err
    assert "Traceback" not in err
    assert err.count("record.json is damaged") == 2
    assert (
        err.count("run.log is a folder where a file should be; it is kept as run.damaged.log") == 2
    )
    for path in (tmp_path / "runs").iterdir():
        assert (path / "run.damaged.log" / "inside").is_dir()
        assert (path / "run.log").is_file()
