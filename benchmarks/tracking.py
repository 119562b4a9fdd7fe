"""What tracking costs a run.

Nothing, an SQLite store, a server that is down, and MLflow in the training loop.

    python benchmarks/tracking.py [--epochs 30]

One small network is trained by `dks train` with epochs of about a second, in turn

- with `tracking=off`: the journal alone, against which the others are measured;
- with `tracking=local`: an SQLite store, sent to by the process of its own;
- with a server that is down from beginning to end: nobody listens at its port;
- with MLflow in the loop: `mlflow.log_metrics` after every epoch, as most programs do it.

A run counts from the end of its first epoch to the end of its last, by its journal, so starting and
draining are not in it. The time of the training process is what it spends itself on an epoch's
metrics: on the journal, and on MLflow in the loop.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

from measure import Bound, Result, in_turn, run, seconds_of
from runs import epoch_ends, program

from dks.config.schema import Tracking
from dks.runs.journal import Journal
from dks.runs.record import RunFolder
from dks.tracking.store import prepare

STORE = "sqlite:///mlflow.db"
IN_LOOP = "MLflow in the loop"
WAYS = {
    "tracking=off": ("tracking=off",),
    "tracking=local": ("tracking=local",),
    "a server that is down": (
        "tracking=server",
        "tracking.uri=http://127.0.0.1:9",
        "tracking.drain_seconds=5",
    ),
    IN_LOOP: ("tracking=off",),
}
# What MLflow in the loop adds to the same program; it says how long each of its calls took.
PROGRAM = f"""
import sys, time
import mlflow
from dks.cli.main import main
from dks.runs.terminal import RunView

mlflow.set_tracking_uri({STORE!r})
mlflow.set_experiment("plain")
mlflow.start_run()
recorded = RunView.recorded

def logged(self, entry):
    recorded(self, entry)
    begun = time.perf_counter()
    mlflow.log_metrics(entry.metrics, step=entry.epoch)
    print("call", time.perf_counter() - begun, flush=True)

RunView.recorded = logged
main(["train", *sys.argv[1:]])
"""


def train(way: str, folder: Path, overrides: list[str], calls: list[float]) -> float:
    """Seconds an epoch of one run, from the first one's end to the last one's.

    `calls` gets the median call of MLflow's.
    """
    place = tempfile.mkdtemp(dir=folder)
    begin = ["-c", PROGRAM] if way == IN_LOOP else ["-m", "dks", "train"]
    printed = program(
        [*begin, *overrides, *WAYS[way], f"runs_dir={place}"], folder, MLFLOW_LOGGING_LEVEL="ERROR"
    )
    (path,) = Path(place).iterdir()
    ends = epoch_ends(RunFolder(path))
    if way == IN_LOOP:
        calls.append(
            statistics.median(
                float(line.split()[1]) for line in printed.splitlines() if line.startswith("call ")
            )
        )
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def journal_seconds(folder: Path) -> float:
    """Of one line with 12 metrics, on disk: the median of 200."""
    journal = Journal(folder / "metrics.jsonl")
    metrics = {f"test/metric_{number}": number / 7 for number in range(12)}
    return statistics.median(
        seconds_of(partial(journal.append, epoch, epoch, metrics)) for epoch in range(1, 201)
    )


def measure(options: argparse.Namespace) -> list[Result]:
    epochs = options.epochs or (3 if options.short else 30)
    images = 256 if options.short else options.images
    overrides = [
        "data=synthetic",
        f"data.train_images={images}",
        "data.test_images=256",
        "threads=1",
    ]
    overrides += [f"recipe.epochs={epochs}", "method=baseline", "data.image_size=16"]
    calls: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.chdir(folder)
        prepare(Tracking(uri=STORE))
        ways = {way: partial(train, way, folder, overrides, calls) for way in WAYS}
        seconds = in_turn(ways, options.repeats, value=lambda work: work())
        appends = [
            journal_seconds(Path(tempfile.mkdtemp(dir=folder))) for _ in range(options.repeats)
        ]
        os.chdir(folder.parent)
    own = {
        IN_LOOP: [1000 * (append + call) for append, call in zip(appends, calls, strict=True)],
        "the journal": [1000 * append for append in appends],
    }
    # short epochs tell nothing about 1 %
    kept = () if options.short else ("tracking=local", "a server that is down")
    bounds = {way: [Bound("ratio", at_least=0.99)] for way in kept}
    return [
        Result(
            f"{epochs} epochs of {images:,} images",
            "s an epoch",
            seconds,
            "tracking=off",
            wanted=bounds,
        ),
        Result("the training process itself", "ms an epoch", own, IN_LOOP),
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, metavar="N", help="(default: 30, with --short 3)")
    parser.add_argument(
        "--images",
        type=int,
        default=3072,
        metavar="N",
        help="of an epoch, which should take a second",
    )


if __name__ == "__main__":
    run(__doc__, measure, add_options, short_repeats=1)
