"""Reading thousands of runs: our two sources, and `dks table`, against `mlflow.search_runs`.

    python benchmarks/reading.py [--runs 10000] [--epochs 200]

Made-up runs are written as a sweep leaves them, once as folders and once in an MLflow store (MLflow
makes the SQLite file, SQL fills it), and then read. Every reading is a process of its own; the
first one of a source finds nothing kept, and the later one finds what the first has kept. Seconds
of a call leave imports out; those of a command are from its start to its end. 10,000 runs take 9 GB
and some minutes to write; they lie in a temporary folder and are removed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from measure import Bound, Result, run, say, seconds_of
from runs import program

from dks.config.identity import flatten
from dks.config.schema import Config
from dks.runs.best import best_of, classifier_ending
from dks.runs.journal import Entry
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.sweeps import manifest
from dks.sweeps.manifest import Manifest, ManifestCell

DESIGNS = ("ours", "shallow", "narrow", "ap_2fc", "ap_conv_2fc")
STRATEGIES = ("none", "topdown", "bottomup", "bidir")
SEEDS = 5
METRICS = (
    *(
        "train/loss",
        "train/loss_ce",
        "train/loss_aux",
        "train/loss_synergy",
        "train/top1_error",
        "train/lr",
    ),
    *(
        "test/loss",
        "test/top1_error",
        "test/top5_error",
        "test/loss_c2",
        "test/top1_error_c2",
        "test/top5_error_c2",
    ),
)
BEGUN = 1_700_000_000_000  # milliseconds since 1970
EPOCH = 30_000  # milliseconds an epoch takes
STORE = "sqlite:///mlflow.db"
FEW = 12  # cells of the smaller sweep, and whose curves are read


@dataclass(frozen=True)
class Run:
    """One made-up run: a record and a journal."""

    record: Record
    config: Config
    entries: list[Entry]

    @property
    def run_id(self) -> str:
        """Its name in MLflow."""
        return hashlib.md5(self.record.cell_id.encode()).hexdigest()


def grid(count: int) -> Iterator[tuple[str, str, str, int]]:
    """Design, strategy, learning rate and seed of that many runs."""
    rates = [
        f"{step / 1000:g}"
        for step in range(1, 2 + count // (len(DESIGNS) * len(STRATEGIES) * SEEDS))
    ]
    return itertools.islice(itertools.product(DESIGNS, STRATEGIES, rates, range(SEEDS)), count)


def identity(design: str, strategy: str, rate: str) -> str:
    """The made-up config_id."""
    return hashlib.sha256(repr((design, strategy, rate)).encode()).hexdigest()[:12]


def made_up(base: Config, number: int, epochs: int, point: tuple[str, str, str, int]) -> Run:
    """A run of this many epochs; its errors fall, and wobble."""
    *_, rate, seed = point
    chance = random.Random(number)
    config_id = identity(*point[:3])
    cell_id = hashlib.sha256(repr(point).encode()).hexdigest()[:12]
    begun = BEGUN + number * 60_000
    level = [chance.uniform(1, 100) for _ in METRICS]
    entries = [
        Entry(
            epoch,
            epoch * 782,
            _iso(begun + epoch * EPOCH),
            {
                name: high / math.sqrt(epoch) + chance.random()
                for name, high in zip(METRICS, level, strict=True)
            },
        )
        for epoch in range(1, epochs + 1)
    ]
    seconds = epochs * EPOCH / 1000
    versions = {"python": "3.11.7", "torch": "2.11.0", "torchvision": "0.26.0"}
    attempt = Attempt(
        _iso(begun),
        "node1",
        1,
        "cuda:0",
        8,
        git_commit="0" * 40,
        ended=_iso(begun + (epochs + 1) * EPOCH),
        versions=versions,
    )
    attempt.status, attempt.seconds = Status.done.value, seconds
    record = Record(
        cell_id,
        config_id,
        seed,
        "dks",
        {},
        " ".join(map(str, point)),
        [],
        "all",
        status=Status.done,
    )
    record.attempts = [attempt]
    record.final = {"epoch": epochs, **entries[-1].metrics}
    record.best = best_of(entries)
    record.cost = {
        "seconds": seconds,
        "training_flops": 1e15,
        "parameters": 1_227_950,
        "images_per_second": 1500.0,
    }
    recipe = dataclasses.replace(base.recipe, lr=float(rate), epochs=epochs)
    return Run(record, dataclasses.replace(base, seed=seed, recipe=recipe), entries)


def write(folder: Path, count: int, epochs: int) -> None:
    """The folders of the runs, the store that tells the same, and two sweeps.

    `all`, and `few` of their first cells.
    """
    from mlflow import MlflowClient

    from dks.config.compose import compose_here
    from dks.config.frozen import to_yaml
    from dks.training.resolver import resolve

    base = resolve(compose_here(["data=synthetic", "backbone=resnet20", "recipe.lr=0.1", "seed=0"]))
    text = to_yaml(base)
    experiment = int(
        MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").create_experiment("dks")
    )
    store = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    for setting in ("synchronous = OFF", "journal_mode = OFF", "cache_size = -2000000"):
        store.execute(f"PRAGMA {setting}")
    store.execute("BEGIN")
    cells = []
    for number, point in enumerate(grid(count)):
        run = made_up(base, number, epochs, point)
        own = text.replace("\n  lr: 0.1\n", f"\n  lr: {point[2]}\n").replace(
            "\nseed: 0\n", f"\nseed: {point[3]}\n"
        )
        _write_folder(folder / "runs", run, own, experiment)
        _insert(store, run, experiment)
        labels = dict(zip(("aux", "strategy", "recipe.lr", "seed"), map(str, point), strict=True))
        record = run.record
        supervised = (
            None if point[1] == "none" else identity(point[0], "none", point[2])
        )  # DS; three of four have tests against it
        cell = ManifestCell(
            labels, record.cell_id, record.config_id, "", record.seed, record.method, [], supervised
        )
        cells.append(cell)
    store.execute("COMMIT")
    store.close()
    for name, members in (("all", cells), ("few", cells[:FEW])):
        whole = Manifest(
            name, name, ["aux", "strategy", "recipe.lr", "seed"], str(folder / "runs"), members
        )
        manifest.write(whole, str(folder / "results"))


def _write_folder(runs: Path, run: Run, text: str, experiment: int) -> None:
    folder = RunFolder(runs / run.record.cell_id)
    folder.path.mkdir(parents=True)
    folder.config_file.write_text(text)
    folder.record_file.write_text(json.dumps(dataclasses.asdict(run.record), indent=1))
    folder.journal.path.write_text("".join(entry.to_json() + "\n" for entry in run.entries))
    noted = {
        "uri": STORE,
        "run_id": run.run_id,
        "experiment_id": str(experiment),
        "epoch": len(run.entries),
    }
    folder.mlflow_file.write_text(json.dumps(noted))


def _insert(store: sqlite3.Connection, run: Run, experiment: int) -> None:
    record, last = run.record, run.entries[-1]
    ended = _milliseconds(str(record.attempts[0].ended))
    begun = _milliseconds(record.attempts[0].started)
    columns = (
        "run_uuid, name, user_id, source_type, status, start_time, end_time, "
        "lifecycle_stage, experiment_id, artifact_uri"
    )
    row = (
        run.run_id,
        record.label,
        "me",
        "UNKNOWN",
        "FINISHED",
        begun,
        ended,
        "active",
        experiment,
        f"mlruns/{run.run_id}",
    )
    store.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    tags = {
        "dks.cell_id": record.cell_id,
        "dks.config_id": record.config_id,
        "dks.method": record.method,
        "dks.role": "cell",
        "dks.seed": str(record.seed),
        "dks.attempts": "1",
        "dks.device": record.attempts[0].device,
        "dks.git_commit": str(record.attempts[0].git_commit),
        "dks.sweep": "all",
        "mlflow.runName": record.label,
    }
    params = {key: str(value) for key, value in flatten(dataclasses.asdict(run.config)).items()}
    for table, values in (("tags", tags), ("params", params)):
        rows = [(key, value, run.run_id) for key, value in values.items()]
        store.executemany(f"INSERT INTO {table} (key, value, run_uuid) VALUES (?, ?, ?)", rows)
    steps = {name: int(record.best[f"epoch{classifier_ending(name)}"]) for name in record.best}
    ends = [
        (f"best/{name}", value, ended, steps[name], 0, run.run_id)
        for name, value in record.best.items()
    ]
    ends += [
        (f"cost/{name}", value, ended, 0, 0, run.run_id) for name, value in record.cost.items()
    ]
    points = [
        (name, value, _milliseconds(entry.time), entry.epoch, 0, run.run_id)
        for entry in run.entries
        for name, value in entry.metrics.items()
    ]
    latest = points[-len(last.metrics) :]
    for table, rows in (("metrics", points + ends), ("latest_metrics", latest + ends)):
        columns = "key, value, timestamp, step, is_nan, run_uuid"
        store.executemany(f"INSERT INTO {table} ({columns}) VALUES (?, ?, ?, ?, ?, ?)", rows)


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc).isoformat(
        timespec="milliseconds"
    )


def _milliseconds(when: str) -> int:
    return round(1000 * datetime.fromisoformat(when).timestamp())


# --- what is measured, each by a process of its own in the folder that holds runs/, mlflow.db and
# results/


def search_runs() -> int:
    """MLflow's own way to a data frame."""
    import mlflow

    mlflow.set_tracking_uri(STORE)
    return timed(lambda: len(mlflow.search_runs(experiment_names=["dks"], max_results=100_000)))


def store() -> int:
    import sqlalchemy  # noqa: F401

    from dks.tracking.mlflow_source import MlflowSource

    return timed(lambda: len(MlflowSource(STORE).runs()))


def folders() -> int:
    from dks.tracking.records import RecordSource

    return timed(lambda: len(RecordSource("runs").runs()))


def store_curves() -> int:
    import sqlalchemy  # noqa: F401

    from dks.tracking.mlflow_source import MlflowSource

    return timed(
        lambda: len(MlflowSource(STORE).histories(_few(), ["train/top1_error", "test/top1_error"]))
    )


def folder_curves() -> int:
    from dks.tracking.records import RecordSource

    return timed(
        lambda: len(RecordSource("runs").histories(_few(), ["train/top1_error", "test/top1_error"]))
    )


CALLS: dict[str, Callable[[], int]] = {
    each.__name__: each for each in (search_runs, store, folders, store_curves, folder_curves)
}


def timed(read: Callable[[], int]) -> int:
    """Print the seconds; returns how many rows were read."""
    started = time.perf_counter()
    count = read()
    print(time.perf_counter() - started)
    return count


def _few() -> list[str]:
    return manifest.read("results", "few").cell_ids


def call(name: str, folder: Path) -> float:
    """Seconds of one of the calls."""
    return float(
        program([__file__, "--call", name], folder, XDG_CACHE_HOME=str(folder / "cache")).split()[
            -1
        ]
    )


def command(folder: Path, *arguments: str) -> float:
    """Seconds of `dks table`, imports and all."""
    typed = ["-m", "dks", "table", *arguments]
    return seconds_of(lambda: program(typed, folder, XDG_CACHE_HOME=str(folder / "cache")))


def forget(folder: Path) -> None:
    """What our sources have kept."""
    for path in (folder / "cache").rglob("*.sqlite"):
        path.unlink()


def read_all(folder: Path) -> dict[str, float]:
    """Way -> seconds, of one round."""
    forget(folder)
    seconds = {"mlflow.search_runs": call("search_runs", folder)}
    for name, function in (("the store", "store"), ("the folders", "folders")):
        seconds[f"{name}, first"] = call(function, folder)
        seconds[f"{name}, later"] = call(function, folder)
    return seconds


def read_curves(folder: Path) -> dict[str, float]:
    return {"the store": call("store_curves", folder), "the folders": call("folder_curves", folder)}


def make_table(folder: Path, *arguments: str) -> dict[str, float]:
    """Seconds of `dks table ARGUMENTS`, for both sources."""
    seconds = {}
    for name, store in (("the store", ["--store", STORE]), ("the folders", [])):
        forget(folder)
        for when in ("first", "later"):
            seconds[f"{name}, {when}"] = command(folder, *arguments, *store)
    return seconds


def measure(options: argparse.Namespace) -> list[Result]:
    runs = options.runs or (200 if options.short else 10_000)
    epochs = options.epochs or (20 if options.short else 200)
    parts: dict[str, Callable[[Path], dict[str, float]]] = {
        "all runs": read_all,
        f"curves of {FEW} runs": read_curves,
    }
    for arguments in (
        () if options.no_commands else (("all",), ("few",), ("all", "--format", "csv"))
    ):
        parts[f"dks table {' '.join(arguments)}"] = lambda folder, typed=arguments: make_table(
            folder, *typed
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        say("runs are written")
        write(folder, runs, epochs)
        size = (folder / "mlflow.db").stat().st_size
        rounds = []
        for number in range(options.repeats):
            say(f"round {number + 1}")
            rounds.append({name: part(folder) for name, part in parts.items()})
    note = (
        f"{runs:,} runs x {epochs} epochs x {len(METRICS)} metrics, a store of {size / 1e9:.2f} GB"
    )
    found = []
    for name in parts:
        values = {way: [each[name][way] for each in rounds] for way in rounds[0][name]}
        against = "mlflow.search_runs" if name == "all runs" else None
        found.append(Result(name, "s", values, against, wanted=wanted(name, values), note=note))
    return found


def wanted(name: str, values: dict[str, list[float]]) -> dict[str, list[Bound]]:
    """A table in less than 2 seconds from what is kept."""
    if name != "dks table all":
        return {}
    return {way: [Bound("median", at_most=2.0)] for way in values if way.endswith("later")}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, metavar="N", help="(default: 10000, with --short 200)")
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="of a run (default: 200, with --short 20)"
    )
    parser.add_argument("--no-commands", action="store_true", help="leave out `dks table`")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        assert CALLS[sys.argv[2]]() > 0, "nothing was read"
    else:
        run(__doc__, measure, add_options, short_repeats=1)
