"""What tracking costs a run: `python benchmarks/tracking.py [--epochs 30] [--repeats 5] [--json]`.

One small network is trained by `python train.py` with epochs of about a second, in turn

- with `tracking=off`: the journal alone, against which the others are measured;
- with `tracking=local`: an SQLite store, sent to by the process of its own;
- with a server that is down from beginning to end: nobody listens at its port;
- plainly: `mlflow.log_metrics` in the training loop after every epoch, as most programs do it.

A run counts from the end of its first epoch to the end of its last, by its journal, so starting and draining are not in it. The
caller's time is what the training process itself spends on an epoch's metrics: on the journal, and in the plain way on MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout that this file is part of

from dks.config.schema import Tracking
from dks.tracking.journal import Journal
from dks.tracking.record import RunFolder
from dks.tracking.store import prepare

ROOT = Path(__file__).resolve().parent.parent
STORE = "sqlite:///mlflow.db"
WAYS = {
    "off": ("tracking=off",),
    "local": ("tracking=local",),
    "server that is down": ("tracking=server", "tracking.uri=http://127.0.0.1:9", "tracking.drain_seconds=5"),
    "plain": ("tracking=off",),
}
# What the plain way adds to the same program; it says how long each of its calls took.
PLAIN = f"""
import runpy, sys, time
import mlflow
from dks.terminal import RunView

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
sys.argv[0] = "train.py"
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def run(way: str, folder: Path, overrides: list[str]) -> tuple[float, list[float]]:
    """Train once; returns the seconds from the first epoch's end to the last one's, and those of each call of the plain way.

    Raises:
        RuntimeError: the run failed.
    """
    place = tempfile.mkdtemp(dir=folder)
    begin = ["-c", PLAIN] if way == "plain" else [str(ROOT / "train.py")]
    done = subprocess.run(
        [sys.executable, *begin, *overrides, *WAYS[way], f"runs_dir={place}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    (path,) = Path(place).iterdir()
    entries = RunFolder(path).journal.read()
    ends = [datetime.fromisoformat(entry.time).timestamp() for entry in (entries[0], entries[-1])]
    return ends[1] - ends[0], [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("call ")]


def journal_seconds(folder: Path) -> float:
    """Of one line with 12 metrics, on disk: the median of 200."""
    journal = Journal(folder / "metrics.jsonl")
    metrics = {f"test/metric_{number}": number / 7 for number in range(12)}
    return statistics.median(timed(partial(journal.append, epoch, epoch, metrics)) for epoch in range(1, 201))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Time what tracking costs a run.")
    parser.add_argument("--epochs", type=int, default=30, metavar="N")
    parser.add_argument("--images", type=int, default=3072, metavar="N", help="of an epoch, which should take a second")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    overrides = ["data=synthetic", f"data.train_images={options.images}", "data.test_images=256", "threads=1"]
    overrides += [f"recipe.epochs={options.epochs}", "method=baseline", "data.image_size=16"]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    calls: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.chdir(folder)
        prepare(Tracking(uri=STORE))
        append = journal_seconds(folder)
        for _ in range(options.repeats):
            for way, found in seconds.items():
                taken, each = run(way, folder, overrides)
                found.append(taken)
                calls += each
    report(seconds, calls, append, options)


def report(seconds: dict[str, list[float]], calls: list[float], append: float, options: argparse.Namespace) -> None:
    off = statistics.median(seconds["off"])
    ways = {
        way: {
            "seconds_per_epoch": statistics.median(found) / (options.epochs - 1),
            "lowest": min(found) / (options.epochs - 1),
            "highest": max(found) / (options.epochs - 1),
            "ratio": statistics.median(found) / off,
            "paired_ratio": statistics.median(each / alone for each, alone in zip(found, seconds["off"], strict=True)),
        }
        for way, found in seconds.items()
    }
    caller = {"journal": append, "plain": append + statistics.median(calls)}
    if options.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        about = {"machine": machine, "epochs": options.epochs, "repeats": options.repeats}
        print(json.dumps({**about, "ways": ways, "caller_seconds_per_epoch": caller}, indent=1))
        return
    print(f"{options.epochs} epochs, {options.repeats} runs each in turn; medians (lowest to highest)")
    for way, each in ways.items():
        spread = f"({each['lowest']:.3f} to {each['highest']:.3f})"
        ratios = f"ratio {each['ratio']:.3f}, paired {each['paired_ratio']:.3f}"
        print(f"  {way:<20} {each['seconds_per_epoch']:.3f} s an epoch {spread}  {ratios}")
    print(
        f"the caller's time an epoch: {1000 * caller['journal']:.2f} ms (the journal), plainly {1000 * caller['plain']:.2f} ms"
    )


if __name__ == "__main__":
    main()
