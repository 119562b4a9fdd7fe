"""Today's code trains what commit c624696 trained, to the last bit, and goes on with what it began.

Both train in the same test, by the same command lines: the bits depend on the machine, so no file
can hold them.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OLD_COMMIT = "c624696"
SMALL = (
    "data=synthetic data.image_size=8 data.train_images=96 data.test_images=32 data.pad=1 "
    "recipe.batch_size=32 recipe.epochs=2 seed=1 threads=1 device=cpu tracking=off"
)
# A plain network, which is the teacher of the next, and one with branches that teach each other.
BRANCHES = f"train -m {SMALL} method=baseline,dks hydra/launcher=basic"
DISTILLED = (
    f"train {SMALL} method=kd_c1_ds backbone=densenet40_12 backbone.depth=10 "
    "teacher=checkpoint kd_teacher.cell="
)
EPOCHS = 20
NOISE = (
    f"train {SMALL} recipe.epochs={EPOCHS} data.holdout=10 noise=uniform label_noise.ratio=0.5 "
    "backbone=wrn28_4 backbone.depth=10 backbone.width=1 backbone.dropout=0.3 positions=c2 "
    "backbone.branches.c2.stages=[{blocks:1,width:64}]"
)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the old commit."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", OLD_COMMIT], capture_output=True)
    if packed.returncode != 0:
        reason = f"this copy has no commit {OLD_COMMIT}: {packed.stderr.decode().strip()}"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
        files.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def trained(old: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the runs that the old and today's code trained."""
    folders = []
    for tree in (old, ROOT):
        folder = tmp_path_factory.mktemp("trained")
        run(tree, folder, BRANCHES)
        (teacher,) = (
            path.parent.name
            for path in folder.glob("runs/*/record.json")
            if read(path)["method"] == "baseline"
        )
        run(tree, folder, f"{DISTILLED}{teacher}")
        run(tree, folder, NOISE)
        folders.append(folder / "runs")
    return folders[0], folders[1]


def start(tree: Path, folder: Path, line: str) -> subprocess.Popen[str]:
    """`dks LINE` in a folder, by the code of a tree and by no other.

    `-S` leaves out what is installed as editable.
    """
    checkout = (ROOT, ROOT / "tests")
    others = [path for path in sys.path if path and Path(path).resolve() not in checkout]
    paths = [str(tree), *others]
    code = f"import runpy, sys; sys.path[:] = {paths}; runpy.run_module('dks', run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-S", "-c", code, *line.split()],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def run(tree: Path, folder: Path, line: str) -> None:
    process = start(tree, folder, line)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def journal(folder: Path) -> list[tuple[int, int, dict[str, float]]]:
    """What a run wrote down, without what a clock or the system said."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (
            entry["epoch"],
            entry["step"],
            {
                name: value
                for name, value in entry["metrics"].items()
                if name != "train/images_per_second" and not name.startswith(("time/", "system/"))
            },
        )
        for entry in entries
    ]


def assert_same_bits(one: Path, other: Path) -> None:
    """Two runs have the same weights and the same journal."""
    weights, others = (
        load_file(one / "weights.safetensors"),
        load_file(other / "weights.safetensors"),
    )
    assert list(weights) == list(others)
    assert [name for name in weights if weights[name].tobytes() != others[name].tobytes()] == []
    assert journal(one) == journal(other)


def test_the_same_command_trains_the_same_bits(trained: tuple[Path, Path]) -> None:
    before, today = ({folder.name: folder for folder in runs.iterdir()} for runs in trained)
    assert before.keys() == today.keys()
    assert len(today) == 4
    for name, folder in before.items():
        assert_same_bits(folder, today[name])


def test_a_run_that_the_old_code_began_goes_on_to_the_same_bits(
    old: Path, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    process = start(old, tmp_path, NOISE)
    while process.poll() is None and not any(
        path.stat().st_size for path in tmp_path.glob("runs/*/metrics.jsonl")
    ):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    (begun,) = tmp_path.glob("runs/*")
    assert read(begun / "record.json")["status"] == "killed"
    assert 1 <= len(journal(begun)) < EPOCHS
    run(ROOT, tmp_path, NOISE)
    record = read(begun / "record.json")
    assert (record["status"], len(record["attempts"])) == ("done", 2)
    assert_same_bits(begun, trained[0] / begun.name)
