"""A sweep whose file or configuration was edited after it was begun.

Who shows it says so, with the number of cells.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.cli.main import main
from dks.config import compose
from dks.config.compose import Composed, Composer
from dks.results.study import Study
from dks.runs.record import RunFolder
from dks.sweeps import changes, files, manifest
from dks.sweeps.changes import Changes
from dks.sweeps.manifest import Manifest
from dks.sweeps.plan import plan
from dks.sweeps.spec import expand, grid_of
from tests.conftest import TINY

PARSER = OverridesParser.create()
SAID = "the definition has changed since the launch of"
GRID = "title: Mine\ntable: {rows: [method]}\ngrids:\n- {method: [baseline, dks], seed: 1..3}\n"


def begun(name: str | None, *overrides: str) -> Manifest:
    """A sweep as a launch writes it down."""
    given = (*TINY, "tracking=off", *overrides)
    grid = (
        grid_of(files.read(name), given, PARSER)
        if name
        else expand(PARSER.parse_overrides(list(given)))
    )
    for each in (found := plan(grid, Composer(compose.compose_here)).manifests()):
        manifest.write(each, "results")
    return manifest.read("results", found[-1].name)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def unedited(monkeypatch: pytest.MonkeyPatch) -> None:
    """`conf/` stays as it is, so that each combination of choices is composed once."""
    first = cache(compose.compose_here)

    def again(overrides: Sequence[str]) -> Composed:
        return copy.deepcopy(first(tuple(overrides)))

    monkeypatch.setattr(compose, "compose_here", again)


EDITS = (
    ("1..3", "1..5", "4 cells not begun"),
    ("1..3", "2..3", "0 cells not begun, 2 no longer in it"),
    ("1..3", "3..4", "2 cells not begun, 4 no longer in it"),
    ("[baseline, dks]", "[dks]", "0 cells not begun, 3 no longer in it"),
    (
        "rows: [method]",
        "columns: [method]",
        "the same cells under another title or in other places",
    ),
    ("seed: 1..3", "seed: [1, 2, 3]", None),
    ("title", "# a remark\ntitle", None),
)


def test_an_edited_file_is_said_with_the_number_of_cells(
    clone: Path, in_folder: Path, unedited: None
) -> None:
    (clone / "sweeps" / "mine.yaml").write_text(GRID)
    first = begun("mine")
    for old, new, said in EDITS:
        edit(clone / "sweeps" / "mine.yaml", old, new)
        line = (
            said
            and f"{SAID} {first.name}: {said}; dks sweep run {first.name} goes by what it is now"
        )
        assert Changes().of(first) == line, new
        (clone / "sweeps" / "mine.yaml").write_text(GRID)


@pytest.mark.slow
def test_so_is_an_edited_configuration_and_a_typed_sweep(clone: Path, in_folder: Path) -> None:
    (clone / "sweeps" / "mine.yaml").write_text(GRID)
    named, typed = begun("mine"), begun(None, "aux=ours,narrow", "seed=1")
    edit(clone / "conf" / "aux_design" / "narrow.yaml", "0.5", "0.75")
    assert Changes().of(named) is None, "nothing differs for it"
    line = f"1 cell not begun, 1 no longer in it; dks sweep run {typed.name} goes by what it is now"
    assert Changes().of(typed) == f"{SAID} {typed.name}: {line}"
    edit(clone / "conf" / "aux_design" / "narrow.yaml", "width: 0.75", "width: 1000")
    assert str(Changes().of(typed)).startswith(
        f"{SAID} {typed.name}, and is refused now: aux=narrow: aux_design.width=1000"
    )


def test_what_was_begun_elsewhere_is_told_apart(
    clone: Path, in_folder: Path, unedited: None
) -> None:
    (clone / "sweeps" / "mine.yaml").write_text(GRID)
    first = begun("mine")
    edit(clone / "sweeps" / "mine.yaml", "1..3", "1..4")
    now = begun("mine")
    (cell, _) = (cell for cell in now.cells if cell.seed == 4)
    RunFolder(Path("runs") / cell.cell_id).path.mkdir(parents=True)
    record = {
        "cell_id": cell.cell_id,
        "config_id": cell.config_id,
        "seed": 4,
        "method": "dks",
        "choices": {},
        "label": "x",
    }
    record |= {"overrides": [], "status": "failed", "schema_version": 1}
    (Path("runs") / cell.cell_id / "record.json").write_text(json.dumps({**record, "attempts": []}))
    assert f"{SAID} {first.name}: 1 cell not begun, 1 more that were begun elsewhere;" in str(
        Changes().of(first)
    )


@pytest.mark.slow
def test_a_union_is_told_of_every_file_that_it_is_made_from(
    clone: Path, in_folder: Path, unedited: None
) -> None:
    parts = {
        "one": GRID,
        "two": "grids: [{method: [ds, dks], seed: 9}]",
        "both": "include: [one, two]",
    }
    for name, text in parts.items():
        (clone / "sweeps" / f"{name}.yaml").write_text(text)
    whole = begun("both")
    one, two = (manifest.read("results", part) for part in whole.parts)
    assert {*whole.definition} == {"conf", "both", "one", "two"} and {*two.definition} == {
        "conf",
        "two",
    }
    edit(clone / "sweeps" / "two.yaml", "ds, dks", "ds, dks, baseline")
    assert [Changes().of(each) is None for each in (whole, one, two)] == [False, True, False]
    assert ": 1 cell not begun;" in str(Changes().of(whole))
    edit(clone / "sweeps" / "both.yaml", "one, two", "two")
    assert ": 1 cell not begun, 6 no longer in it;" in str(Changes().of(whole))
    (clone / "sweeps" / "both.yaml").unlink()
    assert "is refused now: no sweep 'both'; choose from one, two" in str(Changes().of(whole))


def test_cells_that_follow_a_choice_are_no_news(clone: Path, in_folder: Path) -> None:
    grid = "- {method: dks, seed: [1, 2], choose: {recipe.lr: [0.1, 0.2], holdout: 8}}\n"
    (clone / "sweeps" / "mine.yaml").write_text(f"grids:\n- {{method: baseline}}\n{grid}")
    first = begun("mine")
    assert first.undecided
    for cell in first.selection:
        folder = RunFolder(Path("runs") / cell.cell_id)
        folder.path.mkdir(parents=True)
        record = {
            "cell_id": cell.cell_id,
            "config_id": cell.config_id,
            "seed": cell.seed,
            "method": "dks",
            "choices": {},
        }
        record |= {
            "label": "x",
            "overrides": [],
            "status": "done",
            "schema_version": 1,
            "attempts": [],
        }
        (folder.path / "record.json").write_text(
            json.dumps({**record, "final": {"val/top1_error": 1.0}})
        )
    edit(clone / "conf" / "config.yaml", "defaults:", "# a remark\ndefaults:")
    assert Changes().of(first) is None
    edit(clone / "sweeps" / "mine.yaml", "seed: [1, 2]", "seed: [1, 2, 3]")
    assert ": 2 cells not begun;" in str(Changes().of(first)), "two candidates with seed 3"


def test_the_tables_of_a_union_and_its_figures_say_that_it_has_other_parts(
    clone: Path,
    in_folder: Path,
    unedited: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in {
        "one": GRID,
        "two": "grids: [{method: [ds, dks], seed: 9}]",
        "both": "include: [one, two]",
    }.items():
        (clone / "sweeps" / f"{name}.yaml").write_text(text)
    whole = begun("both")
    edit(clone / "sweeps" / "both.yaml", "one, two", "two")
    line = (
        f"{SAID} {whole.name}: 0 cells not begun, 6 no longer in it; dks sweep run "
        f"{whole.name} goes by what it is now"
    )
    assert [table.changed for table in Study.open("both").tables()] == [line, line]
    monkeypatch.setattr("dks.results.figures.write", lambda figure, folder, name: [folder / name])
    monkeypatch.setattr("dks.results.figures.draw", lambda kind, table, source: None)
    with pytest.raises(SystemExit) as left:
        main(["figure", "both", "--kind", "dots"])
    assert (left.value.code, " ".join(capsys.readouterr().err.split())) == (0, f"{line} {line}")


def test_a_begun_sweep_is_listed_though_its_file_is_nonsense_by_now(
    clone: Path, in_folder: Path, unedited: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / "sweeps" / "mine.yaml").write_text(GRID)
    first = begun("mine", "sweep=mine")
    edit(clone / "sweeps" / "mine.yaml", "grids", "gridz")
    with pytest.raises(SystemExit) as left:
        main(["sweep", "list"])
    assert not left.value.code
    assert (
        f"{SAID} {first.name}, and is refused now: mine.yaml: no such key gridz"
        in capsys.readouterr().out
    )


def test_every_command_that_shows_a_sweep_says_so(
    clone: Path,
    in_folder: Path,
    unedited: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (clone / "sweeps" / "mine.yaml").write_text(
        f"base: {{{', '.join(each.replace('=', ': ') for each in TINY)}}}\n{GRID}"
    )
    given = ("tracking=off",)
    grid = grid_of(files.read("mine"), given, PARSER)
    for each in plan(grid, Composer(compose.compose_here)).manifests():
        manifest.write(each, "results")

    def told(*command: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(list(command))
        assert not left.value.code
        return " ".join(capsys.readouterr().out.split())

    shows = (
        ("table", "mine"),
        ("sweep", "status", "mine"),
        ("sweep", "list"),
        ("table", "mine", "--format", "md"),
    )
    with monkeypatch.context() as patched:
        patched.setattr(
            changes,
            "_planned",
            lambda begun: pytest.fail("composed again where nothing was edited"),
        )
        for command in shows:
            assert SAID not in told(*command)
    edit(clone / "sweeps" / "mine.yaml", "1..3", "1..4")
    line = f"{SAID} mine: 2 cells not begun; dks sweep run mine goes by what it is now"
    for command in shows:
        assert told(*command).count(line) == 1, command
    told("report", "mine")
    assert line in Path("results/mine/report.html").read_text()
    assert json.loads(told("table", "mine", "--json"))[0]["changed"] == line
    assert json.loads(told("sweep", "status", "mine", "--json"))["changed"] == line
    assert [each["changed"] for each in json.loads(told("sweep", "list", "--json"))] == [line]
    # One that was begun before this was written down is shown as it is.
    old = json.loads(Path("results/mine/sweep.json").read_text())
    del old["definition"]
    Path("results/mine/sweep.json").write_text(json.dumps(old))
    assert SAID not in told("table", "mine")
