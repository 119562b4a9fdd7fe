"""Ctrl-C at any moment: the command ends soon, says so in a line, and leaves nothing running."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import ROOT, TINY, sampled, train

COUNT = sampled(200, 14)
SOON = 5.0  # seconds that a command has to end in
MARK = "DKS_INTERRUPTED"  # in the environment of a command and of all that it starts

LONG = (*TINY, "recipe.epochs=100000")
GRID = ("aux=ours,shallow,narrow", "strategy=topdown,bottomup,bidir")
# What is typed, and for how many seconds it goes on at least, or until it has printed a table.
COMMANDS: dict[tuple[str, ...], float] = {
    ("train.py", "-m", *GRID, *LONG): 6,  # a store is made meanwhile
    ("train.py", *LONG, "tracking=off"): 6,
    ("-m", "dks", "sweep", "run", "table3", *LONG, "backbone=resnet8", "tracking=off"): 6,
    ("train.py", "-m", *GRID, *LONG, "hydra.launcher.slots=auto"): 6,  # it is tried out how many
    ("-m", "dks", "sweep", "plan", "paper"): 4,
    ("-m", "dks", "table", "mine"): 0.8,
    # all is done: the table is printed
    ("train.py", "-m", "seed=1,2", "sweep=mine", *TINY, "tracking=off"): 1.5,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep `mine`, which is done."""
    folder = tmp_path_factory.mktemp("workplace")
    status, _, err = train(folder, "-m", "seed=1,2", "sweep=mine", *TINY, "tracking=off")
    assert status == 0, err
    return folder


def obeys(process: subprocess.Popen[str]) -> bool:
    """Has the command begun to obey signals? Its first lines see to that."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


def marked(mark: str) -> list[str]:
    """The command lines of all processes with this mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(
                    path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
                )
    return [line for line in found if line]


def interrupt(number: int, workplace: Path, folder: Path) -> str | None:
    """Start a command, send it a signal at a random moment, and look how it ends.

    What was wrong, or None.
    """
    draw, mark = random.Random(number), uuid4().hex
    arguments = [*COMMANDS][number % len(COMMANDS)]
    moment = draw.uniform(0, COMMANDS[arguments])
    what = draw.choice([signal.SIGINT, signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    shutil.copytree(workplace, folder)
    given = [str(ROOT / each) if each == "train.py" else each for each in arguments]
    process = subprocess.Popen(
        [sys.executable, *given],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not obeys(process):
        time.sleep(0.001)
    time.sleep(moment)
    sent = time.monotonic()
    if draw.random() < 0.5:
        process.send_signal(what)
    else:  # as a terminal does
        os.killpg(process.pid, what)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    took = time.monotonic() - sent
    while (left := marked(mark)) and time.monotonic() < sent + max(SOON, took):
        time.sleep(0.05)
    over = process.returncode == 0 and out.endswith("┘\n")  # it was done when the signal came
    wrong = [
        *(
            [f"exit status {process.returncode}"]
            if process.returncode != (0 if over else 130)
            else []
        ),
        *([f"it took {took:.1f} s"] if took > SOON else []),
        *(
            ["it is not said in a line"]
            if sum("interrupted" in line for line in err.splitlines()) != (not over)
            else []
        ),
        *(["there is a traceback"] if "Traceback" in err or "Exception ignored" in err else []),
        *[f"left running: {line}" for line in left],
        *[
            f"{each.name}/ was made"
            for each in folder.iterdir()
            if each.name in ("outputs", "multirun")
        ],
    ]
    line = (
        f"{number}: {what.name} after {moment:.2f} s, ended {took:.1f} s later, "
        f"{' '.join(arguments)[:60]}"
    )
    told = f"{line}: {'; '.join(wrong)}\n{err}" if wrong else None
    print(told or line, flush=True)
    return told


# --- an exception that gets lost


def typed(code: str, folder: Path) -> tuple[int, str]:
    """Run this code; exit status and errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_a_signal_that_gets_lost_ends_the_command_all_the_same(tmp_path: Path) -> None:
    code = (
        "import os, signal, time; from dks.machine import interruption as it\n"
        "it.PATIENCE = 0.5; it.obey()\n"
        "class Lost:\n    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "lost = Lost(); del lost\n"
        "try: it.check()\nexcept KeyboardInterrupt as error: assert str(error) == 'SIGINT'\n"
        "time.sleep(60)"
    )
    assert typed(code, tmp_path) == (130, "interrupted\n")


# The first call of a function is hit by Ctrl-C, and what it raises then is another exception, or
# none.
HIT = """
import os, runpy, signal, sys
from importlib import import_module
def hit(module, owner, name, error):
    place = import_module(module)
    place = getattr(place, owner) if owner else place
    function = getattr(place, name)
    def called(*arguments, **named):
        setattr(place, name, function)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            if error:
                raise RuntimeError("Error calling __set_name__ on 'auto' instance") from interrupt
        return function(*arguments, **named)
    setattr(place, name, called)
"""


WHERE = [
    # Hydra does without, and takes another mode
    ("hydra._internal.hydra", "Hydra", "compose_config", True),
    ("dks.sweeps.plan", None, "plan", True),
    pytest.param(("dks.sweeps.plan", None, "plan", False), marks=pytest.mark.slow),
    pytest.param(
        ("dks.sweeps.launchers.fork_server", None, "start_server", False), marks=pytest.mark.slow
    ),
    pytest.param(("dks.results.results", None, "show", False), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("where", WHERE, ids=lambda where: f"{where[0]}.{where[2]}")
def test_ctrl_c_that_a_library_swallows_runs_nothing(
    where: tuple[str, str | None, str, bool], tmp_path: Path
) -> None:
    script = str(ROOT / "train.py")
    arguments = [script, "-q", "-m", "seed=1,2", *TINY, "tracking=off"]
    if where[2] == "show":
        assert train(tmp_path, *arguments[1:])[0] == 0
    code = (
        f"{HIT}hit(*{where!r})\nsys.argv = {arguments!r}\nrunpy.run_path({script!r}, "
        f"run_name='__main__')"
    )
    assert typed(code, tmp_path) == (130, "interrupted\n")
    assert not (tmp_path / "outputs").exists()
    if where[2] != "show":
        assert not list(tmp_path.glob("runs/*/metrics.jsonl"))


# --- at random moments


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * COUNT)
def test_ctrl_c_at_random_moments_ends_a_command_soon_in_a_line_with_nothing_left_running(
    workplace: Path, tmp_path: Path
) -> None:
    """Two at a time; the seed of each is its number."""
    with ThreadPoolExecutor(2) as threads:
        wrong = list(
            threads.map(
                lambda number: interrupt(number, workplace, tmp_path / str(number)), range(COUNT)
            )
        )
    assert [each for each in wrong if each] == []
