"""From the start of a program to its first training step, and to the help that it prints.

    python benchmarks/startup.py [--device cpu]

`dks train`, which is `python train.py`, with everything as it is by default but one epoch: in an
empty folder, whose MLflow store is to be made, and in one that has a store. The plain program
trains the same network on the same digits, with MLflow as most programs use it: imported at the
top, and a run begun before the first step. Counted is the time from the start of the process until
the first step has been taken. All files have been read before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measure import FOLDER, Bound, Result, in_turn, run

FRESH, THERE = "in an empty folder", "where there is a store"
# Prints when the first step has been taken, seconds since 1970; all else is as `dks train` does it.
OURS = """
import sys, time
from dks.cli.main import main
from dks.runs.terminal import RunView

stepped = RunView.stepped

def seen(self, images):
    RunView.stepped = stepped
    print("first step", time.time(), flush=True)
    stepped(self, images)

RunView.stepped = seen
main(["train", *sys.argv[1:]])
"""
HELP = {
    "dks --help": ["--help"],
    "dks sweep run --help": ["sweep", "run", "--help"],
    "completion of python train.py backbone=": ["train", "-sc", "query=bash"],
}


def train_plainly(device: str) -> None:
    """The plain program, up to its first step."""
    import mlflow
    import numpy as np
    import torch
    from plain_loop import PlainLoop
    from sklearn.datasets import load_digits

    from dks.config.files import load_choice
    from dks.config.schema import (
        AuxDesign,
        AuxPositions,
        Backbone,
        Config,
        Data,
        MatchingStrategy,
        Recipe,
    )
    from dks.data.images import ImageSet

    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("plain")
    mlflow.start_run()
    digits = load_digits()
    pixels = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8))[
        :, None
    ].expand(-1, 3, -1, -1)
    images = ImageSet(pixels.contiguous(), torch.from_numpy(digits.target.astype(np.int64)))
    config = Config(
        backbone=load_choice("backbone", "resnet8", Backbone),
        recipe=load_choice("recipe", "digits", Recipe),
        aux_design=load_choice("aux_design", "ours", AuxDesign),
        aux_positions=AuxPositions(["c2", "c3"]),
        matching_strategy=load_choice("matching_strategy", "bidir", MatchingStrategy),
        data=Data(source="digits", num_classes=10, pad=1),
    )
    PlainLoop(config, images, images, torch.device(device), workers=0).steps(1)
    print("first step", time.time(), flush=True)
    mlflow.end_run()


def until_first_step(command: list[str], store: Path | None) -> float:
    """Seconds from the start of a program in a new folder until it says that it has taken a step.

    Args:
        store: is there when it begins; None: the folder is empty.
    """
    from runs import program  # not in the plain program

    with tempfile.TemporaryDirectory() as place:
        if store is not None:
            shutil.copy(store, place)
        begun = time.time()
        printed = program(command, Path(place), MLFLOW_LOGGING_LEVEL="ERROR")
    (line,) = (line for line in printed.splitlines() if line.startswith("first step "))
    return float(line.split()[-1]) - begun


def until_over(command: list[str]) -> float:
    """Seconds that a program takes."""
    from runs import program

    begun = time.perf_counter()
    program(command, Path.cwd(), COMP_LINE="python train.py backbone=")
    return time.perf_counter() - begun


def measure(options: argparse.Namespace) -> list[Result]:
    def call(work: Callable[[], float]) -> float:
        return work()

    talking = {
        "python -c pass": ["-c", "pass"],
        **{name: ["-m", "dks", *words] for name, words in HELP.items()},
    }
    commands = {name: partial(until_over, command) for name, command in talking.items()}
    for command in commands.values():
        command()  # reads the files
    said = in_turn(commands, options.repeats, call)
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "mlflow.db"
        _make(store)
        ours = ["-c", OURS, "recipe.epochs=1", f"device={options.device}"]
        plain = [str(FOLDER / "startup.py"), "--plainly", options.device]
        steps = in_turn(
            {
                f"plain, {FRESH}": partial(until_first_step, plain, None),
                f"plain, {THERE}": partial(until_first_step, plain, store),
                FRESH: partial(until_first_step, ours, None),
                THERE: partial(until_first_step, ours, store),
            },
            options.repeats,
            call,
        )
    soon = [Bound("median", at_most=5.0)]
    quick = {name: [Bound("median", at_most=0.3)] for name in HELP}
    return [
        Result("what only talks", "s", said, wanted=quick),
        Result(
            "to the first step", "s", steps, f"plain, {THERE}", wanted={FRESH: soon, THERE: soon}
        ),
    ]


def _make(store: Path) -> None:
    from dks.config.schema import Tracking
    from dks.tracking.store import prepare

    here = Path.cwd()
    os.chdir(store.parent)
    prepare(Tracking(uri=f"sqlite:///{store.name}"))
    os.chdir(here)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plainly"]:
        train_plainly(sys.argv[2])
    else:
        run(__doc__, measure, short_repeats=1)
