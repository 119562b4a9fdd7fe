"""The engine.

A command shows the cells that it planned, and a launch that is refused leaves nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.cli.main import main
from dks.config.errors import RequestError
from dks.config.overrides import checked
from dks.results.results import present
from dks.runs.record import RunFolder, Status
from dks.sweeps import engine, files, manifest, spec, status
from dks.sweeps.cell import Cell
from dks.sweeps.plan import plan
from dks.sweeps.spec import Grid, expand
from tests.conftest import ROOT, TINY, composed, start

PARSER = OverridesParser.create()
SMALL = (*TINY, "tracking=off")


class Instant:
    """A launcher whose cells are done at once, with their seeds as their errors, and 10 more in a
    folder of another name.
    """

    name, detached, processes = "instant", False, 1

    def __init__(
        self, meanwhile: Callable[[], object] = lambda: None, error: Exception | None = None
    ) -> None:
        self.meanwhile, self.error = meanwhile, error

    def launch(self, cells: list[Cell]) -> list[Exception]:
        if self.error is not None:
            raise self.error
        for cell in cells:
            folder = RunFolder(Path(cell.config.runs_dir) / cell.cell_id)
            record = folder.read_record()
            assert record is not None
            record.status = Status.done
            error = cell.config.seed + (0.0 if cell.config.runs_dir == "runs" else 10.0)
            record.final = record.best = {"test/top1_error": error, "epoch": 2.0}
            folder.write_record(record)
        self.meanwhile()
        return []


def typed(*overrides: str) -> Grid:
    return expand(PARSER.parse_overrides(checked([*overrides, *SMALL])))


def named(*overrides: str) -> Grid:
    return spec.grid_of(files.read("mine"), overrides, PARSER)


def run(grid: Grid, launcher: Instant) -> int:
    return engine.execute(
        lambda: plan(grid, lambda given: composed(*given)), launcher, engine.Policy(), present
    )


def shown(out: str) -> list[list[str]]:
    """The labels and the errors of every table."""
    tables: list[list[str]] = []
    for line in out.splitlines():
        if line.startswith("┏"):
            tables.append([])
        elif line.startswith("│"):
            tables[-1].append(" ".join(line.replace("│", " ").replace("*", "").split()))
    return tables


def results(folder: Path) -> dict[str, list[int]]:
    """Sweep -> the seeds of the cells that it is made of; its table must have the same."""
    found = {}
    for path in folder.glob("results/*/sweep.json"):
        found[path.parent.name] = sorted(
            cell["seed"] for cell in json.loads(path.read_text())["cells"]
        )
        told = json.loads((path.parent / "provenance.json").read_text())
        assert (
            sorted(run["seed"] for cell in told["cells"] for run in cell["runs"])
            == found[path.parent.name]
        )
    return found


@pytest.fixture
def sweeps(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sweeps for this test alone."""
    folder = tmp_path_factory.mktemp("sweeps")
    monkeypatch.setattr(files, "declarations", lambda name: folder)
    return folder


# --- each command shows its own cells


@pytest.mark.parametrize(
    ("other", "theirs"), [("5..7", [5, 6, 7]), ("2,5", [2, 5]), ("1..3", [1, 2, 3])]
)
def test_two_sweeps_over_the_same_keys_have_a_table_and_a_folder_each(
    in_folder: Path, capsys: pytest.CaptureFixture[str], other: str, theirs: list[int]
) -> None:
    first, second = typed("seed=1,2"), typed(f"seed={other}")
    assert run(first, Instant(lambda: run(second, Instant()))) == 0
    told, own = shown(capsys.readouterr().out)
    assert (told, own) == (
        [f"{sum(theirs) / len(theirs):.2f}({1 if len(theirs) == 3 else 2.12:.2f})"],
        ["1.50(0.71)"],
    )
    assert results(in_folder) == {first.name: [1, 2], second.name: theirs}


def test_a_command_shows_its_cells_when_another_one_takes_its_very_name(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who gives two sweeps one name has the folder of the one that was begun last.

    Nobody's table is another's.
    """
    first, second = typed("seed=1,2", "sweep=mine"), typed("seed=5,6", "sweep=mine")
    assert run(first, Instant(lambda: run(second, Instant()))) == 0
    out, err = capsys.readouterr()
    assert shown(out) == [["5.50(0.71)"], ["1.50(0.71)"]]
    assert (
        "not written: results/mine is another sweep's by now, begun under the same name"
        in " ".join(err.split())
    )
    assert results(in_folder) == {"mine": [5, 6]}


def test_a_named_sweep_twice_at_once_with_other_overrides(
    sweeps: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ", ".join(each.replace("=", ": ").replace("off", "'off'") for each in SMALL)
    grid = "{aux: [ours, narrow], seed: [1, 2]}"
    (sweeps / "mine.yaml").write_text(
        f"table: {{rows: [aux]}}\nbase: {{{base}}}\ngrids: [{grid}]\n"
    )
    assert run(named(), Instant(lambda: run(named("seed=3"), Instant()))) == 0
    assert shown(capsys.readouterr().out) == [
        ["ours 3.00", "narrow 3.00"],
        ["ours 1.50(0.71)", "narrow 1.50(0.71)"],
    ]
    assert results(in_folder) == {"mine": [1, 1, 2, 2], named("seed=3").name: [3, 3]}
    # An override that changes no result is no part of the name.
    assert (
        run(
            named("device=cpu", "seed=4"),
            Instant(lambda: run(named("runs_dir=elsewhere", "seed=4"), Instant())),
        )
        == 0
    )
    assert shown(capsys.readouterr().out) == [
        ["ours 14.00", "narrow 14.00"],
        ["ours 4.00", "narrow 4.00"],
    ]
    assert manifest.read("results", named("seed=4").name).runs_dir == "elsewhere"
    told = json.loads(Path("results", named("seed=4").name, "provenance.json").read_text())
    assert {Path(run["place"]).parent for cell in told["cells"] for run in cell["runs"]} == {
        Path("elsewhere")
    }


def test_what_is_waited_for_is_what_was_there_at_the_beginning(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = typed("seed=1,2", "sweep=mine")
    run(grid, Instant())
    capsys.readouterr()
    monkeypatch.setattr(
        status,
        "wait",
        lambda look, every, say: (run(typed("seed=5,6", "sweep=mine"), Instant()), look())[1],
    )
    with pytest.raises(SystemExit) as left:
        main(["sweep", "wait", "mine"])
    assert (left.value.code, shown(capsys.readouterr().out)) == (
        0,
        [["5.50(0.71)"], ["1.50(0.71)"]],
    )


def test_the_beginning_of_a_name_means_the_sweep_that_has_all_cells_of_the_others(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's first sweep, then one column more.

    One table, under the name without digits as well.
    """
    for seeds in ("1,2", "1..3"):
        run(typed(f"seed={seeds}"), Instant())
        assert manifest.read("results", "seed").name == typed(f"seed={seeds}").name
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["table", "seed"])
    assert (left.value.code, shown(capsys.readouterr().out)) == (0, [["2.00(1.00)"]])
    run(typed("seed=4,5"), Instant())
    with pytest.raises(
        RequestError, match="seed was begun with several sets of values; choose from seed-"
    ):
        manifest.read("results", "seed")


@pytest.mark.slow
def test_processes_at_once_show_their_own_cells_and_are_judged_by_them(in_folder: Path) -> None:
    """Disjoint and overlapping values; one of them has a cell that fails."""
    small = (*SMALL, "recipe.epochs=1", "data.train_images=320", "hydra.launcher.slots=1")
    given = {("0.01", "0.02"): 0, ("0.05", "0.06", "0.07"): 0, ("0.02", "0.06", "1e30"): 1}
    command = [str(ROOT / "train.py"), "-m", *small]
    begun = {rates: start([*command, f"recipe.lr={','.join(rates)}"], in_folder) for rates in given}
    for rates, process in begun.items():
        out, err = process.communicate(timeout=400)
        assert process.returncode == given[rates], err
        assert [row.split()[0] for row in shown(out)[0]] == [str(float(rate)) for rate in rates]
        assert ("failed" in out) == (given[rates] == 1)


# --- a launch that is refused


def traces(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_launch_that_is_refused_leaves_nothing(in_folder: Path) -> None:
    with pytest.raises(RequestError, match="no room"):
        run(typed("seed=1,2"), Instant(error=RequestError("no room")))
    assert traces(in_folder) == {}


def test_a_refused_launch_leaves_what_was_there_before(in_folder: Path) -> None:
    run(typed("seed=1,2", "sweep=mine"), Instant())
    (failed,) = (
        folder
        for folder in map(RunFolder, in_folder.glob("runs/*"))
        if folder.read_record().seed == 2
    )  # type: ignore[union-attr]
    record = failed.read_record()
    assert record is not None
    record.status, record.error = Status.failed, {"type": "E", "message": "m"}
    failed.write_record(record)
    before = traces(in_folder)
    with pytest.raises(RequestError, match="no room"):
        run(typed("seed=2,3", "sweep=mine"), Instant(error=RequestError("no room")))
    assert traces(in_folder) == before
    # Nothing is taken back of a launch that had begun.
    failing = Instant(error=None)
    failing.meanwhile = lambda: (_ for _ in ()).throw(RequestError("too late"))
    with pytest.raises(RequestError, match="too late"):
        run(typed("seed=2,3", "sweep=mine"), failing)
    assert results_of_runs(in_folder) == {1: "done", 2: "done", 3: "done"}
    assert [cell.seed for cell in manifest.read("results", "mine").cells] == [2, 3]


def results_of_runs(folder: Path) -> dict[int, str]:
    records = [json.loads(path.read_text()) for path in folder.glob("runs/*/record.json")]
    return {
        record["seed"]: record["status"]
        for record in sorted(records, key=lambda record: record["seed"])
    }


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("tracking", ["local", "off"])
def test_without_slurm_nothing_stays_of_a_submission(
    in_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tracking: str,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as left:
        main(
            [
                "sweep",
                "run",
                "methods",
                "method=dks",
                "seed=1,2",
                "--launcher",
                "slurm",
                f"tracking={tracking}",
                *TINY,
            ]
        )
    assert left.value.code == 2
    assert "error: no job can be submitted" in capsys.readouterr().err
    assert traces(in_folder) == {}
    with pytest.raises(SystemExit) as left:
        main(["train", "hydra/launcher=slurm", f"tracking={tracking}", *TINY])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "1 cell (1 missing); 1 to run" in said and "running" not in said
    assert traces(in_folder) == {}


def test_a_plan_of_one_cell_says_what_would_run(
    sweeps: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweeps / "mine.yaml").write_text("grids: [{method: dks, seed: 1}]\n")
    command = ["sweep", "plan", "mine", "--probe", "0", *SMALL]
    with pytest.raises(SystemExit) as left:
        main(command)
    out = capsys.readouterr().out
    assert (left.value.code, out.splitlines()[1]) == (0, "1 cell (1 missing); 1 to run")
    assert "running" not in out
    assert traces(in_folder) == {}


def test_a_named_sweep_of_one_cell_is_a_sweep(
    sweeps: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweeps / "mine.yaml").write_text("grids: [{method: dks}]\n")
    grid = named("seed=4", *SMALL)
    assert run(grid, Instant()) == 0
    out, err = capsys.readouterr()
    assert (shown(out), results(in_folder)) == ([["4.00"]], {grid.name: [4]})
    assert "1 cell (1 missing); 1 to run" in err and "running" not in err
    with pytest.raises(SystemExit) as left:
        main(["sweep", "status", "mine"])
    assert not left.value.code
    assert capsys.readouterr().out.startswith(f"{grid.name}: 1 cells: 1 done\n")
