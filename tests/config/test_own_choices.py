"""Choices that users write into `conf/` of their own clone.

Experiments with what they ask of Hydra, and method presets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dks.cli.main import main
from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.sweeps import engine
from tests.conftest import TINY, config, queued

Run = Callable[..., tuple[int, str, str]]


def write(clone: Path, group: str, name: str, text: str) -> None:
    (clone / "conf" / group).mkdir(exist_ok=True)
    (clone / "conf" / group / f"{name}.yaml").write_text(f"# @package _global_\n{text}")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The launchers and the cells of sweeps that would be run, in place of running them."""
    seen: list[tuple[str, list[str]]] = []

    def instead(make: Any, launcher: engine.Launcher, policy: engine.Policy, present: Any) -> int:
        seen.append((launcher.name, [cell.place for cell in make().cells]))
        return 0

    monkeypatch.setattr(engine, "execute", instead)
    return seen


# --- what an experiment asks of Hydra


@pytest.mark.slow
def test_the_launcher_of_an_experiment_is_used_and_the_command_line_has_the_last_word(
    clone: Path, run_here: Run, launched: list[tuple[str, list[str]]]
) -> None:
    write(
        clone,
        "experiment",
        "mine",
        "defaults:\n  - override /hydra/launcher: basic\n  - override /aux_design: narrow\n",
    )
    assert run_here("-m", "+experiment=mine", "seed=1,2")[0] == 0
    assert run_here("-m", "+experiment=mine", "seed=1,2", "hydra/launcher=local")[0] == 0
    assert run_here("-m", "seed=1,2")[0] == 0
    assert launched == [(name, ["seed=1", "seed=2"]) for name in ("basic", "local", "local")]


@pytest.mark.rest_slow(5)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "defaults: [{override /hydra/launcher: joblib}]",
            "hydra/launcher=joblib: no such choice; choose from basic, local",
        ),
        (
            "hydra: {sweeper: {params: {seed: '1,2'}}}",
            "hydra.sweeper.params: no such key; a sweep is typed, as in -m seed=1..5",
        ),
        ("hydra: {sweeper: {n_jobs: 2}}", "hydra.sweeper.n_jobs: no such key"),
        (
            "hydra: {launcher: {n_jobs: 2}}",
            "experiment/mine.yaml: hydra.launcher.n_jobs: no such key; keys here are",
        ),
        (
            "defaults: [{override /hydra/sweeper: basic}]",
            "hydra/sweeper=basic: sweeps are planned in one way only; drop it",
        ),
        ("hydra: {mode: RUN}", "hydra.mode=RUN: a single run is planned as a sweep is; drop it"),
        (
            "hydra: {sweep: {dir: elsewhere}}",
            "hydra.sweep.dir=elsewhere: runs are kept in runs_dir; set that",
        ),
        (
            "hydra: {sweep: {subdir: one}}",
            "hydra.sweep.subdir=one: the folder of a run is named after its cell; drop it",
        ),
        (
            "defaults: [{override /hydra/launcher: null}]",
            "hydra/launcher=null: hydra/launcher takes one choice, by its name; ch",
        ),
        (
            "defaults: [{override /recipe: null}]",
            "recipe=null: recipe takes one choice, by its name; choose from cifar_resnet",
        ),
        (
            "defaults: [{override /label_noise: null}]",
            "label_noise=null: label_noise takes one choice, by its name; choose from",
        ),
        (
            "hydra: {output_subdir: one}",
            "hydra.output_subdir=one: what is kept of a run is in the folder of its cell; drop it",
        ),
        (
            "hydra: {searchpath: ['runs']}",
            "experiment/mine.yaml: hydra.searchpath: choices of your own are files "
            "conf/GROUP/NAME.yaml",
        ),
        (
            "hydra: {run: {dir: elsewhere}}",
            "hydra.run.dir=elsewhere: runs are kept in runs_dir; set that",
        ),
        (
            "hydra: {job: {chdir: true}}",
            "hydra.job.chdir=True: runs begin in the folder in which the command was typed",
        ),
        (
            "hydra: {job: {env_set: {A: b}}}",
            "hydra.job.env_set={'A': 'b'}: set the variables of the command itself",
        ),
    ],
)
def test_what_hydra_cannot_do_here_is_refused_with_what_to_write(
    clone: Path, run_here: Run, in_folder: Path, text: str, said: str
) -> None:
    write(clone, "experiment", "mine", text)
    status, out, err = run_here("+experiment=mine")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {said}") and err.count("\n") == 1
    assert list(in_folder.iterdir()) == []


@pytest.mark.slow
def test_a_launcher_that_only_some_cells_ask_for_is_refused(
    clone: Path, run_here: Run, in_folder: Path
) -> None:
    write(clone, "experiment", "one", "defaults: [{override /hydra/launcher: basic}]")
    write(clone, "experiment", "two", "hydra: {sweeper: {retries: 2}}")
    (clone / "sweeps" / "mine.yaml").write_text(
        "base: {hydra/launcher: basic}\ngrids: [{seed: [1, 2]}]\n"
    )
    status, _, err = run_here("-m", "+experiment=one,two")
    assert status == 2
    assert [line.partition(", but")[0] for line in err.splitlines()] == [
        "error: +experiment=one: hydra.launcher is set in a file that not all cells have",
        "error: +experiment=two: hydra.sweeper is set in a file that not all cells have",
    ]
    assert err.splitlines()[0].endswith(
        "type it beside the sweep, as in hydra/launcher=NAME or hydra.launcher.KEY=VALUE"
    )
    with pytest.raises(SystemExit) as left:
        main(["sweep", "run", "mine"])
    assert left.value.code == 2
    assert list(in_folder.iterdir()) == []


def test_a_group_of_ones_own_is_chosen_with_a_plus(clone: Path, run_here: Run) -> None:
    write(clone, "experiment", "mine", "seed: 7\n")
    assert run_here("experiment=mine")[2] == (
        "error: experiment: the configuration has no choice of it; add one with "
        "+experiment=NAME, of mine\n"
    )
    assert (
        run_here("+experiment=null")[2]
        == "error: +experiment=null: experiment takes one choice, by its name; choose from mine\n"
    )
    assert config("+experiment=mine").seed == 7


# --- method presets


def test_a_preset_of_ones_own_is_what_its_file_says(clone: Path) -> None:
    write(
        clone,
        "method",
        "halved",
        "defaults: [ds, {override /aux_design: narrow}]\nloss: {alpha: 0.5}\n",
    )
    write(
        clone,
        "method",
        "unmatched",
        "defaults: [{override /aux_design: none}, {override /aux_positions: none}]\n",
    )
    halved = config("method=halved")
    assert (halved.aux_design.width, halved.aux_positions.at, halved.loss.alpha) == (
        0.5,
        ["c2", "c3"],
        0.5,
    )
    assert cell_id(halved) == cell_id(config("method=ds", "aux=narrow", "loss.alpha=0.5")), (
        "its name is no part of the cell"
    )
    assert config("method=unmatched", "strategy=none").aux_design.kind == "none"
    # What the file leaves open may be chosen beside it.
    write(clone, "method", "alone", "defaults: [{override /matching_strategy: none}]\n")
    assert config(
        "method=alone", "positions=c3", "aux=shallow", "loss.alpha=2", "seed=3"
    ).aux_positions.at == ["c3"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "aux=shallow",
            "method=halved contradicts aux_design=shallow, for its file has narrow; drop one "
            "of them",
        ),
        (
            "strategy=topdown",
            "method=halved contradicts matching_strategy=topdown, for its file has none; drop "
            "one of them",
        ),
        (
            "loss.alpha=1",
            "method=halved contradicts loss.alpha=1.0, for its file has 0.5; drop one of them",
        ),
        (
            "loss.form=smoothed_kl",
            "method=halved contradicts loss.form=smoothed_kl, for its file has cross_entropy; "
            "drop one of them",
        ),
        (
            "noise=uniform",
            "method=halved contradicts label_noise=uniform, for its file has none; drop one "
            "of them",
        ),
    ],
)
def test_what_contradicts_a_preset_of_ones_own_is_refused(
    clone: Path, typed: str, said: str
) -> None:
    groups = "defaults: [ds, {override /aux_design: narrow}, {override /label_noise: none}]"
    write(clone, "method", "halved", f"{groups}\nloss: {{alpha: 0.5, form: cross_entropy}}\n")
    with pytest.raises(RequestError) as refused:
        config("method=halved", typed)
    assert said in refused.value.problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "defaults: [{override /aux_design: narrow}]",
            "mine.yaml: it cannot override aux_design; write # @package _global_ in its",
        ),
        (
            "loss: {alpha: 1}",
            "method: no such key; files of conf/method have # @package _global_ in their "
            "first line",
        ),
        (
            "# @package _global_\nloss: {alpha: 1\nseed: 2",
            "conf/method/mine.yaml, line 3: expected ',' or '}', but got ':'",
        ),
        ("# @package _global_\nloss: [\x01]", "special characters are not allowed in"),
    ],
)
def test_a_file_that_is_not_written_as_it_must_be_is_named(
    clone: Path, run_here: Run, text: str, said: str
) -> None:
    (clone / "conf" / "method" / "mine.yaml").write_text(text)
    status, _, err = run_here("method=mine")
    assert (status, err.count("\n"), said in err, "mine" in err) == (2, 1, True, True), err


@pytest.mark.slow
def test_tables_and_records_call_it_by_its_name(
    clone: Path, run_here: Run, in_folder: Path
) -> None:
    write(
        clone,
        "method",
        "halved",
        "defaults: [ds, {override /aux_design: narrow}]\nloss: {alpha: 0.5}\n",
    )
    small = (*TINY, "recipe.epochs=1", "hydra/launcher=basic")
    status, out, err = run_here("-m", "method=halved,baseline", *small)
    assert status == 0, err
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == [
        "halved",
        "baseline",
    ]
    made = [json.loads(path.read_text()) for path in in_folder.glob("runs/*/record.json")]
    assert sorted(each["method"] for each in made) == ["baseline", "halved"]
    (provenance,) = in_folder.glob("results/*/provenance.json")
    assert sorted(cell["method"] for cell in json.loads(provenance.read_text())["cells"]) == [
        "baseline",
        "halved",
    ]


def test_a_preset_of_an_extension_is_one_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_folder: Path
) -> None:
    folder = tmp_path / "theirs"
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "nothing.py").touch()
    text = "# @package _global_\ndefaults: [{override /matching_strategy: topdown}]\n"
    (folder / "conf" / "method" / "downwards.yaml").write_text(text)
    monkeypatch.setenv("DKS_EXTENSIONS", str(folder))
    assert config("method=downwards", "aux=narrow").matching_strategy.name == "topdown"
    with pytest.raises(
        RequestError,
        match="method=downwards contradicts matching_strategy=bidir, for its file has topdown",
    ):
        config("method=downwards", "strategy=bidir")


# --- a run's own files are not choices


@pytest.mark.parametrize("option", ["--config-dir", "-cp"])
def test_a_run_is_not_begun_from_the_files_of_another_one(
    option: str, in_folder: Path, run_here: Run
) -> None:
    """Hydra would go on with its defaults: the line names the command that does what was meant."""
    made = queued(in_folder, "recipe.lr=0.07", "data.root='a b'")
    before = sorted(in_folder.rglob("*"))
    status, out, err = run_here(option, f"runs/{made.cell_id}", "-cn", "config", "seed=9")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"config-{'dir' if option == '--config-dir' else 'path'} runs/{made.cell_id}: " in err
    assert "type what made that: python train.py data=synthetic" in err
    assert "recipe.lr=0.07 'data.root='\"'\"'a b'\"'\"'' seed=9 tracking=off" in err
    status, _, err = run_here("-m", option, f"runs/{made.cell_id}", "seed=8,9")
    assert (
        status,
        "type what made that: python train.py -m data=synthetic" in err,
        "seed=8,9" in err,
    ) == (2, True, True)
    assert sorted(in_folder.rglob("*")) == before
