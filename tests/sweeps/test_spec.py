"""Grids and named sweeps: from overrides to points, and their names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.cli.main import main
from dks.config.errors import RequestError
from dks.config.overrides import checked
from dks.sweeps import files, spec
from dks.sweeps.spec import Grid, expand
from tests.conftest import TINY


def grid(*overrides: str) -> Grid:
    return expand(OverridesParser.create().parse_overrides(list(overrides)))


def test_a_grid_is_the_product_in_the_order_typed() -> None:
    found = grid("aux=ours,shallow", "recipe.epochs=3", "seed=range(1,3)")
    assert found.axes == ("aux", "seed")
    assert [point.overrides for point in found.points] == [
        ("aux=ours", "recipe.epochs=3", "seed=1"),
        ("aux=ours", "recipe.epochs=3", "seed=2"),
        ("aux=shallow", "recipe.epochs=3", "seed=1"),
        ("aux=shallow", "recipe.epochs=3", "seed=2"),
    ]
    assert found.points[1].labels == {"aux": "ours", "seed": "2"}


def test_a_single_run_is_a_grid_of_one_point_without_axes() -> None:
    assert grid("aux=ours").points[0].labels == {}
    assert grid().points[0].overrides == ()
    assert grid("aux=choice(ours)").axes == ()


def test_a_value_given_twice_is_refused_and_a_key_given_twice_counts_as_last_typed() -> None:
    with pytest.raises(
        RequestError, match="aux=ours,ours,shallow has ours twice; give each value once"
    ):
        grid("aux=ours,ours,shallow")
    assert [point.overrides for point in grid("seed=1,2", "seed=5").points] == [("seed=5",)]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["aux=a,b", "strategy=x,y"], "aux-strategy"),
        (["aux=a,b", "strategy=x,y", "seed=1,2,3"], "aux-strategy"),
        (["seed=1,2,3"], "seed"),
        (["aux=a,b", "device=cpu", "tracking=off", "data.root=here"], "aux"),
        (["recipe.lr=1,2", "+x/y=1,2"], "recipe.lr-_x_y"),
    ],
)
def test_a_sweep_is_named_by_its_axes_and_six_digits_for_its_values(
    overrides: list[str], name: str
) -> None:
    assert re.fullmatch(f"{re.escape(name)}-[0-9a-f]{{6}}", grid(*overrides).name)


def test_all_values_that_matter_are_in_the_name_whatever_their_order_and_spelling() -> None:
    one = grid("strategy=x,y", "aux=ours", "seed=1", "recipe.lr=1").name
    assert (
        one == grid("recipe.lr=1.0", "seed=1", "aux_design=ours", "strategy=y,x", "device=cpu").name
    )
    others = [
        grid("strategy=x,y", "aux=shallow", "seed=1", "recipe.lr=1"),
        grid("strategy=x,y,z", "aux=ours", "seed=1", "recipe.lr=1"),
        grid("strategy=x,z", "aux=ours", "seed=1", "recipe.lr=1"),
    ]
    assert len({one, *(each.name for each in others)}) == 4


def test_an_interval_has_no_values_to_run() -> None:
    with pytest.raises(RequestError, match="name the values"):
        grid("recipe.lr=interval(0,1)")


# --- named sweeps


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sweeps for this test alone."""
    monkeypatch.setattr(files, "declarations", lambda folder: tmp_path)
    return tmp_path


def named(*overrides: str) -> Grid:
    return spec.grid_of(files.read("mine"), overrides, OverridesParser.create())


def test_a_named_sweep_is_the_union_of_its_grids(sweeps: Path) -> None:
    (sweeps / "mine.yaml").write_text(
        "title: My table\nbase: {recipe.epochs: 3}\n"
        "grids:\n- {method: [baseline], seed: [1, 2]}\n- {aux: [ours], seed: [1, 2]}\n"
    )
    found = named("device=cpu")
    assert (found.name, found.title, found.axes) == ("mine", "My table", ("method", "seed", "aux"))
    assert [point.overrides for point in found.points] == [
        ("recipe.epochs=3", "method=baseline", "seed=1", "device=cpu"),
        ("recipe.epochs=3", "method=baseline", "seed=2", "device=cpu"),
        ("recipe.epochs=3", "aux=ours", "seed=1", "device=cpu"),
        ("recipe.epochs=3", "aux=ours", "seed=2", "device=cpu"),
    ]
    assert found.points[2].labels == {"method": "-", "seed": "1", "aux": "ours"}


def test_an_override_for_a_swept_key_replaces_its_values(sweeps: Path) -> None:
    (sweeps / "mine.yaml").write_text("grids:\n- {aux: [ours, shallow], seed: [1, 2]}\n")
    assert len(named().points) == 4
    assert named("seed=7").axes == ("aux",)
    assert len(named("seed=7").points) == 2
    assert len(named("seed=7,8,9").points) == 6


@pytest.mark.slow
def test_a_sweep_of_the_project_plans_and_runs_to_its_table(in_folder: Path, capsys: Any) -> None:
    name, small = "methods", [*TINY, "recipe.epochs=1", "tracking=off", "seed=1"]
    with pytest.raises(SystemExit) as left:
        main(["sweep", "plan", name, "--json", *small])
    assert not left.value.code
    planned = json.loads(capsys.readouterr().out)
    assert {cell["state"] for cell in planned["cells"]} == {"missing"}
    assert all(
        set(cell) == {"cell_id", "config_id", "seed", "overrides", "state"}
        for cell in planned["cells"]
    )
    assert not list(in_folder.iterdir()), "planning leaves nothing behind"
    with pytest.raises(SystemExit) as left:
        main(["sweep", "run", name, *small])
    assert not left.value.code
    captured = capsys.readouterr()
    assert f"{len(planned['cells'])} to run" in captured.err
    assert files.read(name).title in captured.out
    assert {path.name for path in (in_folder / "runs").iterdir()} == {
        cell["cell_id"] for cell in planned["cells"]
    }
    with pytest.raises(SystemExit):
        main(["sweep", "plan", name, *small])
    assert "nothing to launch" in capsys.readouterr().out


def test_sweeps_are_listed(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "list", "--json"])
    assert [sweep["name"] for sweep in json.loads(capsys.readouterr().out)] == files.names()
    with pytest.raises(SystemExit) as left:
        main(["sweep", "run", "nope"])
    assert left.value.code == 2
    assert (
        capsys.readouterr().err
        == f"error: no sweep 'nope'; choose from {', '.join(files.names())}\n"
    )


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("seed=1..5", "seed=1,2,3,4,5"),
        ("++seed=-2..0", "++seed=-2,-1,0"),
        ("seed=0..100", "seed=range(0,101)"),
        ("seed=1..3,7", "seed=1,2,3,7"),
        ("seed=choice(5,1..2)", "seed=choice(5,1,2)"),
        ("data.root=..", "data.root=.."),
        ("data.root=../1..3", "data.root=../1..3"),
        ("data.name='1..3'", "data.name='1..3'"),
        ("backbone=1..3", "backbone=1..3"),
    ],
)
def test_a_range_of_whole_numbers_is_typed_as_it_stands_in_files(typed: str, read: str) -> None:
    assert checked([typed]) == [read]


@pytest.mark.parametrize(
    "typed",
    [
        ("recipe.lr=0.1,0.2", "++recipe.lr=0.5"),
        ("aux=ours,narrow", "~aux"),
        ("aux=ours", "aux_design=ours,narrow"),
    ],
)
def test_a_key_that_is_swept_stands_there_in_one_spelling(typed: tuple[str, str]) -> None:
    """Hydra takes the last one for every cell, whatever the first makes the table say of it."""
    one, other = (each.partition("=")[0] for each in typed)
    with pytest.raises(RequestError) as refused:
        grid(*typed)
    assert str(refused.value) == f"{one} and {other} are the same key; give one of them"


def test_a_range_means_the_same_for_every_command(
    sweeps: Path, in_folder: Path, capsys: Any
) -> None:
    (sweeps / "mine.yaml").write_text("grids:\n- {method: dks, seed: [1, 2]}\n")
    assert (named("seed=3..5").name, named("seed=3..5").points) == (
        named("seed=3,4,5").name,
        named("seed=3,4,5").points,
    )
    for command, wanted in (
        (["sweep", "plan", "mine", "--probe", "0"], [3, 4, 5]),
        (["table", "mine"], 3),
    ):
        with pytest.raises(SystemExit) as left:
            main([*command, "seed=3..5", "--json"])
        assert not left.value.code
        found = json.loads(capsys.readouterr().out)
        assert wanted == (
            [cell["seed"] for cell in found["cells"]]
            if "plan" in command
            else found[0]["cells"][0]["wanted"]
        )
