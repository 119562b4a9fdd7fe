"""A home on a slow disk, or on one that hangs: no run, and nothing that sends it, waits for it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, start

# Python imports a module of this name in every process, workers and the sender included; what
# native code opens is not seen.
RECORDER = """
import os, sys, time

WATCHED = {"open", "sqlite3.connect", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}

def look(event, arguments, home=os.environ["HOME"], log=os.environ["TOUCHED"]):
    for given in arguments[:2] if event in WATCHED else ():
        if isinstance(given, (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(given))
            if path == home or path.startswith(home + os.sep):
                with open(log, "a") as file:
                    print(time.time(), os.getpid(), event, path, file=file)

sys.addaudithook(look)
with open(os.environ["TOUCHED"] + ".begun", "a") as file:
    print(*sys.orig_argv, file=file)
"""  # noqa: E501


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, str]:
    """The environment of processes whose accesses to their home are written down, in the file
    TOUCHED.
    """
    for name in ("home", "site", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RECORDER)
    return {
        "HOME": str(tmp_path / "home"),
        "TOUCHED": str(tmp_path / "touched"),
        "XDG_CACHE_HOME": "",  # the cache is in the home where nobody says otherwise
        "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}",
    }


def touched(recorded: dict[str, str]) -> list[tuple[float, str]]:
    path = Path(recorded["TOUCHED"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(line.partition(" ")[0]), line) for line in lines]


def begun(recorded: dict[str, str]) -> list[str]:
    """The command lines of the processes that were watched."""
    return Path(f"{recorded['TOUCHED']}.begun").read_text().splitlines()


@pytest.mark.slow
def test_the_recorder_sees_what_any_process_does_in_the_home(
    recorded: dict[str, str], tmp_path: Path
) -> None:
    """That the next test can fail."""
    code = "import pathlib, subprocess, sys; pathlib.Path.home().joinpath('a').touch()"
    nested = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-P', '-c', {code!r}], "
        f"check=True)"
    )
    process = start(["-c", nested], tmp_path / "work", **recorded)
    process.communicate(timeout=100)
    assert process.returncode == 0
    assert [line.split(" ", 2)[2] for _, line in touched(recorded)] == [
        f"open {tmp_path / 'home' / 'a'}"
    ]
    assert len(begun(recorded)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("-m", "seed=1,2", "hydra.launcher.slots=2")])
def test_nothing_is_opened_in_the_home_while_a_run_trains(
    recorded: dict[str, str], tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    process = start(
        [str(ROOT / "train.py"), *TINY, "recipe.epochs=20", *launcher],
        tmp_path / "work",
        **recorded,
    )
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert (tmp_path / "work" / "mlflow.db").exists()
    assert any("dks.cli.sender" in line for line in begun(recorded))
    assert any("multiprocessing.forkserver" in line for line in begun(recorded)) == bool(launcher)
    seen = touched(recorded)
    for folder in (tmp_path / "work" / "runs").iterdir():
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        first, last = (entry_time(entry) for entry in (entries[0], entries[-1]))
        assert last > first
        meanwhile = [line for when, line in seen if first <= when <= last]
        if launcher:  # what sends may draw the other run, which is over
            attempt = json.loads((folder / "record.json").read_text())["attempts"][0]
            meanwhile = [line for line in meanwhile if line.split()[1] == str(attempt["pid"])]
        assert meanwhile == []


def entry_time(entry: dict[str, str]) -> float:
    return datetime.fromisoformat(entry["time"]).timestamp()
