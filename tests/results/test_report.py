"""The report as text.

What is in it, what cannot break out of it, and that it asks nobody for anything.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dks.results.entries import entries
from dks.results.model import Epoch, Metric, Over, Shape, Table, build
from dks.results.report import curves, write_report
from dks.results.report.page import page
from dks.runs.record import Attempt, Record, RunFolder, Status
from dks.sweeps.manifest import Manifest, ManifestCell
from dks.sweeps.paper import PaperTable, paper_table
from tests.conftest import ROOT

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


def embedded(text: str) -> Any:
    """The data in the page."""
    (found,) = re.findall(
        r'<script type="application/json" id="contents">(.*?)</script>', text, re.DOTALL
    )
    return json.loads(found)


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def visible(text: str) -> str:
    """The text of a page outside of its style and scripts, white space made single."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


@pytest.fixture(scope="module")
def whole() -> str:
    """The page of a sweep in which all runs are done."""
    return page(study())


def test_the_page_refers_to_nothing_outside_of_itself(whole: str) -> None:
    for tag, attributes in Elements(whole).found:
        assert tag not in (
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "source",
            "video",
            "audio",
        )
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    style = "".join(re.findall(r"<style>(.*?)</style>", whole, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    # a name, not an address
    assert set(re.findall(r"https?://[^\s\"'<]+", whole)) == {"http://www.w3.org/2000/svg"}


def test_the_policy_allows_the_one_script_and_the_one_style_by_their_hashes_and_nothing_else(
    whole: str,
) -> None:
    (policy,) = [
        each["content"]
        for tag, each in Elements(whole).found
        if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None

    def digest(pattern: str) -> str:
        (content,) = re.findall(pattern, whole, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert dict(each.strip().split(" ", 1) for each in policy.split(";")) == {
        "default-src": "'none'",
        "script-src": digest("<script>(.*?)</script>"),
        "style-src": digest("<style>(.*?)</style>"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        write_report(unfinished(tmp_path), tmp_path / name) for name in ("one.html", "two.html")
    )
    assert first == tmp_path / "one.html"
    assert first.read_bytes() == second.read_bytes()


def test_hostile_labels_titles_and_errors_stay_text(tmp_path: Path) -> None:
    hostile = study(designs=(HOSTILE,), seeds=(1, 2), folder=tmp_path)
    hostile.title = hostile.command = hostile.name = HOSTILE
    hostile.parts = [dataclasses.replace(hostile.parts[0], title=HOSTILE)]
    failed = stop(hostile, HOSTILE, "dks", 1, "failed", 3)
    keep_record(Path(failed["place"]), failed, {"type": "ValueError", "message": HOSTILE})
    for run in hostile.source.runs_by_id.values():
        run |= {
            "git_commit": HOSTILE,
            "device": HOSTILE,
            "mlflow_run_id": HOSTILE,
            "mlflow_experiment_id": HOSTILE,
        }
    text = page(hostile)
    elements = Elements(text).found
    assert [each for tag, each in elements if tag == "script"] == [
        {"type": "application/json", "id": "contents"},
        {},
    ]
    assert "img" not in [tag for tag, _ in elements]
    assert "<!--" not in text
    told = embedded(text)
    assert told["tables"][0]["title"] == HOSTILE
    assert [each for each in told["runs"]["error"]["pool"] if each] == [f"ValueError: {HOSTILE}"]
    assert f"$ {HOSTILE}".split()[-1] in visible(text)
    assert "{{ 7 * 7 }}" in visible(text)


@pytest.mark.slow
def test_making_it_needs_neither_torch_nor_mlflow_nor_matplotlib() -> None:
    code = (
        "import sys, dks.results.report; print(sorted({'torch', 'mlflow', 'matplotlib'} & "
        "sys.modules.keys()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"


def test_every_cell_is_there_with_what_its_sheet_says_and_opens_its_runs() -> None:
    whole = study()
    text, (table,) = page(whole), whole.tables()
    told = embedded(text)["tables"][0]["cells"]
    opened = {
        int(each["data-cell"] or "")
        for tag, each in Elements(text).found
        if tag == "button" and "data-cell" in each
    }
    assert opened == set(range(len(table.cells))) == set(range(len(told)))
    for (place, cell), shown in zip(table.cells.items(), told, strict=True):
        assert shown["label"] == " ".join((*place[0], *place[1]))
        assert [embedded(text)["runs"]["cell_id"][run] for run in shown["runs"]] == list(
            cell.cell_ids
        )
        assert f"{cell.numbers[0].mean:.2f}({cell.numbers[0].sd:.2f})" in visible(text)
        assert [f"{cell.numbers[0].mean:.2f} ± {cell.numbers[0].sd:.2f} %"] == [
            value
            for name, value in shown["facts"]
            if name == "top-1 test error after the last epoch"
        ]
    assert "Comparisons" in visible(text)


def test_heads_can_be_sorted_by_and_carry_their_groups(whole: str) -> None:
    heads = [each for tag, each in Elements(whole).found if tag == "th" and "aria-sort" in each]
    assert {each["aria-sort"] for each in heads} == {"none"}
    groups = re.findall(
        r'<th scope="colgroup" colspan="(\d+)" class="group"><span>(.*?)</span>', whole
    )
    assert [name for _, name in groups] == ["method=ds", "method=dks"]


def test_what_is_missing_is_named_with_the_command_that_fills_it(tmp_path: Path) -> None:
    text = page(unfinished(tmp_path))
    assert re.search(r'<code id="command">dks sweep run table3 data\.root=data</code>', text)
    seen = visible(text)
    assert "10 of 55 runs are not there, and 1 is under way" in seen
    for each in (
        "narrow dks 3 missing",
        "shallow dks 5 missing",
        "ours ds 1 running",
        "narrow ds 1 killed",
        "ap_conv_2fc dks 1 failed",
    ):
        assert each in seen
    for kind in ("s-missing", "s-running", "s-failed", "s-killed"):
        assert re.search(rf'<td class="{kind}[ "]', text), kind


def test_a_whole_sweep_says_so_and_shows_no_command(whole: str) -> None:
    assert "Nothing: all 55 runs are finished." in visible(whole)
    assert 'id="command"' not in whole


def test_a_sweep_that_nobody_began_has_a_page() -> None:
    nothing = study()
    nothing.source = FakeSource({})
    seen = visible(page(nothing))
    assert "55 of 55 runs are not there" in seen
    assert "No run has begun" in seen
    assert embedded(page(nothing))["runs"]["state"]["pool"] == ["missing"]


def test_a_cell_that_waits_for_a_choice_is_missing_and_can_be_opened() -> None:
    waiting = study(designs=("ours",), seeds=(1, 2))
    labels = [{"aux": "later", "method": "dks", "seed": seed} for seed in ("1", "2")]
    waiting.parts = [dataclasses.replace(waiting.parts[0], pending=labels)]
    text = page(waiting)
    (cell,) = [
        each for each in embedded(text)["tables"][0]["cells"] if each["label"] == "later dks"
    ]
    assert (cell["config"], cell["runs"], cell["wanted"]) == (None, [], 2)
    assert "2 of 8 runs are not there" in visible(text)
    assert "later dks 2 missing" in visible(text)


def test_a_failed_run_tells_its_error_and_a_finished_one_none(tmp_path: Path) -> None:
    begun = unfinished(tmp_path)
    runs = embedded(page(begun))["runs"]
    at = runs["cell_id"].index(identity("ap_conv_2fc", "dks", 2))
    errors = [runs["error"]["pool"][each] for each in runs["error"]["at"]]
    assert errors.pop(at) == "OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB"
    assert set(errors) == {""}


def test_only_runs_of_a_server_are_linked_and_passwords_are_not_told(tmp_path: Path) -> None:
    tracked = study(designs=("ours",), seeds=(1,), folder=tmp_path)
    uris = ("http://me:secret@mlflow.example:5000", "sqlite:///mlflow.db", "javascript:alert(1)")
    for run, uri in zip(tracked.source.runs_by_id.values(), uris, strict=True):
        run |= {"mlflow_run_id": "ab/c1"}
        RunFolder(run["place"]).mlflow_file.write_text(
            json.dumps({"uri": uri, "run_id": "ab/c1", "epoch": 9})
        )
    runs = embedded(page(tracked))["runs"]
    assert runs["mlflow_link"] == [
        "http://me@mlflow.example:5000/#/experiments/1/runs/ab%2Fc1",
        "",
        "",
    ]
    assert runs["mlflow_uri"] == [
        "http://me@mlflow.example:5000",
        "sqlite:///mlflow.db",
        "javascript:alert(1)",
    ]
    assert "secret" not in page(tracked)


def test_runs_that_a_store_alone_knows_are_linked_by_its_address() -> None:
    served = study(designs=("ours",), seeds=(1,))
    served.source.name = "https://mlflow.example/"
    links = embedded(page(served))["runs"]["mlflow_link"]
    assert [each.startswith("https://mlflow.example/#/experiments/1/runs/") for each in links] == [
        True
    ] * 3


def test_the_cost_is_that_of_all_runs_by_device_and_every_process_counts(tmp_path: Path) -> None:
    costly = study(designs=("ours",), seeds=(1, 2), folder=tmp_path)
    for run in costly.source.runs_by_id.values():
        on_cpu = run["method"] == "baseline"
        run |= {"cost/seconds": 3600.0, "device": "cpu" if on_cpu else run["device"]}
        keep_record(Path(run["place"]), run, processes=1 if on_cpu else 4)
    seen = visible(page(costly))
    assert "NVIDIA H100 4 16.0 h 6.8 PFLOP CPU 2 2.0 h 3.4 PFLOP all 18.0 h 10.2 PFLOP" in seen
    assert "torch 2.15.0 (6 runs)" in seen


def test_a_run_is_counted_once_however_many_tables_show_it() -> None:
    twice = study()
    twice.parts = [*twice.parts, dataclasses.replace(twice.parts[0], name="again", title="Again")]
    told = embedded(page(twice))
    assert len(told["tables"]) == 2
    assert len(told["runs"]["cell_id"]) == 55
    assert "55 of 55" in visible(page(twice))


def test_what_configurations_share_is_told_once(whole: str) -> None:
    told = embedded(whole)
    assert told["common"] == {"recipe.epochs": "40", "recipe.lr": "0.1", "data.name": "cifar100"}
    assert told["configs"][-1]["own"] == {
        "aux_design.hidden": "128",
        "aux_design.kind": "ours",
        "method": "dks",
    }


def test_the_best_epoch_is_called_optimistic(whole: str) -> None:
    assert "chosen by the test error itself: these numbers are optimistic" in visible(
        page(study(), Epoch.best)
    )
    assert "optimistic" not in visible(whole)


def test_a_mean_curve_is_over_finished_runs_and_its_band_is_their_range() -> None:
    source = FakeSource(
        {},
        {
            "a": {"test/top1_error": [50.0, 20.0]},
            "b": {"test/top1_error": [40.0, 10.123456]},
            "c": {"test/top1_error": [90.0]},
            "d": {"test/top1_error": [80.0, float("nan"), float("inf"), 70.0]},
        },
    )
    found = curves.read(source, {"abc": ["a", "b", "c"], "d": ["d"], "none": []}, done={"a", "b"})
    assert found.configs["abc"]["test/top1_error"][1:] == [
        [45.0, 15.062],
        [40.0, 10.123],
        [50.0, 20.0],
    ]
    grid, values = found.configs["d"]["test/top1_error"]
    assert (found.grids[grid], values) == ([1, 4], [80.0, 70.0])
    assert set(found.runs) == {"a", "b", "c"}
    assert found.runs["c"]["test/top1_error"][1] == [90.0]


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    source = FakeSource({}, {"a": {"test/top1_error": [float(each) for each in range(1, 3001)]}})
    found = curves.read(source, {"a": ["a"]}, done={"a"})
    (grid,) = found.grids
    assert len(grid) == 400
    assert (grid[0], grid[-1]) == (1, 3000)
    assert found.configs["a"]["test/top1_error"][1] == [float(each) for each in grid]
    assert found.step == 8


def test_with_many_runs_only_means_are_drawn_and_the_page_stays_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curves, "MANY_RUNS", 54)
    told = embedded(page(study()))
    assert told["curves"]["runs"] is None
    assert not [metric for metric in told["curves"]["metrics"] if metric.endswith(("_c2", "_c3"))]
    assert len(told["configs"][1]["curves"]["test/top1_error"]) == 4
    assert len(told["configs"][1]["curves"]["train/top1_error"]) == 2


@pytest.mark.slow
def test_250_runs_of_200_epochs_stay_below_10_megabytes() -> None:
    large = study(designs=[f"design{number}" for number in range(25)], epochs=200)
    assert len(large.source.runs_by_id) == 255
    text = page(large)
    assert len(text.encode()) < 10_000_000
    assert embedded(text)["curves"]["runs"] is not None


def test_two_metrics_share_a_cell() -> None:
    both = study()
    both.shape = Shape(metrics=(Metric.top1, Metric.top5))
    told = embedded(page(both))["tables"][0]["cells"][0]["facts"]
    assert {"top-1 test error after the last epoch", "top-5 test error after the last epoch"} <= {
        name for name, _ in told
    }
