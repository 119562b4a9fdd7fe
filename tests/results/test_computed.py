"""How numbers were computed, said beneath a table and marked at them.

Codes, processes, threads, devices, versions.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dks.cli import main as cli
from dks.machine import code
from dks.results import render
from dks.results.figures.cost import _words
from dks.results.figures.dots import dots
from dks.results.figures.layout import layout
from dks.results.figures.runs import standing
from dks.results.model import Table
from dks.results.report.page import page
from dks.results.study import Study
from dks.runs.attempts import ComputedBy
from tests.conftest import TINY
from tests.results.test_tables import make

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def by(hexadecimal: str | None = A, commit: str | None = COMMIT, **more: Any) -> ComputedBy:
    return ComputedBy(
        hexadecimal,
        commit,
        **{"device": "cpu", "processes": 1, "threads": 1, "torch": "2.15.0", **more},
    )


def table(*made: tuple[ComputedBy, ...], methods: tuple[str, ...] = ("baseline", "dks")) -> Table:
    """Runs of two methods in turn, each computed so."""
    runs = []
    for number, each in enumerate(made):
        method = methods[number % len(methods)]
        runs.append(
            {
                "method": method,
                "seed": number // len(methods),
                "value": 10.0 + number,
                "computed_by": each,
            }
        )
    return make(runs, ["method", "seed"])


def notes(*made: tuple[ComputedBy, ...]) -> list[str]:
    """What is said beneath their table of how they were computed."""
    (found,) = json.loads(render.as_json([table(*made)]))
    lines: list[str] = found["computed"]
    return lines


# --- codes


def test_one_code_is_not_spoken_of() -> None:
    assert notes(*[(by(),)] * 4) == []
    assert notes(*[(by(commit="1" * 40),), (by(commit="2" * 40),)] * 2) == [], (
        "commits alone make no other code"
    )
    assert notes(*[(ComputedBy(),)] * 4) == [], (
        "neither are runs of an older version, among themselves"
    )


def test_several_codes_are_named_with_their_commits_and_runs() -> None:
    assert notes(
        (by(A),), (by(A, f"{COMMIT}-dirty"),), (by(B),), (by(None, None),), (by(A), by(B, None))
    ) == [
        "computed by several codes, † where a number mixes them: aaaaaaaaaaaa (commit "
        "0123456789, 0123456789-dirty) 2 runs; "
        "aaaaaaaaaaaa (commit 0123456789, 0123456789-dirty) and bbbbbbbbbbbb (commit 0123456789) "
        "1 run; "
        "bbbbbbbbbbbb (commit 0123456789) 1 run; unknown 1 run"
    ]
    (line,) = notes((by(B),), *[(by(A, str(number) * 40),) for number in range(5)])
    assert "aaaaaaaaaaaa (commit 0000000000, 1111111111, 2222222222 and 2 more) 5 runs" in line


def test_codes_that_were_proven_equal_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "equal").write_text(f"{A} {B}\n")
    monkeypatch.setattr(code, "EQUAL", tmp_path / "equal")
    code._equal.cache_clear()
    assert notes((by(A),), (by(B),)) == []
    assert notes((by(A),), (by(B),), (by(C),), (by(A),))[0].count("run") == 2
    code._equal.cache_clear()


@pytest.fixture
def mixed() -> Table:
    """The baseline's two runs are of two codes, those of DKS are of one."""
    return table((by(A),), (by(A),), (by(B),), (by(A),))


@pytest.mark.parametrize(("form", "mark"), [("md", "†"), ("latex", r"\dag{}"), ("html", "†")])
def test_a_number_that_mixes_codes_is_marked_in_every_format(
    mixed: Table, form: str, mark: str
) -> None:
    text = render.TEXT_FORMATS[form](mixed)
    assert (
        f"11.00(1.41){mark}" in text and f"12.00(1.41){mark}" not in text and "12.00(1.41)" in text
    )
    assert text.count(f"-1.00{mark}") == 2, "the gain over it, and its test"
    assert "aaaaaaaaaaaa (commit 0123456789) 3 runs; bbbbbbbbbbbb (commit 0123456789) 1 run" in text


def test_it_is_marked_for_terminals_spreadsheets_and_programs(mixed: Table) -> None:
    out = io.StringIO()
    render.terminal(mixed, Console(file=out, width=200))
    assert "11.00(1.41)†*" in out.getvalue() and "12.00(1.41) " in out.getvalue()
    lines = {
        line["method"]: line for line in csv.DictReader(io.StringIO(render.comma_separated(mixed)))
    }
    assert (
        lines["baseline"]["codes"] == "aaaaaaaaaaaa:1 bbbbbbbbbbbb:1"
        and lines["dks"]["codes"] == "aaaaaaaaaaaa:2"
    )
    assert lines["baseline"]["mean"] == "11.0"
    (found,) = json.loads(render.as_json([mixed]))
    assert [cell["codes"] for cell in found["cells"]] == [{A: 1, B: 1}, {A: 2}]


def test_a_run_of_two_codes_and_a_gain_over_another_code_are_marked() -> None:
    lone = table((by(A), by(B)), (by(A),))
    assert "| baseline | **10.00†** |" in render.markdown(lone)
    across = table((by(A),), (by(B),))
    assert "| baseline | **10.00** |  |" in render.markdown(
        across
    ) and "| dks | 11.00 | -1.00† |" in render.markdown(across)


def test_figures_say_it_of_a_configuration(mixed: Table) -> None:
    baseline, dks = mixed.cells.values()
    assert (standing(baseline), standing(dks)) == ("2 codes", "")
    names = [text.get_text() for axes in dots(mixed).axes for text in axes.get_yticklabels()]
    assert "baseline (2 codes)" in names and "DKS" in names
    (group,) = layout(mixed).groups
    rows = [(series.label, [series]) for series in group.series]
    (words,) = _words(rows, set(group.series), 42)
    assert words.get_label() == "of several codes: baseline"


def test_what_does_not_count_is_of_no_code() -> None:
    runs = [
        {"aux": "a", "seed": n, "value": 1.0, "computed_by": (by(each),)}
        for n, each in enumerate((A, B, C))
    ]
    runs[1]["state"], runs[2]["left_out"] = "failed", "result not finite"
    (cell,) = make(runs, ["aux", "seed"]).cells.values()
    assert cell.codes == {A: 1}


# --- the rest


def test_processes_are_told_unless_each_run_had_one() -> None:
    assert notes((by(),), (by(),)) == []
    assert notes((by(processes=8),), (by(processes=8),)) == [
        "processes that trained a network together: 8"
    ]
    assert notes((by(processes=8),), (by(),), (by(),)) == [
        "processes that trained a network together: 1 in 2 runs, 8 in 1 run"
    ]


def test_threads_devices_drivers_and_torch_are_told_where_they_differ() -> None:
    h100 = {"device": "NVIDIA H100", "driver": "570.1", "torch": "2.14.0"}
    assert notes((by(),), (by(threads=2),)) == ["CPU threads: 1 in 1 run, 2 in 1 run"]
    assert notes((by(**h100),), (by(**h100, threads=2),)) == [], "on a GPU they compute nothing"
    assert notes((by(**h100),), (by(**{**h100, "driver": "580.2"}),)) == [
        "NVIDIA driver: 570.1 in 1 run, 580.2 in 1 run"
    ]
    assert notes((by(**h100),), (by(**{**h100, "driver": None}),)) == [], (
        "what is not known does not differ"
    )
    assert notes((by(),), (by(**h100),)) == [
        "device: CPU in 1 run, NVIDIA H100 in 1 run",
        "torch: 2.14.0 in 1 run, 2.15.0 in 1 run",
    ]
    assert notes((by(torch="2.14.0"), by()), (by(),)) == [
        "torch: 2.14.0 and 2.15.0 in 1 run, 2.15.0 in 1 run"
    ]


# --- the way from runs to what is shown


def dks(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.mark.slow
def test_a_mean_over_two_versions_of_the_code_is_marked_wherever_it_is_shown(
    run_here: Callable[..., tuple[int, str, str]],
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (*TINY, "recipe.epochs=1", "method=baseline")
    for seed, hexadecimal in ((1, A), (2, A), (3, B)):
        monkeypatch.setattr(code, "_own", lambda hexadecimal=hexadecimal: hexadecimal)
        assert run_here(*arguments, f"seed={seed}")[0] == 0
    status, out, err = run_here("-m", *arguments, "seed=1,2,3")
    assert status == 0
    assert (
        "† where a number mixes them: aaaaaaaaaaaa (commit " in out
        and ") 2 runs; bbbbbbbbbbbb (commit " in out
    )
    (name,) = (path.name for path in Path("results").iterdir())
    for file, mark in (
        ("table.md", "†"),
        ("table.tex", r"\dag{}"),
        ("table.html", "†"),
        ("table.csv", "aaaaaaaaaaaa:2 "),
    ):
        assert mark in Path("results", name, file).read_text(), file
    told = json.loads(Path("results", name, "provenance.json").read_text())
    assert [(each["code"], each["runs"]) for each in told["codes"]] == [(A, 2), (B, 1)]
    assert [run["computed_by"][0]["code"] for cell in told["cells"] for run in cell["runs"]] == [
        A,
        A,
        B,
    ]
    line = (
        "2 done cells were computed by another code than today's bbbbbbbbbbbb (aaaaaaaaaaaa: "
        "2); trained again by: "
    )
    assert line in err
    again = f"{line}dks sweep run {name} --code same"
    assert again in dks(capsys, "sweep", "status", name)[1]
    status, out, _ = dks(capsys, "sweep", "status", name, "--json")
    assert (status, json.loads(out)["notes"]) == (0, [again])
    assert [each["other_codes"] for each in json.loads(out)["cells"]] == [[A], [A], []]
    html = page(Study.open(name))
    assert "†" in html and "bbbbbbbbbbbb" in html and f"code {A[:12]}" in html
    monkeypatch.setattr("dks.sweeps.summary.command_line", lambda: "dks sweep plan")
    status, out, _ = dks(capsys, "sweep", "plan", name, "--probe", "0")
    assert (status, out.splitlines()[-1]) == (0, again)
    found = json.loads(dks(capsys, "sweep", "plan", name, "--probe", "0", "--json")[1])
    one, two, _ = (each["cell_id"] for each in found["cells"])
    assert (found["notes"], found["other_codes"]) == ([again], {one: [A], two: [A]})
    status, out, _ = dks(capsys, "sweep", "plan", name, "--probe", "0", "--code", "same")
    assert "3 cells (3 done); 2 to run" in out and "2 cells are trained again" in out
    assert json.loads(Path("results", name, "sweep.json").read_text())["cells"], (
        "nothing was launched"
    )
