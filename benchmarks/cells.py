"""The overhead a cell of a sweep of small cells, start-up and tracking included, against a plain
program that trains the same.

    python benchmarks/cells.py [--cells 100]

The cells are a ResNet-8 with both branches, a step and an evaluation on a few images each, swept
over seeds by `dks train -m seed=1,2,...` with everything as it is by default: in an empty folder,
whose MLflow store is to be made, and in one that has a store. Plain programs train the same
networks one after another, as many at a time as the sweep has slots, and write nothing; `import
torch` is in both. The overhead is the difference of both times over the number of cells.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from measure import FOLDER, Bound, Result, in_turn, run

FEW = (
    "backbone=resnet8",
    "data=synthetic",
    "data.image_size=16",
    "data.train_images=64",
    "data.test_images=32",
    "recipe.epochs=1",
)
FRESH, THERE = "in an empty folder", "where there is a store"
OVERHEAD = "seconds a cell"


def available_threads() -> int:
    # torch is imported when it is needed
    from dks.machine.environment import available_threads as threads

    return threads()


def sweep(folder: Path, cells: int) -> None:
    """The sweep, in a folder that it finds as it is.

    Raises:
        AssertionError: some cell has not run.
    """
    from runs import train  # not in the plain programs

    seeds = ",".join(map(str, range(1, cells + 1)))
    done = [
        run.path for run in train(folder, "-m", *FEW, f"seed={seeds}") if run.weights_file.exists()
    ]
    assert len(done) == cells, "all cells must have run"


def plain(cells: int, slots: int) -> None:
    """The plain programs, side by side, the cores divided among them."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, available_threads() // slots))}
    command = [sys.executable, str(FOLDER / "cells.py"), "--plainly"]
    shares = [",".join(map(str, range(first, cells + 1, slots))) for first in range(1, slots + 1)]
    programs = [subprocess.Popen([*command, share], env=environment) for share in shares]
    for each in programs:
        assert each.wait() == 0, "no plain program may fail"


def train_plainly(seeds: list[int]) -> None:
    """What a plain program does: as `plain_loop.py`.

    Nothing is composed, and so few images need no processes of their own.
    """
    import torch
    from plain_loop import PlainLoop

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
    from dks.data.synthetic import load

    config = Config(
        backbone=load_choice("backbone", "resnet8", Backbone),
        recipe=load_choice("recipe", "cifar_resnet", Recipe),
        aux_design=load_choice("aux_design", "ours", AuxDesign),
        aux_positions=AuxPositions(["c2", "c3"]),
        matching_strategy=load_choice("matching_strategy", "bidir", MatchingStrategy),
        data=Data(
            source="synthetic", num_classes=10, image_size=16, train_images=64, test_images=32
        ),
    )
    images = load(config.data)
    for seed in seeds:
        torch.manual_seed(seed)
        loop = PlainLoop(config, *images, torch.device("cpu"), workers=0)
        loop.epoch()
        loop.evaluate()


def measure(options: argparse.Namespace) -> list[Result]:
    cells = options.cells or (10 if options.short else 100)
    slots = min(available_threads(), cells)  # as the local launcher has it

    def in_new_folder(store: Path | None) -> None:
        with tempfile.TemporaryDirectory() as place:
            if store is not None:
                shutil.copy(store, place)
            sweep(Path(place), cells)

    with tempfile.TemporaryDirectory() as place:
        sweep(Path(place), 1)
        store = Path(place) / "mlflow.db"
        ways = {
            "plain programs": partial(plain, cells, slots),
            FRESH: partial(in_new_folder, None),
            THERE: partial(in_new_folder, store),
        }
        seconds = in_turn(ways, options.repeats)
    figures = {}
    for way in (FRESH, THERE):
        extra = [
            (ours - theirs) / cells
            for ours, theirs in zip(seconds[way], seconds["plain programs"], strict=True)
        ]
        figures[way] = {OVERHEAD: statistics.median(extra)}
    wanted = (
        {} if options.short else {way: [Bound(OVERHEAD, at_most=0.15)] for way in (FRESH, THERE)}
    )  # of few, starting is most
    note = (
        f"{slots} at a time; {OVERHEAD} is the median difference to the plain programs of the "
        f"same round"
    )
    return [
        Result(
            f"a sweep of {cells} cells",
            "s",
            seconds,
            "plain programs",
            figures=figures,
            wanted=wanted,
            note=note,
        )
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=int, metavar="N", help="(default: 100, with --short 10)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plainly"]:  # one of the plain programs
        train_plainly([int(seed) for seed in sys.argv[2].split(",")])
    else:
        run(__doc__, measure, add_options, short_repeats=1)
