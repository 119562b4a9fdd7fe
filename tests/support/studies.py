"""A sweep in memory, for tests of tables, figures and reports."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dks.results.entries import entries
from dks.results.model import Table, build
from dks.results.shape import Epoch, Over, Shape
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.sweeps.manifest import Manifest, ManifestCell
from dks.sweeps.paper import PaperTable, paper_table

COMMIT = "8ea1394f872ed4a26fe8321c2a1913862959b01a"
HOSTILE = """</script><script>alert("1")</script><!--<img src=x onerror=alert(2)> &amp; 'x' "y" \u2028 {{ 7 * 7 }}"""  # noqa: E501


@dataclass
class FakeSource:
    """A source that holds its runs in memory."""

    runs_by_id: dict[str, dict[str, Any]]
    curves_by_id: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    name: str = "runs/"

    def runs(self, cell_ids: Collection[str] | None = None) -> pd.DataFrame:
        wanted = (
            self.runs_by_id
            if cell_ids is None
            else [each for each in cell_ids if each in self.runs_by_id]
        )
        columns = [
            *_RUN,
            *dict.fromkeys(
                key for run in self.runs_by_id.values() for key in run if key not in _RUN
            ),
        ]
        return pd.DataFrame([self.runs_by_id[each] for each in wanted], columns=columns)

    def histories(self, cell_ids: Collection[str], metrics: Collection[str]) -> pd.DataFrame:
        rows = [
            (cell_id, epoch, metric, value)
            for cell_id in cell_ids
            for metric, values in sorted(self.curves_by_id.get(cell_id, {}).items())
            if metric in metrics
            for epoch, value in enumerate(values, start=1)
        ]
        return pd.DataFrame(rows, columns=["cell_id", "epoch", "metric", "value"])

    def config(self, cell_id: str) -> dict[str, Any]:
        run = self.runs_by_id[cell_id]
        own = {
            "aux_design.kind": run["aux"],
            "method": run["method"],
            "aux_design.hidden": 128 if run["method"] == "dks" else 64,
        }
        return {
            "recipe.epochs": run["epochs"],
            "recipe.lr": 0.1,
            "data.name": "cifar100",
            "seed": run["seed"],
            **own,
        }


_RUN = (
    *(
        "cell_id",
        "config_id",
        "seed",
        "method",
        "state",
        "epoch",
        "epochs",
        "git_commit",
        "data_fingerprint",
        "device",
    ),
    *("started", "mlflow_run_id", "mlflow_experiment_id", "place", "attempts"),
)


@dataclass
class FakeStudy:
    """A begun sweep."""

    parts: list[Manifest]
    source: FakeSource
    name: str = "table3"
    title: str = "Branch designs for ResNet-32 on CIFAR-100"
    command: str = "dks sweep run table3 data.root=data"
    shape: Shape = field(
        default_factory=lambda: Shape(gain=(Over.baseline, Over.ds), aside={"method": "baseline"})
    )
    paper: PaperTable | None = None

    @property
    def runs(self) -> pd.DataFrame:
        return self.source.runs()

    def tables(self, epoch: Epoch = Epoch.last) -> list[Table]:
        runs = self.runs
        return [
            build(
                entries(part, runs, self.shape.metrics, epoch, by_classifier=False),
                part.name,
                part.title,
                part.axes,
                part.rows,
                part.columns,
                self.shape,
                epoch,
                self.paper,
            )
            for part in self.parts
        ]


def identity(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def setting_of(aux: str, method: str) -> str:
    """What the paper's Table 3 knows it by, if it does."""
    row = paper_table("table3").labelled({"aux": aux, "method": method})  # type: ignore[union-attr]
    return "" if row is None else next(iter(row.keys)).setting


def manifest(
    designs: Sequence[str], seeds: Sequence[int], name: str = "table3", title: str = FakeStudy.title
) -> Manifest:
    """A baseline, and DS and DKS with each of the designs."""
    configs = [
        ("none", "baseline"),
        *((aux, method) for aux in designs for method in ("ds", "dks")),
    ]
    cells = [
        ManifestCell(
            labels={"aux": aux, "method": method, "seed": str(seed)},
            cell_id=identity(aux, method, seed),
            config_id=identity(aux, method),
            baseline_id=identity("none", "baseline"),
            seed=seed,
            method=method,
            overrides=[],
            ds_id=identity(aux, "ds") if method == "dks" else None,
            setting_id=setting_of(aux, method),
        )
        for aux, method in configs
        for seed in seeds
    ]
    return Manifest(
        name, title, ["aux", "method", "seed"], "runs", cells, rows=["aux"], columns=["method"]
    )


def curve(
    start: float,
    end: float,
    epochs: int,
    random: np.random.Generator,
    drops: Sequence[float] = (0.4, 0.6, 0.8),
) -> list[float]:
    """An error that falls with every drop of the learning rate, as on CIFAR."""
    at = np.arange(1, epochs + 1) / epochs
    levels = [(start - end) * share + end for share in (0.36, 0.11, 0.02, 0.0)]
    stage = sum((at > drop).astype(int) for drop in drops)
    level = np.array(levels)[stage]
    value = (
        level
        + (start - level) * np.exp(-at * epochs / 4)
        + random.normal(0, 0.02, epochs) * (level - end + 4)
    )
    value[-1] = end
    return [float(each) for each in np.maximum(value, 0)]


def study(
    designs: Sequence[str] = ("ap_2fc", "ap_conv_2fc", "narrow", "shallow", "ours"),
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    epochs: int = 40,
    folder: Path | None = None,
) -> FakeStudy:
    """A sweep in which all runs are done; with a folder, each has a record in it."""
    part, runs, histories = manifest(designs, seeds), {}, {}
    for number, cell in enumerate(part.cells):
        random = np.random.default_rng(number)
        aux, method = cell.labels["aux"], cell.method
        end = (
            {"baseline": 29.97, "ds": 30.6, "dks": 27.6}[method]
            - 0.4 * (len(aux) % 5)
            + random.normal(0, 0.3)
        )
        test, train = curve(92, end, epochs, random), curve(96, end / 4, epochs, random)
        history = {
            "test/top1_error": test,
            "train/top1_error": train,
            "test/top5_error": [each / 3 for each in test],
        }
        history |= {
            "train/loss": [each / 20 for each in train],
            "test/loss": [each / 18 for each in test],
        }
        if method != "baseline":
            history |= {
                f"{split}/top1_error_{c}": [each + 2 for each in history[f"{split}/top1_error"]]
                for split in ("train", "test")
                for c in ("c2", "c3")
            }
        best = int(np.argmin(test))
        seconds = 2600.0 + 900 * (method != "baseline") + float(random.normal(0, 40))
        runs[cell.cell_id] = {
            **{
                "cell_id": cell.cell_id,
                "config_id": cell.config_id,
                "seed": cell.seed,
                "method": method,
                "aux": aux,
            },
            **{
                "state": "done",
                "epoch": epochs,
                "epochs": epochs,
                "git_commit": COMMIT,
                "data_fingerprint": "cifar100",
            },
            **{
                "device": "cuda:0 (NVIDIA H100)",
                "started": f"2026-11-{20 + number % 3}T03:43:59.171+00:00",
            },
            **{
                "mlflow_run_id": identity("run", number) * 2,
                "mlflow_experiment_id": "1",
                "attempts": 1,
            },
            "place": f"runs/{cell.cell_id}",
            **{f"final/{metric}": values[-1] for metric, values in history.items()},
            **{f"best/{metric}": values[best] for metric, values in history.items()},
            **{
                "best/epoch": best + 1,
                "cost/seconds": seconds,
                "cost/training_flops": 1.7e15,
                "cost/parameters": 466906,
            },
            **{"cost/images_per_second": 4182.7, "cost/peak_memory_mib": 1874.0},
        }
        histories[cell.cell_id] = history
        if folder is not None:
            keep_record(folder / "runs" / cell.cell_id, runs[cell.cell_id])
    return FakeStudy([part], FakeSource(runs, histories), paper=paper_table("table3"))


def keep_record(
    place: Path, run: dict[str, Any], error: dict[str, str] | None = None, processes: int = 1
) -> None:
    """Write the record of a run, in a folder from then on."""
    attempt = Attempt(
        run["started"],
        "host",
        1,
        run["device"],
        4,
        processes,
        git_commit=COMMIT,
        seconds=run["cost/seconds"],
    )
    attempt.versions = {"python": "3.11.2", "torch": "2.15.0"}
    record = Record(
        run["cell_id"],
        run["config_id"],
        run["seed"],
        run["method"],
        {},
        "",
        [],
        attempts=[attempt],
        error=error,
    )
    record.status = Status(run["state"])
    RunFolder(place).write_record(record)
    run["place"] = str(place)


def stop(
    study: FakeStudy, aux: str, method: str, seed: int, state: str, epoch: int
) -> dict[str, Any]:
    """Let a run have come no further than this epoch."""
    run = study.source.runs_by_id[identity(aux, method, seed)]
    run |= {
        "state": state,
        "epoch": epoch,
        **{key: float("nan") for key in run if key.startswith(("final/", "best/"))},
    }
    for values in study.source.curves_by_id[run["cell_id"]].values():
        del values[epoch:]
    return run


def forget(study: FakeStudy, aux: str, method: str, seed: int) -> None:
    """Let a run never have begun."""
    del study.source.runs_by_id[identity(aux, method, seed)]
    del study.source.curves_by_id[identity(aux, method, seed)]


def unfinished(folder: Path, epochs: int = 40) -> FakeStudy:
    """A sweep with runs in all states."""
    begun = study(epochs=epochs, folder=folder)
    begun.source.name = str(folder / "runs")
    for seed in (3, 4, 5):
        forget(begun, "narrow", "dks", seed)
    for seed in (1, 2, 3, 4, 5):
        forget(begun, "shallow", "dks", seed)
    stop(begun, "ours", "ds", 5, "running", 24)
    stop(begun, "narrow", "ds", 4, "killed", 15)
    failed = stop(begun, "ap_conv_2fc", "dks", 2, "failed", 9)
    error = {
        "type": "OutOfMemoryError",
        "message": "CUDA out of memory. Tried to allocate 512.00 MiB",
    }
    keep_record(Path(failed["place"]), failed, error)
    return begun
