"""Long sweeps, several users, clocks that are set back, and folders that cannot be written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from dks.config.schema import Tracking
from dks.runs import attempts, disk, heartbeat, journal, record
from dks.runs.journal import Journal
from dks.runs.lock import is_held
from dks.runs.record import RunFolder
from dks.runs.states import State, look_up
from dks.tracking.store import prepare
from dks.tracking.sync import sync
from dks.training.run import Outcome, run_cell
from tests.conftest import ROOT, TINY, queued, raise_at, reproducible, sampled, start, train
from tests.support.tracking_services import mlflow_client

Command = Callable[..., tuple[int, str, str]]
ONE_EPOCH = (*TINY, "recipe.epochs=1")
needs_root = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.geteuid() != 0 and os.environ.get("CI") != "true",
        reason="only root may mount disks and become another user",
    ),
]

# --- hundreds of cells in one sweep

CELLS, FIRST = sampled((500, 40), (120, 30))
# What the second half of the cells may take more than the first half did after its FIRST ones.
# Nothing of a run may stay: its network, gradients and momentum are 1 MiB, its files 20 KiB. 100 of
# them would be far above these bounds.
GROWTH = {  # MiB of memory that no file backs
    "parent": 4,  # a few hundred bytes a cell, for what is shown and what comes next
    "server": 1,  # only forks
    "worker": 16,  # what malloc keeps goes up and down by that much, from one cell to the next
    # 45 of them are matplotlib, imported for the first picture, which a busy machine has no time
    # for before
    "sender": 64,
}
HANDLES = 4  # open files or threads: some come and go with each cell


@dataclass(frozen=True)
class Sample:
    """What a process takes, and how many cells were done by then."""

    done: int
    memory: float  # MiB
    files: int
    threads: int


def role(process: psutil.Process, parent: int) -> str | None:
    """What it is in the sweep; None: something short, such as git."""
    if process.pid == parent:
        return "parent"
    typed = " ".join(process.cmdline())
    if "multiprocessing.forkserver" in typed:
        return "server" if process.ppid() == parent else f"worker {process.pid}"
    return "sender" if "dks.cli.sender" in typed else None


def sample_of(process: psutil.Process, done: int) -> Sample:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (memory,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return Sample(done, int(memory) / 1024, process.num_fds(), process.num_threads())


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what processes take")
def test_hundreds_of_cells_leave_nothing_behind_in_any_process(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = tmp_path / "work"
    folder.mkdir()
    arguments = [
        "-m",
        f"seed=range({CELLS})",
        *ONE_EPOCH,
        "recipe.batch_size=64",
        "hydra.launcher.slots=2",
    ]
    # on a busy machine what sends may be far behind the runs at their end
    arguments.append("tracking.drain_seconds=600")
    with (tmp_path / "said").open("wb") as said:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(scratch),
            "OMP_NUM_THREADS": "1",
        }
        # torch makes it, in TMPDIR otherwise
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "inductor")
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
    samples, seen = defaultdict[str, list[Sample]](list), set[psutil.Process]()
    ours = psutil.Process(process.pid)
    while process.poll() is None:
        done = sum(1 for _ in folder.glob("runs/*/weights.safetensors"))
        try:
            for each in [ours, *ours.children(recursive=True)]:
                if (name := role(each, ours.pid)) is not None:
                    seen.add(each)
                    samples[name].append(sample_of(each, done))
        except (psutil.Error, OSError, ValueError):  # it has just ended
            pass
        time.sleep(sampled(0.5, 0.2))
    words = (tmp_path / "said").read_text()
    assert process.returncode == 0, words
    assert f"[{CELLS}/{CELLS}]" in words
    assert len(list(folder.glob("runs/*/weights.safetensors"))) == CELLS
    assert "not got everything" not in words
    assert {name.partition(" ")[0] for name in samples} == set(GROWTH)
    for name, found in samples.items():
        before = [each for each in found if FIRST <= each.done < CELLS // 2]
        after = [each for each in found if CELLS // 2 <= each.done < CELLS]
        assert len(before) >= 10 and len(after) >= 10, name
        growth = max(each.memory for each in after) - max(each.memory for each in before)
        assert growth <= GROWTH[name.partition(" ")[0]], f"{name} grew by {growth:.1f} MiB"
        for what in ("files", "threads"):
            more = max(getattr(each, what) for each in after) - max(
                getattr(each, what) for each in before
            )
            assert more <= HANDLES, f"{name}: {more} more {what}"
    gone, alive = psutil.wait_procs(seen, timeout=20)
    assert not alive
    assert list(scratch.iterdir()) == [], "no temporary files"
    assert [path for path in folder.rglob(".*") if path.name != ".mlflow.db.lock"] == [], (
        "no drafts"
    )


SEND = """
import dataclasses, gc, os, sys
from pathlib import Path
from dks.tracking.upload_loop import UploadLoop
from dks.runs.record import RunFolder

def memory():
    gc.collect()
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1])

folders = sorted(Path("runs").absolute().iterdir())
loop = UploadLoop()
loop.handle({"open": dataclasses.asdict(RunFolder(folders[0]).read_config().tracking), "own": True})
for number, folder in enumerate(folders):
    if number == len(folders) // 2:
        before = memory()
    loop.handle({"begin": str(folder)})
    loop.handle({"end": str(folder)})
    loop.work()
assert not loop.runs and not loop.unpictured and not loop.problems
print((memory() - before) / (len(folders) - len(folders) // 2))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_sends_keeps_nothing_of_runs_that_are_over(in_folder: Path) -> None:
    """MLflow itself keeps some 10 KiB a run, of the last 1024; a run's files would be 30 more."""
    first = queued(in_folder, "tracking=local", "recipe.epochs=1")
    assert run_cell(first.path) is Outcome.done
    (first.path / "mlflow.json").unlink()
    for number in range(1, sampled(200, 100)):
        copy = RunFolder(shutil.copytree(first.path, first.path.with_name(f"{number:012x}")))
        told = copy.read_record()
        assert told is not None
        told.cell_id = told.uid = copy.cell_id
        copy.write_record(told)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SEND], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30, "KiB a run"


# --- several users


class TestUsers:
    """Real ones, each in a mount namespace of its own, in which the way to Python's files is open
    to them.
    """

    pytestmark = needs_root
    GROUP = 54321
    # A folder on the way to Python or to this code may be closed to others, /root for one: in the
    # namespace it is not.
    OPEN = (
        'for closed in $CLOSED; do over=$(mktemp -d) && mount -t tmpfs tmpfs "$over" && mkdir '
        '"$over/upper" "$over/work" && '
        'mount -t overlay overlay -o "lowerdir=$closed,upperdir=$over/upper,workdir=$over/work" '
        '"$closed" && '
        'chmod a+x "$closed" || exit 99; done; umask "$MASK"; '
        'exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --groups "$GROUP" -- "$@"'
    )

    @pytest.fixture
    def shared(self) -> Iterator[Path]:
        """A folder that all may write to, whose files belong to the group of all."""
        folder = Path(tempfile.mkdtemp(prefix="dks-shared-"))  # pytest's own is closed to others
        os.chown(folder, 0, self.GROUP)
        folder.chmod(0o2777)
        yield folder
        shutil.rmtree(folder)

    def begin(
        self, user: int, mask: str, folder: Path, *arguments: str, home: str | None = None
    ) -> subprocess.Popen[str]:
        """`dks ARGUMENTS` as that user, who has no name; home: None: no HOME either."""
        ways = {
            path
            for place in (sys.executable, sys.base_prefix, sys.prefix, ROOT)
            for path in self._way(Path(place))
        }
        variables = {
            name: value
            for name, value in os.environ.items()
            if name not in ("HOME", "XDG_CACHE_HOME")
        }
        variables |= {
            **{
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "MASK": mask,
                "USER_ID": str(user),
                "GROUP": str(self.GROUP),
            },
            "CLOSED": " ".join(
                sorted(str(path) for path in ways if not path.stat().st_mode & 0o001)
            ),
            **({} if home is None else {"HOME": home}),
        }
        command = [
            "unshare",
            "--mount",
            "bash",
            "-c",
            self.OPEN,
            "bash",
            sys.executable,
            "-m",
            "dks",
            *arguments,
        ]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _way(self, path: Path) -> set[Path]:
        """The folders that lead to a file, links resolved."""
        return {
            each
            for place in (path.absolute(), path.resolve())
            for each in (place, *place.parents)
            if each.is_dir()
        }

    def run(self, *arguments: Any, **named: Any) -> tuple[int, str, str]:
        process = self.begin(*arguments, **named)
        out, err = process.communicate(timeout=250)
        return process.returncode, out, err

    def sweep(self, *seeds: int) -> tuple[str, ...]:
        return ("train", "-m", f"seed={','.join(map(str, seeds))}", *ONE_EPOCH)

    def test_two_of_a_group_fill_one_store_and_one_folder_at_the_same_time(
        self, shared: Path
    ) -> None:
        processes = [
            self.begin(user, "002", shared, *self.sweep(*seeds))
            for user, seeds in ((12345, (1, 2, 3)), (12346, (2, 3, 4)))
        ]
        ended = [(process.communicate(timeout=250), process.returncode) for process in processes]
        # The one that is over first may see cells of the other one under way.
        assert {status for _, status in ended} <= {0, 1} and 0 in [status for _, status in ended], (
            ended
        )
        status, out, err = self.run(12345, "002", shared, *self.sweep(1, 2, 3, 4))
        assert status == 0, err
        assert "all 4 cells are done" in err
        assert [path for path in shared.rglob("*") if not path.stat().st_mode & 0o020] == [], (
            "the group may write all of it"
        )
        assert len({path.stat().st_uid for path in shared.glob("runs/*")}) == 2
        status, out, err = self.run(12346, "002", shared, "sync")
        assert status == 0, (out, err)
        client = mlflow_client(f"sqlite:///{shared / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("dks")
        assert experiment is not None
        cells = [
            run
            for run in client.search_runs([experiment.experiment_id])
            if run.data.tags["dks.role"] == "cell"
        ]
        assert sorted(run.data.tags["dks.seed"] for run in cells) == ["1", "2", "3", "4"]
        assert {run.info.status for run in cells} == {"FINISHED"}

    def test_what_another_user_lets_nobody_write_can_be_read_and_is_refused_in_a_line(
        self, shared: Path
    ) -> None:
        status, table, err = self.run(12345, "022", shared, *self.sweep(1, 2), "sweep=mine")
        assert status == 0, err
        for command in (
            ("table", "mine"),
            ("table", "mine", "--store", "sqlite:///mlflow.db"),
            ("sweep", "status", "mine"),
        ):
            status, out, err = self.run(12346, "022", shared, *command)
            assert (status, err) == (0, ""), (command, err)
            assert out == table or "table" not in command or "--store" in command
        for arguments, line in {
            (
                *self.sweep(1, 2),
                "sweep=mine",
            ): "results_dir=results cannot be written: Permission denied; dks table mine "
            "only reads",
            (
                *self.sweep(3, 4),
            ): "runs_dir=runs cannot be written: Permission denied; choose another one with "
            "runs_dir=FOLDER",
            ("train", *ONE_EPOCH, "seed=3", "runs_dir=own"): (
                "tracking.uri=sqlite:///mlflow.db cannot be written: Permission denied; "
                "name another one, or choose tracking=off"
            ),
            ("report", "mine"): "results/mine/report.html: Permission denied",
        }.items():
            status, out, err = self.run(12346, "022", shared, *arguments)
            assert (status, out) == (2, ""), err
            assert err.splitlines()[-1] == f"error: {line}"
            assert err.count("error: ") == 1 and "Traceback" not in err
        assert not (shared / "own").exists()

    def test_a_sweep_under_way_is_seen_by_who_may_only_read(self, shared: Path) -> None:
        longer = (
            "train",
            "-m",
            "seed=1,2",
            *TINY,
            "recipe.epochs=2000",
            "sweep=mine",
            "tracking=off",
        )
        process = self.begin(12345, "022", shared, *longer)
        until = time.monotonic() + 100
        while not list(shared.glob("runs/*/metrics.jsonl")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.1)
        status, out, err = self.run(12346, "022", shared, "sweep", "status", "mine")
        process.terminate()  # of the shell, which has become the command
        process.communicate(timeout=100)
        assert (status, err) == (0, "")
        assert "1 running" in out and "1 queued" in out

    @pytest.mark.parametrize("home", sampled([None, "/nonexistent", "/proc"], [None, "/proc"]))
    def test_no_home_is_needed(self, shared: Path, home: str | None) -> None:
        """Nothing can be made in /proc.

        Without HOME a user whom the system does not know has none at all.
        """
        status, out, err = self.run(
            12345, "022", shared, *self.sweep(1, 2), "sweep=mine", home=home
        )
        assert status == 0, err
        assert "not got everything" not in err and "Traceback" not in err
        status, again, err = self.run(12345, "022", shared, "table", "mine", home=home)
        assert (status, again, err) == (0, out, "")
        status, _, err = self.run(
            12345, "022", shared, "sweep", "plan", "mine", "--probe", "0.1", home=home
        )
        assert status == 0, err


def test_a_lock_is_seen_through_a_file_that_can_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path)

    def refused(self: FileLock, **given: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with lock:
        assert is_held(FileLock(path))
        with monkeypatch.context() as patched:
            patched.setattr(FileLock, "acquire", refused)
            assert is_held(FileLock(path))
    assert not is_held(FileLock(path))
    monkeypatch.setattr(FileLock, "acquire", refused)
    assert not is_held(FileLock(path))


# --- a clock that is set back


class Clock:
    """The clock of the system, as this package reads it, which can be set.

    What nobody sets goes on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        clock, seconds = self, time.time

        class Set(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + timedelta(seconds=clock.ahead)

        for module in (attempts, journal, heartbeat, record):
            monkeypatch.setattr(module, "datetime", Set)
        monkeypatch.setattr(time, "time", lambda: seconds() + clock.ahead)

    def set_back(self, seconds: float = 3600) -> None:
        self.ahead -= seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def set_back_before(monkeypatch: pytest.MonkeyPatch, clock: Clock, epoch: int) -> None:
    append = Journal.append

    def appended(self: Journal, number: int, step: int, metrics: dict[str, float]) -> Any:
        if number == epoch:
            clock.set_back()
        return append(self, number, step, metrics)

    monkeypatch.setattr(Journal, "append", appended)


def milliseconds(when: str) -> float:
    return 1000 * datetime.fromisoformat(when).timestamp()


def test_no_duration_is_negative_when_the_clock_is_set_back(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = queued(tmp_path, "recipe.epochs=3")
    set_back_before(monkeypatch, clock, 2)
    began = time.perf_counter()
    assert run_cell(folder.path) is Outcome.done
    took = time.perf_counter() - began
    told = folder.read_record()
    assert told is not None
    (attempt,) = told.attempts
    assert attempt.ended is not None
    assert 0 < attempt.seconds == told.cost["seconds"] <= took
    assert milliseconds(attempt.ended) - milliseconds(attempt.started) == pytest.approx(
        1000 * attempt.seconds, abs=2
    )
    assert 0 < told.cost["seconds_per_epoch"] <= took
    entries = folder.journal.read()
    assert [entry.epoch for entry in entries] == [1, 2, 3]
    assert all(
        value >= 0
        for entry in entries
        for name, value in entry.metrics.items()
        if name.startswith("time/")
    )
    assert milliseconds(entries[1].time) < milliseconds(entries[0].time), (
        "the journal says what the clock said"
    )


def test_where_the_clock_was_set_back_in_every_epoch_no_time_of_one_is_told(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = queued(tmp_path)
    set_back_before(monkeypatch, clock, 2)
    assert run_cell(folder.path) is Outcome.done
    told = folder.read_record()
    assert told is not None
    assert "seconds_per_epoch" not in told.cost


@pytest.mark.slow
def test_a_run_that_went_on_after_the_clock_was_set_back_ends_after_its_begin_in_mlflow(
    in_folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = queued(in_folder)
    from dks.runs.heartbeat import Pulse

    with monkeypatch.context() as patched:
        patched.setattr(Pulse, "stepped", raise_at(2, RuntimeError("the power failed")))
        assert run_cell(folder.path) is Outcome.failed
    clock.set_back()
    assert run_cell(folder.path) is Outcome.done
    told = folder.read_record()
    assert told is not None
    first, last = told.attempts
    assert milliseconds(last.started) < milliseconds(first.started)
    assert (
        first.seconds > 0
        and last.seconds > 0
        and told.cost["seconds"] == pytest.approx(first.seconds + last.seconds)
    )
    target = Tracking(uri="sqlite:///mlflow.db")
    assert not sync("runs", target=target).failed
    client = mlflow_client("sqlite:///mlflow.db")
    (run,) = client.search_runs([prepare(target)])
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time == round(milliseconds(first.started))
    points = client.get_metric_history(run.info.run_id, "test/top1_error")
    assert sorted((point.step, point.value) for point in points) == [
        (entry.epoch, entry.metrics["test/top1_error"]) for entry in folder.journal.read()
    ]
    assert run.data.metrics["test/top1_error"] == told.final["test/top1_error"], (
        "the last epoch is the last one"
    )


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_no_run_is_declared_dead_because_the_clock_was_set_back(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """It is asked in the middle of the run.

    Elsewhere its lock is not seen, only the age of its heartbeat.
    """
    folder = queued(tmp_path)
    states = []
    append = Journal.append

    def looked(self: Journal, *arguments: Any) -> Any:
        clock.set_back()
        with monkeypatch.context() as patched:
            if host == "elsewhere":
                patched.setattr("dks.runs.record.is_held", lambda lock: False)
                patched.setattr("socket.gethostname", lambda: "another")
            states.append(look_up(str(tmp_path / "runs"), folder.cell_id)[0])
        return append(self, *arguments)

    monkeypatch.setattr(Journal, "append", looked)
    assert run_cell(folder.path) is Outcome.done
    assert states == [State.running, State.running]


@pytest.mark.slow
def test_a_table_is_the_same_when_the_clock_was_set_back_between_its_runs(
    run_here: Command, in_folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("-m", "seed=1,2,3", "aux=ours,none", *ONE_EPOCH, "hydra/launcher=basic")
    status, straight, err = run_here(*typed)
    assert status == 0, err
    (in_folder / "runs").rename(in_folder / "straight")
    set_back_before(monkeypatch, clock, 1)  # before every run's only epoch
    status, out, err = run_here(*typed)
    assert status == 0, err
    assert out == straight
    for folder in (in_folder / "straight").iterdir():
        (entry,), (other,) = (
            RunFolder(each).journal.read() for each in (folder, in_folder / "runs" / folder.name)
        )
        assert reproducible(entry.metrics) == reproducible(other.metrics)
    assert run_here(*typed)[1] == straight


# --- folders that cannot be written


def test_what_speaks_against_writing_to_a_folder_is_known_before(tmp_path: Path) -> None:
    assert disk.refusal(tmp_path) is None
    assert disk.refusal(tmp_path / "not" / "there" / "yet") is None
    (tmp_path / "file").write_text("")
    assert disk.refusal(tmp_path / "file" / "runs") == f"{tmp_path / 'file'} is not a folder"
    assert disk.refusal(Path("/proc/self/runs")) is not None, "not even root"


def test_a_file_in_the_place_of_a_folder_is_refused_before_anything_runs(
    run_here: Command, in_folder: Path
) -> None:
    (in_folder / "runs").write_text("")
    status, out, err = run_here(*ONE_EPOCH)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "error: runs_dir=runs cannot be read: Not a directory"


class TestReadOnly:
    """On a real disk that can only be read; root may write everywhere else."""

    pytestmark = needs_root

    @pytest.fixture
    def closed(self, tmp_path: Path) -> Iterator[Path]:
        """A folder with a finished sweep and one more run that died.

        Nothing can be written to it any more.
        """
        folder = tmp_path / "closed"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
        try:
            typed = ("-m", "seed=1,2", "sweep=mine", *ONE_EPOCH, "hydra/launcher=basic")
            status, _, err = train(folder, *typed)
            assert status == 0, err
            self.dead = RunFolder(next((folder / "runs").iterdir()))
            told = self.dead.read_record()
            assert told is not None
            told.status = told.status.running
            told.attempts[-1].status = "running"
            self.dead.write_record(told)
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    def dks(self, folder: Path, *arguments: str) -> tuple[int, str, str]:
        process = start(["-m", "dks", *arguments], folder, XDG_CACHE_HOME=str(folder / "cache"))
        out, err = process.communicate(timeout=250)
        return process.returncode, out, err

    def test_everything_can_be_read_and_nothing_begins(self, closed: Path, tmp_path: Path) -> None:
        for command in (
            ("table", "mine"),
            ("table", "mine", "--store", "sqlite:///mlflow.db"),
            ("sweep", "list"),
            ("sweep", "status", "mine"),
            ("sweep", "plan", "mine", "--probe", "0"),
        ):
            status, out, err = self.dks(closed, *command)
            assert (status, err) == (0, ""), command
            assert out
        assert "1 killed" in self.dks(closed, "sweep", "status", "mine")[1]
        away = (f"runs_dir={tmp_path / 'runs'}", *ONE_EPOCH, "seed=9")
        refused = "cannot be written: Read-only file system"
        for command, line in {
            (
                "train",
                *ONE_EPOCH,
            ): f"runs_dir=runs {refused}; choose another one with runs_dir=FOLDER",
            (
                "sweep",
                "retry",
                "mine",
            ): f"runs_dir=runs {refused}; choose another one with runs_dir=FOLDER",
            (
                "train",
                *away,
            ): f"tracking.uri=sqlite:///mlflow.db {refused}; name another one, or choose "
            f"tracking=off",
            ("train", "-m", *away[:-1], "seed=8,9", "tracking=off"): (
                f"results_dir=results {refused}; choose another one with results_dir=FOLDER"
            ),
            ("figure", "mine"): f"results/mine/figures/mine-curves.svg {refused}",
            ("report", "mine"): "results/mine/report.html: Read-only file system",
            (
                "table",
                "mine",
                "--format",
                "csv",
                "--output",
                "table.csv",
            ): "table.csv: Read-only file system",
        }.items():
            status, out, err = self.dks(closed, *command)
            assert (status, out) == (2, ""), (command, err)
            assert [each for each in err.splitlines() if each.startswith("error")] == [
                f"error: {line}"
            ]
            assert "Traceback" not in err
        assert not (tmp_path / "runs").exists(), "nothing began"

    def test_a_current_folder_that_can_only_be_read_is_no_obstacle(
        self, closed: Path, tmp_path: Path
    ) -> None:
        places = [f"{name}_dir={tmp_path / name}" for name in ("runs", "results")]
        store = f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"
        status, out, err = self.dks(closed, "train", "-m", "seed=1,2", *ONE_EPOCH, *places, store)
        assert status == 0, err
        assert "not got everything" not in err
        artifacts = list(tmp_path.glob("mlruns/**/record.json"))
        assert len(artifacts) == 2, "beside the store"
