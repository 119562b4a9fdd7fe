"""What the tests share.

Composing without Hydra's command line, and running commands as a user does.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from dks.config.compose import Composed, Composer, from_hydra, register_schema
from dks.config.files import declarations
from dks.config.schema import Config
from dks.runs.record import RunFolder
from dks.sweeps.launch import queue
from dks.sweeps.plan import plan
from dks.sweeps.spec import Grid, Point
from dks.training.resolver import resolve
from tests.support.slurm_cluster import cluster  # noqa: F401  (a fixture)
from tests.support.small_server import foreign, no_account, refusing, trained  # noqa: F401  (fixtures)
from tests.support.tracking_services import basic_auth, postgresql, postgresql_server  # noqa: F401  (fixtures)

_full = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="long series of slow tests whole, and not only a sample of each",
    )


def pytest_configure(config: pytest.Config) -> None:
    global _full
    _full = bool(config.getoption("--full"))


T = TypeVar("T")


def sampled(series: T, sample: T) -> T:
    """The sample of a long series, or with `--full` all of it."""
    return series if _full else sample


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a series marked `rest_slow(N)`, N tests, spread over it, are fast; the rest is slow."""
    series = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("rest_slow") and not item.get_closest_marker("slow"):
            series[item.nodeid.partition("[")[0]].append(item)
    for same in series.values():
        fast = same[0].get_closest_marker("rest_slow").args[0]  # type: ignore[union-attr]
        kept = {(2 * number + 1) * len(same) // (2 * fast) for number in range(fast)}
        for number, item in enumerate(same):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


# Tests compute in one thread: two that share a core with something else wait for each other.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
# The smallest run that goes through everything.
TINY = (
    "data=synthetic",
    "data.image_size=8",
    "data.train_images=64",
    "data.test_images=32",
    "data.pad=1",
    "recipe.epochs=2",
    "threads=1",
)


def through_hydra(overrides: Sequence[str]) -> Composed:
    """What Hydra makes of these overrides."""
    register_schema()
    with initialize_config_dir(str(declarations("conf")), version_base="1.3"):
        return from_hydra(compose("config", list(overrides), return_hydra_config=True))


_composer = Composer(through_hydra)


def composed(*overrides: str) -> Composed:
    """What Hydra makes of these overrides.

    By the composer of sweeps, as long as `conf/` is that of the project alone.
    """
    if declarations("conf") == ROOT / "conf" and "DKS_EXTENSIONS" not in os.environ:
        return copy.deepcopy(_composer(overrides))
    return through_hydra(overrides)


def config(*overrides: str) -> Config:
    """A configuration, resolved and checked."""
    return resolve(composed(*overrides))


def start(arguments: Sequence[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS` in a folder, as a user would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """`python train.py ARGUMENTS`: exit status, standard output, standard error."""
    process = start([str(ROOT / "train.py"), *arguments], folder, **variables)
    out, err = process.communicate(timeout=1400)
    return process.returncode, out, err


def queued(folder: Path, *overrides: str) -> RunFolder:
    """A cell, planned and queued in `folder/runs`."""
    everything = (*TINY, "tracking=off", f"runs_dir={folder / 'runs'}", *overrides)
    grid = Grid((), (Point(everything, {}),), "")
    cell = plan(grid, lambda given: composed(*given)).cells[0]
    queue(cell)
    return RunFolder(folder / "runs" / cell.cell_id)


def finished_run(folder: Path, *overrides: str) -> RunFolder:
    """A cell that has run to its end in `folder/runs`."""
    from dks.training.run import Outcome, run_cell

    ready = queued(folder, *overrides)
    assert run_cell(ready.path) is Outcome.done, ready.read_record()
    return ready


def raise_at(step: int, error: BaseException) -> Callable[..., None]:
    """A stand-in for an observer's `stepped` that fails before that step is counted."""
    taken = 0

    def stepped(self: Any, images: int) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            raise error

    return stepped


def reproducible(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are the same in every run of a cell.

    Without what a clock or the system said.
    """
    return {
        name: value
        for name, value in metrics.items()
        if name != "train/images_per_second" and not name.startswith(("time/", "system/"))
    }


def outcome_of(
    folder: RunFolder,
) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, dict[str, float]]]]:
    """All that must be the same in every run of a cell.

    The weights, and the journal without what a clock said.
    """
    entries = [
        (entry.epoch, entry.step, reproducible(entry.metrics)) for entry in folder.journal.read()
    ]
    return load_file(folder.weights_file), entries


def assert_same_result(one: RunFolder, other: RunFolder) -> None:
    """Two finished runs of a cell came out the same, to the last bit."""
    (weights, entries), (others, other_entries) = outcome_of(one), outcome_of(other)
    assert entries == other_entries
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert one.confusion_file.read_text() == other.confusion_file.read_text()


@pytest.fixture(autouse=True)
def _addresses_are_trusted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that an earlier test ran in this process may have said `distrust`."""
    monkeypatch.setattr("dks.tracking.addresses._replays", False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What forecasts keep between two plans stays out of the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def hangs_up() -> Iterator[None]:
    """SIGHUP is obeyed here, and by what is started, though the tests may be run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose `conf/` and `sweeps/` a test may write to."""
    from dks.config import folders

    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / "sweeps").mkdir()
    monkeypatch.setattr(folders, "PACKAGE", folder / "dks")
    return folder


@pytest.fixture
def run_here(in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """`train.py` inside this process and an empty folder, without MLflow.

    (exit status, output, errors).
    """
    from dks.cli import main as cli

    def run(*arguments: str, tracking: str = "off") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, f"tracking={tracking}"])
        with pytest.raises(SystemExit) as left:
            cli.train()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run
