"""Whole programs that benchmarks start: `dks train`, and the plain loop's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from measure import FOLDER

from dks.config.files import python_path
from dks.runs.record import RunFolder


def program(command: Sequence[str], folder: Path, **variables: str) -> str:
    """What a program of this Python prints on standard output.

    Args:
        folder: it is started in.
        variables: of its environment, beside ours.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", "")),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed: {done.stderr[-2000:]}")
    return done.stdout


def train(folder: Path, *overrides: str) -> list[RunFolder]:
    """`dks train OVERRIDES` in this folder; the folders of its runs."""
    program(["-m", "dks", "train", *overrides, "runs_dir=runs"], folder)
    return [
        RunFolder(path)
        for path in sorted((folder / "runs").iterdir())
        if (path / "record.json").exists()
    ]


def epoch_ends(folder: RunFolder) -> list[float]:
    """When each epoch of a run was over, seconds since 1970."""
    return [datetime.fromisoformat(entry.time).timestamp() for entry in folder.journal.read()]


def plain_epochs(network: str, method: str, device: str, sizes: Mapping[str, int]) -> list[float]:
    """Seconds of each epoch of the plain loop, evaluation included.

    Args:
        sizes: "images" and "test-images" of the sets, and "epochs".
    """
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    printed = program(
        [str(FOLDER / "plain_loop.py"), network, "--method", method, "--device", device, *options],
        Path.cwd(),
    )
    return list(json.loads(printed)["seconds"])
