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
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dks.results.report import write_report
from dks.results.report.page import page
from dks.results.shape import Epoch, Metric
from dks.runs.record import RunFolder
from tests.support.studies import (
    HOSTILE,
    FakeSource,
    identity,
    keep_record,
    stop,
    study,
    unfinished,
)


def embedded(text: str) -> Any:
    """The data in the page."""
    (found,) = re.findall(
        r'<script type="application/json" id="contents">(.*?)</script>', text, re.DOTALL
    )
    return json.loads(found)


def column(text: str, head: str) -> list[str]:
    """What the page tells of every run under a head."""
    found = embedded(text)["runs"][head]
    return [found["pool"][at] for at in found["at"]] if isinstance(found, dict) else found


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
    bare = re.sub(r"<(script|style|title)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


@pytest.fixture(scope="module")
def whole() -> str:
    """The page of a sweep in which all runs are done."""
    return page(study(designs=("narrow", "ours"), seeds=(1, 2, 3)))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a sweep with runs in all states; the same runs give the same bytes."""
    folder = tmp_path_factory.mktemp("begun")
    first, second = (
        write_report(unfinished(folder), folder / name) for name in ("one.html", "two.html")
    )
    assert first == folder / "one.html"
    assert first.read_bytes() == second.read_bytes()
    return first.read_text()


def test_the_page_refers_to_nothing_outside_of_itself(whole: str) -> None:
    outside = {"link", "img", "image", "iframe", "object", "embed", "base", "form", "source"}
    for tag, attributes in Elements(whole).found:
        assert tag not in outside
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    (style,) = re.findall(r"<style>(.*?)</style>", whole, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    # a name, not an address
    assert set(re.findall(r"https?://[^\s\"'<]+", whole)) == {"http://www.w3.org/2000/svg"}


def test_the_policy_allows_the_one_script_and_the_one_style_by_their_hashes(whole: str) -> None:
    (policy,) = [
        each["content"] or ""
        for tag, each in Elements(whole).found
        if each.get("http-equiv") == "Content-Security-Policy"
    ]

    def digest(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", whole, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert dict(each.strip().split(" ", 1) for each in policy.split(";")) == {
        "default-src": "'none'",
        "script-src": digest("script"),
        "style-src": digest("style"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


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
    assert {"svg", "path", "title"} <= {tag for tag, _ in elements}
    assert "img" not in [tag for tag, _ in elements]
    assert "<!--" not in text
    assert embedded(text)["tables"][0]["title"] == HOSTILE
    assert [each for each in column(text, "error") if each] == [f"ValueError: {HOSTILE}"]
    assert HOSTILE.split()[-1] in visible(text)
    assert "{{ 7 * 7 }}" in visible(text)


def test_every_cell_is_there_with_what_its_sheet_says_and_opens_its_runs() -> None:
    shown = study(designs=("ours",), seeds=(1, 2))
    shown.shape = dataclasses.replace(shown.shape, metrics=(Metric.top1, Metric.top5))
    text, (table,) = page(shown), shown.tables()
    told = embedded(text)["tables"][0]["cells"]
    opened = {
        int(each["data-cell"] or "") for _, each in Elements(text).found if "data-cell" in each
    }
    assert opened == {0, 1, 2}
    assert [each["label"] for each in told] == ["none baseline", "ours ds", "ours dks"]
    for cell, each in zip(table.cells.values(), told, strict=True):
        assert [column(text, "cell")[run] for run in each["runs"]] == list(cell.cell_ids)
        facts = dict(each["facts"])
        for number in cell.numbers:
            assert f"{number.mean:.2f}({number.sd:.2f})" in visible(text)
            name = f"{number.metric.label} test error after the last epoch"
            assert facts[name] == f"{number.mean:.2f} ± {number.sd:.2f} %"
    assert "Comparisons" in visible(text)
    heads = [each["aria-sort"] for tag, each in Elements(text).found if "aria-sort" in each]
    assert set(heads) == {"none"}
    groups = r'<th scope="colgroup" colspan="(\d+)" class="group"><span>(.*?)</span>'
    assert [name for _, name in re.findall(groups, text)] == ["method=ds", "method=dks"]


def test_what_is_missing_is_named_with_the_command_that_fills_it(begun: str) -> None:
    assert '<code id="command">dks sweep run table3 data.root=data</code>' in begun
    seen = visible(begun)
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
        assert re.search(rf'<td class="{kind}[ "]', begun), kind


def test_a_failed_run_tells_its_error_and_a_finished_one_none(begun: str) -> None:
    errors = dict(zip(column(begun, "cell"), column(begun, "error"), strict=True))
    failed = errors.pop(identity("ap_conv_2fc", "dks", 2))
    assert failed == "OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB"
    assert set(errors.values()) == {""}


def test_a_whole_sweep_says_so_and_shows_no_command(whole: str) -> None:
    assert "Nothing: all 15 runs are finished." in visible(whole)
    assert 'id="command"' not in whole
    assert "optimistic" not in visible(whole)


def test_a_sweep_that_nobody_began_has_a_page() -> None:
    nothing = study()
    nothing.source = FakeSource({})
    seen = visible(page(nothing))
    assert "55 of 55 runs are not there" in seen
    assert "No run has begun" in seen
    assert "no run has a learning curve yet" in seen
    assert set(column(page(nothing), "state")) == {"missing"}


def test_a_cell_that_waits_for_a_choice_is_missing_and_can_be_opened() -> None:
    waiting = study(designs=("ours",), seeds=(1, 2))
    labels = [{"aux": "later", "method": "dks", "seed": seed} for seed in ("1", "2")]
    waiting.parts = [dataclasses.replace(waiting.parts[0], pending=labels)]
    text = page(waiting, Epoch.best)
    (cell,) = [
        each for each in embedded(text)["tables"][0]["cells"] if each["label"] == "later dks"
    ]
    assert (cell["config"], cell["runs"]) == (None, [])
    assert "2 of 8 runs are not there" in visible(text)
    assert "later dks 2 missing" in visible(text)
    assert "chosen by the test error itself: these numbers are optimistic" in visible(text)


def test_only_runs_of_a_server_are_linked_and_passwords_are_not_told(tmp_path: Path) -> None:
    tracked = study(designs=("ours",), seeds=(1,), folder=tmp_path)
    uris = ("http://me:secret@mlflow.example:5000", "sqlite:///mlflow.db", "javascript:alert(1)")
    for run, uri in zip(tracked.source.runs_by_id.values(), uris, strict=True):
        run |= {"mlflow_run_id": "ab/c1"}
        RunFolder(run["place"]).mlflow_file.write_text(
            json.dumps({"uri": uri, "run_id": "ab/c1", "epoch": 9})
        )
    text = page(tracked)
    link = "http://me@mlflow.example:5000/#/experiments/1/runs/ab%2Fc1"
    assert column(text, "MLflow page") == [link, "", ""]
    assert column(text, "MLflow store") == ["http://me@mlflow.example:5000", *uris[1:]]
    assert "secret" not in text


def test_runs_that_a_store_alone_knows_are_linked_by_its_address() -> None:
    served = study(designs=("ours",), seeds=(1,))
    served.source.name = "https://mlflow.example/"
    links = column(page(served), "MLflow page")
    assert [each.rpartition("/")[0] for each in links] == [
        "https://mlflow.example/#/experiments/1/runs"
    ] * 3


def test_the_cost_is_that_of_all_runs_by_device_and_every_process_counts(tmp_path: Path) -> None:
    costly = study(designs=("ours",), seeds=(1, 2), folder=tmp_path)
    for run in costly.source.runs_by_id.values():
        on_cpu = run["method"] == "baseline"
        run |= {"cost/seconds": 3600.0, "device": "cpu" if on_cpu else run["device"]}
        keep_record(Path(run["place"]), run, processes=1 if on_cpu else 4)
    # each run once, however many tables show it
    costly.parts = [*costly.parts, dataclasses.replace(costly.parts[0], name="again")]
    text = page(costly)
    seen = visible(text)
    assert "NVIDIA H100 4 16.0 h 6.8 PFLOP CPU 2 2.0 h 3.4 PFLOP all 18.0 h 10.2 PFLOP" in seen
    assert "torch 2.15.0 (6 runs)" in seen
    assert len(embedded(text)["tables"]) == 2
    assert len(column(text, "cell")) == 6


def test_a_run_is_told_in_words(whole: str) -> None:
    told = {head: column(whole, head)[0] for head in embedded(whole)["runs"]}
    assert {
        "seed": "1",
        "state": "done",
        "epochs": "40",
        "begun (UTC)": "2026-11-20 03:43",
        "commit": "8ea1394f87",
        "operations": "1.7 PFLOP",
        "images/s": "4,183",
        "peak memory": "1.8 GiB",
        "parameters": "467 k",
    }.items() <= told.items()
    assert re.fullmatch(r"\d\d\.\d\d", told["top-1 error"])
    assert re.fullmatch(r"\d\d:\d\d", told["time"])


def test_what_configurations_share_is_told_once(whole: str) -> None:
    told = embedded(whole)
    assert told["common"] == {"recipe.epochs": "40", "recipe.lr": "0.1", "data.name": "cifar100"}
    assert told["configs"][-1]["own"] == {
        "aux_design.hidden": "128",
        "aux_design.kind": "ours",
        "method": "dks",
    }
    assert told["tables"][0]["differs"] == ["aux_design.hidden", "aux_design.kind", "method"]


def test_the_values_of_a_figure_lie_where_it_draws_them() -> None:
    drawn = study(designs=("ours",), seeds=(1, 2), epochs=8)
    for number, cell in enumerate(drawn.parts[0].cells):
        test = [50.0 - epoch + number % 2 for epoch in range(8)]
        drawn.source.curves_by_id[cell.cell_id] = {"test/top1_error": test}
    text = page(drawn)
    curves, errors, cost = embedded(text)["figures"]
    (panel,) = curves["panels"]
    assert curves["names"] == {"0": "baseline", "1": "ours, DS", "2": "ours, DKS"}
    series, part, epochs, values = panel["lines"][0]
    assert (part, epochs) == ("test", [1, 2, 3, 4, 5, 6, 7, 8])
    assert values == [50.5, 49.5, 48.5, 47.5, 46.5, 45.5, 44.5, 43.5]
    left, _, width, _ = panel["box"]
    first, last = panel["x"]
    (path,) = re.findall(rf'<g class="test" data-series="{series}">\s*<path d="(.*?)"', text)
    x = float(path.split()[1])
    assert x == pytest.approx(left + (1 - first) / (last - first) * width, abs=0.05)
    keys = [each for _, each in Elements(text).found if each.get("class") == "key"]
    assert {key["data-series"] for key in keys} == set(curves["names"])
    assert len(re.findall(r"<title>[^<]*DKS: \d\d\.\d\d ± \d\.\d\d %</title>", text)) == 1
    assert errors["panels"][0]["lines"] == cost["panels"][0]["lines"] == []


@pytest.mark.slow
def test_a_large_page_stays_small_and_its_curves_keep_their_ends() -> None:
    large = study(designs=[f"design{number}" for number in range(25)], epochs=200)
    assert len(large.source.runs_by_id) == 255
    assert len(page(large).encode()) < 6_000_000
    long = study(designs=[f"design{number}" for number in range(30)], seeds=(1,), epochs=2000)
    text = page(long)
    grids = [line[2] for panel in embedded(text)["figures"][0]["panels"] for line in panel["lines"]]
    assert {(grid[0], grid[-1]) for grid in grids} == {(1, 2000)}
    assert max(map(len, grids)) <= 400
    assert len(text.encode()) < 10_000_000
