"""A value that is chosen on held-out images.

For which cells, and what becomes of candidates that fail.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.cli.main import main
from dks.config import compose
from dks.config.compose import Composer
from dks.config.errors import RequestError
from dks.results.results import present
from dks.runs.record import RunFolder, Status
from dks.sweeps import engine, files, spec
from dks.sweeps.cell import Cell
from dks.sweeps.plan import plan
from dks.sweeps.spec import Grid
from tests.conftest import TINY

PARSER = OverridesParser.create()
CHOOSE = "choose: {kd_teacher.temperature: [1, 5], holdout: 8}"


def write(clone: Path, text: str) -> None:
    (clone / "sweeps" / "mine.yaml").write_text(text)


def mine(*overrides: str) -> Grid:
    return spec.grid_of(files.read("mine"), overrides, PARSER, Composer(compose.compose_here))


def candidates(grid: Grid) -> list[tuple[str, ...]]:
    """Of each choice: its place, and the values that are tried."""
    return [(*choice.labels.values(), *choice.candidates) for choice in grid.choices]


# --- which cells have a teacher


@pytest.mark.slow
def test_a_choice_is_made_wherever_the_configuration_has_a_teacher(clone: Path) -> None:
    """Whether it comes from a single key, a preset or an experiment of one's own, or a choice of
    the group.
    """
    taught = "# @package _global_\ndefaults: [ds, {override /kd_teacher: checkpoint}]\n"
    (clone / "conf" / "method" / "taught.yaml").write_text(taught)
    (clone / "conf" / "experiment").mkdir()
    (clone / "conf" / "experiment" / "taught.yaml").write_text(
        "# @package _global_\nkd_teacher: {kind: checkpoint}\n"
    )
    write(
        clone,
        f"base: {{kd_teacher.kind: checkpoint}}\ngrids:\n- {{aux: [ours, narrow], {CHOOSE}}}\n",
    )
    assert candidates(mine()) == [("ours", "1", "5"), ("narrow", "1", "5")] and mine().points == ()
    write(clone, f"grids:\n- {{method: [ds, taught, kd_c1], {CHOOSE}}}\n")
    assert candidates(mine()) == [("taught", "1", "5"), ("kd_c1", "1", "5")]
    assert [point.labels for point in mine().points] == [{"method": "ds"}]
    write(clone, f"base: {{+experiment: taught}}\ngrids:\n- {{seed: 1, {CHOOSE}}}\n")
    assert candidates(mine()) == [("1", "5")]
    # And not where the spelling only looks like one.
    (clone / "conf" / "method" / "kd_free.yaml").write_text("# @package _global_\ndefaults: [ds]\n")
    write(
        clone,
        f"grids:\n- {{method: [kd_free, kd_c1], {CHOOSE}}}\n- {{kd_teacher: checkpoint, "
        f"kd_teacher.kind: none}}\n",
    )
    assert candidates(mine()) == [("kd_c1", "-", "-", "1", "5")]
    assert len(mine().points) == 2


@pytest.mark.slow
def test_the_teacher_itself_can_be_chosen(clone: Path) -> None:
    for key in ("kd_teacher.kind", "teacher"):
        choose = f"choose: {{{key}: [none, checkpoint], holdout: 8}}"
        write(clone, f"base: {{strategy: none}}\ngrids:\n- {{aux: [ours, narrow], {choose}}}\n")
        assert candidates(mine()) == [
            ("ours", "none", "checkpoint"),
            ("narrow", "none", "checkpoint"),
        ]
        assert mine().points == ()
        settled = mine(f"{key}=checkpoint")
        assert (
            settled.choices == ()
            and [point.overrides[-1] for point in settled.points] == [f"{key}=checkpoint"] * 2
        )


def test_a_choice_that_is_for_no_cell_is_refused(clone: Path) -> None:
    write(clone, f"grids:\n- {{method: kd_c1, {CHOOSE}}}\n- {{method: [ds, dks], {CHOOSE}}}\n")
    with pytest.raises(
        RequestError, match=r"grid 2: choose: .* is chosen for cells with a teacher"
    ):
        mine()
    write(clone, f"grids:\n- {{method: [ds, kd_c1], {CHOOSE}}}\n")
    assert mine("method=ds").choices == (), "what is typed may leave none"


@pytest.mark.slow
def test_overrides_of_the_teacher_reach_the_cells_that_have_one(clone: Path) -> None:
    write(clone, "base: {kd_teacher.kind: checkpoint}\ngrids:\n- {method: [ds, dks]}\n")
    grid = mine("kd_teacher.temperature=1,5")
    assert [point.overrides[-2:] for point in grid.points] == [
        (f"method={method}", f"kd_teacher.temperature={value}")
        for method in ("ds", "dks")
        for value in (1, 5)
    ]
    write(clone, f"base: {{kd_teacher.kind: checkpoint}}\ngrids:\n- {{method: ds, {CHOOSE}}}\n")
    assert candidates(mine("kd_teacher.temperature=2,3,4")) == [("2", "3", "4")]
    assert (
        mine("kd_teacher.temperature=2").choices == ()
        and len(mine("kd_teacher.temperature=2").points) == 1
    )


@pytest.mark.slow
def test_a_plan_of_candidates_for_a_teacher_that_a_single_key_brings(
    clone: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        clone,
        "base: {data: imagenet, backbone: resnet18, strategy: none, kd_teacher.kind: torchvision,"
        f" kd_teacher.backbone: resnet50, kd_teacher.students: [c1]}}\ngrids:\n- {{seed: 1, "
        f"{CHOOSE}}}\n",
    )
    for given, temperatures in (
        ((), [1, 5]),
        (("kd_teacher.temperature=1,2,5",), [1, 2, 5]),
        (("kd_teacher.temperature=3",), [3]),
    ):
        with pytest.raises(SystemExit) as left:
            main(["sweep", "plan", "mine", "--probe", "0", "--json", *given])
        out, err = capsys.readouterr()
        assert not left.value.code, err
        found = json.loads(out)
        assert [cell["overrides"][-1] for cell in found["cells"]] == [
            f"kd_teacher.temperature={each}" for each in temperatures
        ]
        assert len(found["undecided"]) == (len(temperatures) > 1)
        assert all(
            ("data.holdout=8" in cell["overrides"]) == (len(temperatures) > 1)
            for cell in found["cells"]
        )


@pytest.mark.parametrize(
    ("choose", "values"),
    [
        ("{recipe.lr: [0.01, 0.02], holdout: 8}", ("0.01", "0.02")),
        ("{aux: [ours, narrow], holdout: 8}", ("ours", "narrow")),
        ("{recipe.milestones: [[1], []], holdout: 8}", ("[1]", "[]")),
        ("{loss.form: [cross_entropy, smoothed_kl], holdout: 8}", ("cross_entropy", "smoothed_kl")),
    ],
)
def test_any_key_can_be_chosen_and_none_needs_a_teacher(
    clone: Path, choose: str, values: tuple[str, ...]
) -> None:
    write(clone, f"grids:\n- {{method: dks, seed: [1, 2], choose: {choose}}}\n")
    (choice,) = mine().choices
    assert tuple(choice.candidates) == values and mine().points == ()
    key = choice.key
    assert [point.overrides for point in choice.final(values[1])] == [
        ("method=dks", f"seed={seed}", f"{key}={values[1]}") for seed in (1, 2)
    ]
    assert [point.overrides[-2:] for point in choice.candidates[values[0]]] == [
        ("data.holdout=8", f"{key}={values[0]}")
    ] * 2


# --- candidates that fail

FAILED = {"type": "NonFiniteLoss", "message": "non-finite loss at epoch 1, step 2"}


class Scripted:
    """A launcher whose cells end at once.

    By the learning rate with an error in percent, or failed.
    """

    name, detached, processes = "scripted", False, 1

    def __init__(self, ends: dict[float, float | dict[str, str]]) -> None:
        self.ends, self.launched = ends, list[tuple[float, int, int]]()

    def launch(self, cells: list[Cell]) -> list[Exception]:
        for cell in cells:
            rate, seed, holdout = cell.config.recipe.lr, cell.config.seed, cell.config.data.holdout
            self.launched.append((rate, seed, holdout))
            folder = RunFolder(Path(cell.config.runs_dir) / cell.cell_id)
            record, end = folder.read_record(), self.ends[rate]
            assert record is not None
            if isinstance(end, dict):
                record.status, record.error = Status.failed, end
            else:
                value = "val/top1_error" if holdout else "test/top1_error"
                record.status = Status.done
                record.final = {value: end + seed, "test/top1_error": end + seed, "epoch": 2.0}
            folder.write_record(record)
        return []


@pytest.fixture
def rates(clone: Path, in_folder: Path) -> None:
    """A sweep that chooses its learning rate."""
    base = ", ".join(each.replace("=", ": ") for each in TINY)
    grid = "{method: dks, seed: [1, 2], choose: {recipe.lr: [0.1, 0.2, 0.3], holdout: 8}}"
    write(
        clone,
        f"title: Mine\nbase: {{{base}, tracking: 'off'}}\ngrids:\n- {{method: baseline, "
        f"recipe.lr: 0.4, seed: 1}}\n- {grid}\n",
    )


def run(launcher: Scripted, policy: engine.Policy = engine.Policy()) -> int:  # noqa: B008 (it is frozen)
    composer = Composer(compose.compose_here)
    return engine.execute(lambda: plan(mine(), composer), launcher, policy, present)


def typed(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(command))
    return int(left.value.code or 0), " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_candidate_that_diverges_is_the_worst_and_the_table_says_so(
    rates: None, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = Scripted({0.1: FAILED, 0.2: 30.0, 0.3: 20.0, 0.4: 50.0})
    assert run(launcher) == 0
    out = capsys.readouterr().out
    line = (
        "method=dks: recipe.lr=0.3, chosen among 0.1, 0.2, 0.3 on held-out images; diverged, "
        "and so the worst: 0.1"
    )
    assert line in " ".join(out.split()) and "21.50(0.71)" in out
    assert sorted(launcher.launched)[-3:] == [(0.3, 2, 0), (0.3, 2, 8), (0.4, 1, 0)]
    assert Path("results/mine/table.md").read_text().count("chosen among") == 1
    # It is done with: nothing is launched again, no command calls it a failure, and `retry` begins
    #     it anew.
    again = Scripted(launcher.ends)
    assert (run(again), again.launched) == (0, [])
    assert typed(capsys, "sweep", "wait", "mine")[0] == 0
    assert line in typed(capsys, "table", "mine")[1]
    assert json.loads(typed(capsys, "table", "mine", "--json")[1])[0]["decided"] == [line]
    tried = Scripted({**launcher.ends, 0.1: 10.0})
    assert run(tried, engine.Policy(only=engine.UNSUCCESSFUL)) == 0
    assert tried.launched[:2] == [(0.1, 1, 8), (0.1, 2, 8)]


def test_a_table_of_one_cell_has_a_choice_as_well(
    clone: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ", ".join(each.replace("=", ": ") for each in TINY)
    choose = "choose: {recipe.lr: [0.1, 0.2], holdout: 8}"
    write(
        clone, f"base: {{{base}, tracking: 'off'}}\ngrids:\n- {{method: dks, seed: 1, {choose}}}\n"
    )
    assert run(Scripted({0.1: FAILED, 0.2: 20.0})) == 0
    line = (
        "recipe.lr=0.2, chosen among 0.1, 0.2 on held-out images; diverged, and so the worst: 0.1"
    )
    out = capsys.readouterr().out
    assert "21.00" in out and line in " ".join(out.split())
    assert "mine: 3 cells: 2 done, 1 failed" in typed(capsys, "sweep", "status", "mine")[1]


def test_one_seed_that_diverges_is_enough(rates: None, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Scripted({0.1: 10.0, 0.2: 30.0, 0.3: 20.0, 0.4: 50.0})
    assert run(launcher) == 0
    folder = next(
        each
        for each in map(RunFolder, Path("runs").iterdir())
        if (config := each.read_config()).recipe.lr == 0.1
        and config.data.holdout
        and config.seed == 2
    )
    record = folder.read_record()
    assert record is not None
    record.status, record.error = Status.failed, FAILED
    folder.write_record(record)
    assert run(launcher) == 0
    assert (
        "recipe.lr=0.3, chosen among 0.1, 0.2, 0.3 on held-out images; diverged, and so the "
        "worst: 0.1" in " ".join(capsys.readouterr().out.split())
    )


def test_all_candidates_may_diverge_and_then_a_line_says_so(
    rates: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Scripted({0.1: FAILED, 0.2: FAILED, 0.3: FAILED, 0.4: 50.0})) == 1
    line = (
        "method=dks: recipe.lr cannot be chosen among 0.1, 0.2, 0.3 on held-out images, for "
        "training diverged with every "
    )
    line += "one of them; give others"
    assert line in " ".join(capsys.readouterr().out.split())
    assert typed(capsys, "sweep", "wait", "mine")[0] == 1
    assert line in typed(capsys, "sweep", "status", "mine")[1]


def test_a_candidate_that_failed_for_another_reason_is_waited_for(
    rates: None, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"type": "RuntimeError", "message": "no room"}
    assert run(Scripted({0.1: broken, 0.2: FAILED, 0.3: 20.0, 0.4: 50.0})) == 1
    line = (
        "method=dks: 2 more cells follow when recipe.lr is chosen among 0.1, 0.2, 0.3 on "
        "held-out images"
    )
    assert f"{line}; diverged, and so the worst: 0.2" in " ".join(capsys.readouterr().out.split())
    again = Scripted({0.1: 10.0, 0.2: FAILED, 0.3: 20.0, 0.4: 50.0})
    assert run(again) == 0
    assert "recipe.lr=0.1, chosen among" in " ".join(capsys.readouterr().out.split())
