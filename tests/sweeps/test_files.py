"""Sweep files: their format, what overrides do to them, and the sweeps of the project."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.config.schema import Config
from dks.sweeps import files, spec
from dks.sweeps.files import read, written
from dks.sweeps.spec import Grid, Point
from tests.conftest import composed

PARSER = OverridesParser.create()


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sweeps for this test alone."""
    monkeypatch.setattr(files, "declarations", lambda folder: tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "mine") -> None:
    (folder / f"{name}.yaml").write_text(text)


def grid_of(name: str, *overrides: str) -> Grid:
    return spec.grid_of(files.read(name), overrides, PARSER)


def mine(*overrides: str) -> Grid:
    return grid_of("mine", *overrides)


def cells(grid: Grid) -> list[str]:
    return [" ".join(point.overrides) for point in grid.points]


# --- the format


def test_a_range_is_inclusive_and_a_scalar_is_a_list_of_one(sweeps: Path) -> None:
    write(sweeps, "grids:\n- {method: dks, seed: 2..4}\n- {method: ds, seed: [0, 7..8]}")
    assert cells(mine()) == [
        *("method=dks seed=2", "method=dks seed=3", "method=dks seed=4"),
        *("method=ds seed=0", "method=ds seed=7", "method=ds seed=8"),
    ]


def test_zipped_keys_change_together_and_everything_else_is_a_product(sweeps: Path) -> None:
    write(
        sweeps,
        "grids:\n- seed: [1, 2]\n  zip:\n  - {noise: [none, uniform], label_noise.ratio: [0, "
        "0.5]}\n"
        "  - {recipe.lr: [0.1, 0.2], recipe.epochs: [2, 4]}\n",
    )
    found = cells(mine())
    assert len(found) == len(set(found)) == 8
    assert found[:3] == [
        "seed=1 noise=none label_noise.ratio=0 recipe.lr=0.1 recipe.epochs=2",
        "seed=1 noise=none label_noise.ratio=0 recipe.lr=0.2 recipe.epochs=4",
        "seed=1 noise=uniform label_noise.ratio=0.5 recipe.lr=0.1 recipe.epochs=2",
    ]


def test_what_an_exclude_matches_is_left_out_whatever_the_spelling(sweeps: Path) -> None:
    write(
        sweeps,
        "base: {data: cifar10}\ngrids:\n- {aux: [ours, narrow], recipe.lr: [0.1, 1], seed: 1..3,\n"
        "   exclude: [{aux_design: narrow, recipe.lr: 1.0}, {data: cifar10, aux: ours, seed: "
        "2..3}]}\n",
    )
    assert cells(mine()) == [
        "data=cifar10 aux=ours recipe.lr=0.1 seed=1",
        "data=cifar10 aux=ours recipe.lr=1 seed=1",
        *(f"data=cifar10 aux=narrow recipe.lr=0.1 seed={seed}" for seed in (1, 2, 3)),
    ]


def test_a_grid_has_the_last_word_over_the_base(sweeps: Path) -> None:
    write(
        sweeps,
        "base: {aux: ours, recipe.epochs: 3}\ngrids: [{seed: 1}, {aux_design: narrow, seed: 1}]",
    )
    assert cells(mine()) == [
        "aux=ours recipe.epochs=3 seed=1",
        "aux_design=narrow recipe.epochs=3 seed=1",
    ]
    assert mine().axes == ("aux",), "the long name is the same axis"
    assert [point.labels for point in mine().points] == [{"aux": "ours"}, {"aux": "narrow"}]


def test_the_table_names_the_axes(sweeps: Path) -> None:
    write(
        sweeps,
        "title: Mine\ntable: {rows: [aux], columns: [method]}\ngrids:\n- {method: baseline, "
        "seed: [1, 2]}\n"
        "- {method: ds, aux_design: [ours, narrow], seed: [1, 2]}",
    )
    found = mine()
    assert (found.axes, found.rows, found.columns) == (
        ("aux", "method", "seed"),
        ("aux",),
        ("method",),
    )
    assert found.points[0].labels == {"aux": "-", "method": "baseline", "seed": "1"}
    assert found.points[-1].labels == {"aux": "narrow", "method": "ds", "seed": "2"}
    write(sweeps, "grids: [{method: [ds, dks], seed: [1, 2]}]")
    assert (mine().axes, mine().rows, mine().columns) == (("method", "seed"), None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- aux", "mine.yaml must hold the keys base, grids, include, table, title"),
        ("a: [", "mine.yaml cannot be read"),
        ("grid: []", "mine.yaml: no such key grid; keys are base, grids, include, table, title"),
        ("title: x", "mine.yaml: it must have one of grids and include"),
        (
            "grids: [{aux: ours}]\ninclude: [other]",
            "mine.yaml: it must have one of grids and include",
        ),
        ("grids: []", "grids must be a list of grids"),
        ("grids: [{}]", "grids must be a list of grids"),
        ("grids: {aux: [ours]}", "grids must be a list of grids"),
        ("base: [aux]\ngrids: [{aux: ours}]", "base must hold keys with a value each"),
        (
            "base: {aux: ours, aux_design: ours}\ngrids: [{seed: 1}]",
            "base: aux and aux_design are the same key",
        ),
        ("grids: [{aux: []}]", "mine.yaml: grid 1: aux has no values"),
        (
            "grids: [{aux: ours}, {aux: ours, aux_design: ours}]",
            "grid 2: aux_design stands there twice",
        ),
        ("grids: [{aux: ours, zip: [{aux: [ours]}]}]", "grid 1: aux_design stands there twice"),
        ("grids: [{exclude: [{aux: ours}]}]", "grid 1: it names no key of a configuration"),
        # ranges
        (
            "grids: [{seed: 5..1}]",
            "grid 1: seed: 5..1 is no range; write the first and the last whole number, as in 1..5",
        ),
        ("grids: [{seed: 1..}]", "seed: 1.. is no range"),
        ("grids: [{seed: a..b}]", "seed: a..b is no range"),
        ("grids: [{seed: 1...5}]", "seed: 1...5 is no range"),
        ("grids: [{seed: [0.5..2]}]", "seed: 0.5..2 is no range"),
        # zip
        ("grids: [{zip: {aux: [ours]}}]", "zip must be a list, each entry of keys with values"),
        (
            "grids: [{zip: [{aux: [ours, narrow], seed: [1]}]}]",
            "grid 1: zip: keys .* as many values each; aux has 2, seed has 1",
        ),
        # exclude
        ("grids: [{aux: [ours, narrow], exclude: {aux: ours}}]", "exclude must be a list"),
        (
            "grids: [{aux: [ours, narrow], exclude: [{ax: ours}]}]",
            "grid 1: exclude: no such key ax; keys are aux_design",
        ),
        (
            "grids: [{aux: [ours, narrow], exclude: [{aux: shallow}]}]",
            "grid 1: exclude 1 matches no cell",
        ),
        (
            "grids: [{aux: [ours, narrow], exclude: [{aux: [ours, narrow]}]}]",
            "grid 1: exclude leaves nothing of it",
        ),
        # choose
        (
            "grids: [{aux: ours, choose: {recipe.lr: [1, 2]}}]",
            "choose must hold one key with its candidates, and holdout",
        ),
        (
            "grids: [{aux: ours, choose: {recipe.lr: [1], recipe.gamma: [1], holdout: 9}}]",
            "choose must hold one key",
        ),
        ("grids: [{aux: ours, choose: [recipe.lr]}]", "choose must hold one key"),
        (
            "grids: [{aux: ours, choose: {recipe.lr: [1, 2], holdout: 0}}]",
            "holdout=0 must be a whole number of at least 1",
        ),
        (
            "grids: [{aux: ours, choose: {recipe.lr: [1, 2], holdout: true}}]",
            "holdout=true must be a whole number",
        ),
        (
            "grids: [{aux: ours, choose: {recipe.lr: 1, holdout: 9}}]",
            "recipe.lr must have two candidates or more",
        ),
        (
            "grids: [{aux: ours, choose: {recipe.lr: [1, 1.0], holdout: 9}}]",
            "recipe.lr must have two candidates or more",
        ),
        (
            "grids: [{recipe.lr: 3, choose: {recipe.lr: [1, 2], holdout: 9}}]",
            "recipe.lr is set by choose",
        ),
        (
            "base: {data.holdout: 3}\ngrids: [{aux: ours, choose: {recipe.lr: [1, 2], "
            "holdout: 9}}]",
            "data.holdout is set by",
        ),
        # table
        (
            "table: {row: [aux]}\ngrids: [{aux: ours}]",
            "table: no such key row; keys are aside, columns, gain, metrics, rows",
        ),
        (
            "table: [aux]\ngrids: [{aux: ours}]",
            "table must hold some of aside, columns, gain, metrics, rows",
        ),
        ("table: {rows: aux}\ngrids: [{aux: ours}]", "table: rows must be a list"),
        (
            "table: {metrics: [top3]}\ngrids: [{aux: ours}]",
            "table: metrics must be one or more of top1, top5",
        ),
        (
            "table: {gain: [kd]}\ngrids: [{aux: ours}]",
            "table: gain must be one or more of baseline, ds, alone",
        ),
        (
            "table: {aside: {method: ds}}\ngrids: [{aux: ours}]",
            "table: aside must hold keys of its grids with a value each",
        ),
        (
            "table: {rows: [classifier], columns: [aux]}\ngrids: [{aux: ours}]",
            "table: classifier can share a table with training alone, and training needs it",
        ),
        ("table: {rows: [seed]}\ngrids: [{aux: ours, seed: 1}]", "table: seed cannot be an axis"),
        (
            "table: {rows: [axu]}\ngrids: [{aux: ours, seed: 1}]",
            "table: axu cannot be an axis, .*; choose from aux",
        ),
        (
            "table: {rows: [aux], columns: [aux_design]}\ngrids: [{aux: ours}]",
            "each key can be one axis only",
        ),
        ("table: {rows: [aux]}\ninclude: [other]", "table stands beside grids"),
        # cells
        ("grids: [{seed: [1, 2, 1]}]", "mine.yaml: grid 1 has the cell seed=1 twice"),
        (
            "base: {noise: none}\ngrids: [{aux: [ours, narrow], recipe.lr: 1.0}, {recipe.lr: 1, "
            "aux_design: narrow}]",
            "mine.yaml: grid 1 and grid 2 both have the cell noise=none recipe.lr=1 "
            "aux_design=narrow",
        ),
        (
            "table: {rows: [aux]}\ngrids: [{aux: ours, seed: [1, 2]}, {aux: ours, seed: 2, "
            "recipe.lr: 1}]",
            r"mine.yaml: grid 1 \(aux=ours seed=2\) and grid 2 \(aux=ours seed=2 recipe.lr=1\) "
            r"fill the same place",
        ),
        (
            "grids: [{aux: [ours, narrow]}, {aux: ours, choose: {recipe.lr: [1, 2], holdout: 9}}]",
            r"grid 1 \(aux=ours\) and grid 2 \(aux=ours\) fill the same place",
        ),
        # include
        ("include: other", "include must be a list of sweeps; choose from circle, mine, other"),
        ("include: []", "include must be a list of sweeps; choose from circle, mine, other"),
        ("include: [nope]", "mine.yaml: include: no sweep 'nope'; choose from circle, mine, other"),
        ("include: [other, other]", "mine.yaml: include: other stands there twice"),
        ("include: [mine]", "mine.yaml: include goes round in a circle: mine, mine"),
        ("include: [circle]", "circle.yaml: include goes round in a circle: mine, circle, mine"),
    ],
)
def test_a_file_of_another_form_is_refused(sweeps: Path, content: str, message: str) -> None:
    write(sweeps, "grids: [{aux: [ours, narrow]}]", "other")
    write(sweeps, "include: [mine]", "circle")
    write(sweeps, content)
    with pytest.raises(RequestError, match=message) as refused:
        files.read("mine")
    assert len(refused.value.problems) == 1
    assert "\n" not in refused.value.problems[0]
    with pytest.raises(RequestError, match="no sweep 'yours'; choose from circle, mine, other"):
        files.read("yours")


def test_paths_with_dots_are_no_ranges(sweeps: Path) -> None:
    write(sweeps, "grids: [{data.root: [../data, /mnt/..]}]")
    assert [PARSER.parse_override(point.overrides[0]).value() for point in mine().points] == [
        "../data",
        "/mnt/..",
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))
    | st.sampled_from(
        [
            "null",
            "True",
            "nan",
            "1",
            "0.5",
            "a,b",
            "choice(1,2)",
            "it's",
            "[x",
            "c:\\",
            "${seed}",
            "key=value",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_a_value_in_a_file_means_the_same_as_an_override(value: Any) -> None:
    assert PARSER.parse_override(f"key={written(value)}").value() == value


# --- overrides


def test_an_override_for_a_swept_key_replaces_its_values_whatever_the_spelling(
    sweeps: Path,
) -> None:
    write(sweeps, "table: {rows: [aux]}\ngrids: [{aux: [ours, shallow], seed: 1..5}]")
    assert cells(mine("seed=7", "device=cpu")) == [
        "aux=ours seed=7 device=cpu",
        "aux=shallow seed=7 device=cpu",
    ]
    assert cells(mine("aux_design=narrow", "seed=1,2")) == [
        "aux_design=narrow seed=1",
        "aux_design=narrow seed=2",
    ]
    assert mine("aux_design=narrow", "seed=1,2").points[0].labels == {"aux": "narrow", "seed": "1"}
    assert cells(mine("seed=1", "seed=4")) == ["aux=ours seed=4", "aux=shallow seed=4"]
    assert cells(mine("++seed=4")) == ["aux=ours ++seed=4", "aux=shallow ++seed=4"]
    with pytest.raises(
        RequestError, match="aux=ours and aux_design=narrow disagree; give one of them"
    ):
        mine("aux=ours", "aux_design=narrow")


def test_points_that_an_override_makes_equal_are_one(sweeps: Path) -> None:
    write(
        sweeps,
        "grids: [{backbone: [resnet32, resnet110], seed: [1, 2]}, {backbone: resnet8, seed: 1}]",
    )
    assert cells(mine("backbone=resnet20")) == [
        "backbone=resnet20 seed=1",
        "backbone=resnet20 seed=2",
    ]


def test_an_override_takes_its_key_out_of_a_zip(sweeps: Path) -> None:
    write(
        sweeps, "grids: [{zip: [{backbone: [resnet8, resnet20, resnet32], recipe.lr: [1, 1, 2]}]}]"
    )
    assert cells(mine("backbone=resnet8")) == [
        "recipe.lr=1 backbone=resnet8",
        "recipe.lr=2 backbone=resnet8",
    ]
    assert len(mine("recipe.lr=1,2").points) == 6


def test_excludes_hold_for_the_values_of_overrides(sweeps: Path) -> None:
    write(
        sweeps,
        "grids: [{backbone: [resnet8, resnet20], aux: [ours, narrow], exclude: [{backbone: "
        "resnet8, aux: ours}]}]",
    )
    assert cells(mine("backbone=resnet8")) == ["backbone=resnet8 aux=narrow"]
    assert len(mine("backbone=resnet20").points) == 2
    with pytest.raises(RequestError, match="backbone=resnet8 aux=ours leaves no cell of mine"):
        mine("backbone=resnet8", "aux=ours")


def test_what_an_override_sweeps_or_leaves_to_tell_cells_apart_becomes_a_row(sweeps: Path) -> None:
    write(
        sweeps,
        "table: {rows: [backbone], columns: [method]}\n"
        "grids: [{zip: [{backbone: [resnet8, resnet20], recipe.lr: [1, 2]}], method: [ds, dks], "
        "seed: [1, 2]}]",
    )
    assert mine("recipe.epochs=3").rows == ("backbone",)
    assert mine("recipe.epochs=3,4").rows == ("backbone", "recipe.epochs")
    alone = mine("backbone=resnet8", "seed=1")
    assert (alone.rows, alone.columns, alone.axes) == (
        ("backbone", "recipe.lr"),
        ("method",),
        ("backbone", "recipe.lr", "method"),
    )
    assert mine("backbone=resnet8", "recipe.lr=1", "method=ds").axes == (
        "backbone",
        "method",
        "seed",
    )


TAUGHT = """
grids:
- {method: [ds, kd_c1]}
- {aux: narrow, teacher: [none, checkpoint]}
"""


@pytest.mark.slow
def test_the_teacher_of_an_override_reaches_only_cells_that_have_one(sweeps: Path) -> None:
    write(sweeps, TAUGHT)
    found = mine("teacher=resnet50", "kd_teacher.temperature=5")
    assert cells(found) == [
        "method=ds",
        "method=kd_c1 teacher=resnet50 kd_teacher.temperature=5",
        "aux=narrow teacher=none",
        "aux=narrow teacher=resnet50 kd_teacher.temperature=5",
    ]
    assert found.axes == ("method", "teacher", "aux"), (
        "one temperature for all that have one is no axis"
    )
    several = mine("kd_teacher.temperature=5,10")
    assert (len(several.points), several.axes) == (
        6,
        ("method", "kd_teacher.temperature", "aux", "teacher"),
    )
    write(sweeps, "grids: [{method: [baseline, ds]}]")
    with pytest.raises(
        RequestError,
        match=r"kd_teacher.temperature=5 reaches no cell of mine, for none has a teacher",
    ):
        mine("seed=1", "kd_teacher.temperature=5")
    assert cells(mine("method=kd_c1", "teacher=checkpoint")) == ["method=kd_c1 teacher=checkpoint"]


def test_the_name_says_what_is_fixed_whatever_its_order_and_spelling(sweeps: Path) -> None:
    write(sweeps, "title: Mine\ngrids: [{aux: [ours, narrow], seed: [1, 2]}]")
    assert (
        mine("device=cpu", "tracking=off").name,
        mine("device=cpu").title,
        mine("runs_dir=x").name,
    ) == ("mine", "Mine", "mine")
    one = mine("strategy=topdown", "tracking=off", "recipe.lr=0.5", "seed=1,2")
    # the SHA-256 of three lines: matching_strategy=topdown, recipe.lr=0.5, seed=1,2
    assert one.name == "mine-3d2052"
    assert one.title == "Mine with strategy=topdown recipe.lr=0.5 seed=1,2"
    assert one.name == mine("seed=range(1,3)", "recipe.lr=5e-1", "matching_strategy=topdown").name
    assert one.name == mine("recipe.lr=0.50", "strategy=topdown", "seed=2,1").name
    assert one.name != mine("seed=1", "recipe.lr=0.5", "strategy=topdown").name


# --- a value that is chosen

CHOSEN = """
table: {rows: [method]}
base: {backbone: resnet8, seed: 1}
grids:
- {method: [ds, dks]}
- {method: [kd_c1, kd_c1_ds], seed: [1, 2], choose: {kd_teacher.temperature: [1, 5], holdout: 100}}
"""


def test_every_combination_but_the_seed_makes_its_own_choice(sweeps: Path) -> None:
    write(sweeps, CHOSEN)
    found = mine()
    assert cells(found) == [
        "backbone=resnet8 seed=1 method=ds",
        "backbone=resnet8 seed=1 method=dks",
    ]
    assert [choice.labels for choice in found.choices] == [
        {"method": "kd_c1"},
        {"method": "kd_c1_ds"},
    ]
    choice = found.choices[1]
    assert choice.key == "kd_teacher.temperature"
    assert choice.candidates["5"] == tuple(
        Point(
            (
                "backbone=resnet8",
                f"seed={seed}",
                "method=kd_c1_ds",
                "data.holdout=100",
                "kd_teacher.temperature=5",
            ),
            {"method": "kd_c1_ds", "seed": str(seed), "kd_teacher.temperature": "5"},
        )
        for seed in (1, 2)
    )
    assert list(choice.candidates) == ["1", "5"]
    assert choice.final("5") == tuple(
        Point(
            ("backbone=resnet8", f"seed={seed}", "method=kd_c1_ds", "kd_teacher.temperature=5"),
            {"method": "kd_c1_ds", "seed": str(seed)},
        )
        for seed in (1, 2)
    )


@pytest.mark.slow
def test_overrides_settle_a_choice_replace_its_candidates_and_set_its_holdout(sweeps: Path) -> None:
    write(sweeps, CHOSEN)
    settled = mine("kd_teacher.temperature=5")
    assert settled.choices == ()
    assert cells(settled)[-1] == "backbone=resnet8 seed=2 method=kd_c1_ds kd_teacher.temperature=5"
    assert settled.axes == ("method", "seed")
    several = mine("kd_teacher.temperature=2,3,4", "data.holdout=7", "teacher=checkpoint", "seed=3")
    assert cells(several) == [
        "backbone=resnet8 seed=3 method=ds",
        "backbone=resnet8 seed=3 method=dks",
    ]
    (candidate,) = several.choices[0].candidates["3"]
    assert candidate.overrides == (
        *("backbone=resnet8", "seed=3", "method=kd_c1", "teacher=checkpoint"),
        *("data.holdout=7", "kd_teacher.temperature=3"),
    )
    assert list(several.choices[0].candidates) == ["2", "3", "4"]
    # data.holdout=7, kd_teacher.temperature=2,3,4, kd_teacher=checkpoint, seed=3
    assert several.name == "mine-3a0a05"
    for wrong in ("data.holdout=7,8", "data.holdout=0"):
        with pytest.raises(
            RequestError, match=f"{wrong}: the runs by which something is chosen need one number"
        ):
            mine(wrong)
    # With nothing to choose it is a key as any other.
    assert "data.holdout=7" in cells(mine("data.holdout=7", "kd_teacher.temperature=5"))[0]


def test_a_choice_stays_where_an_override_makes_other_cells_equal_to_its_own(sweeps: Path) -> None:
    write(sweeps, CHOSEN)
    taught = mine("method=kd_c1")
    assert taught.points == () and [choice.labels for choice in taught.choices] == [
        {"method": "kd_c1"}
    ]
    plain = mine("method=dks", "seed=1")
    assert plain.choices == () and cells(plain) == ["backbone=resnet8 seed=1 method=dks"]


# --- unions of sweeps


@pytest.mark.slow
def test_a_union_has_the_tables_of_its_parts(sweeps: Path) -> None:
    write(sweeps, "title: A\ngrids: [{aux: [ours, narrow]}]", "a")
    write(sweeps, CHOSEN, "b")
    write(sweeps, "include: [a, b]", "both")
    write(sweeps, "title: All\ninclude: [a, both]")
    found = mine()
    assert (found.name, found.title, found.axes, found.points) == ("mine", "All", (), ())
    assert found.parts == (grid_of("a"), grid_of("b")), "one that is included twice is there once"
    changed = mine("seed=4", "kd_teacher.weight=2", "data.holdout=3")
    assert changed.name.startswith("mine-")
    a, b = changed.parts
    assert a == grid_of("a", "seed=4"), "the teacher and the held-out images are for the other part"
    assert b == grid_of("b", "seed=4", "kd_teacher.weight=2", "data.holdout=3")
    assert changed.title == "All with seed=4 kd_teacher.weight=2 data.holdout=3"
    assert (changed.named, changed.request) == (
        "mine",
        ("seed=4", "kd_teacher.weight=2", "data.holdout=3"),
    )
    assert (a.named, a.request) == ("a", ("seed=4",)), "what it is asked for with again"
    assert [part.request for part in mine("sweep=other", "seed=4").parts] == [
        ("seed=4",),
        ("seed=4",),
    ], "its name is its own"
    write(sweeps, "include: [a]", "both")
    with pytest.raises(RequestError, match=r"kd_teacher\.weight=2 reaches no cell of mine"):
        mine("kd_teacher.weight=2")


def test_the_base_of_a_union_reaches_every_cell_as_an_override_does(sweeps: Path) -> None:
    write(sweeps, "title: A\nbase: {seed: 1}\ngrids: [{aux: [ours, narrow]}]", "a")
    write(sweeps, "include: [a]\nbase: {seed: 3, recipe.epochs: 2}")
    found = mine()
    assert (found.name, found.parts) == ("mine", (grid_of("a", "seed=3", "recipe.epochs=2"),))
    assert mine("seed=5").parts == (grid_of("a", "recipe.epochs=2", "seed=5"),)


# --- the sweeps of the project


_known: dict[tuple[str, ...], Config] = {}


def config_of(point: Point) -> Config:
    """What a point is composed to, but for what only the data's files say.

    Composed once for all seeds.
    """
    seeds = [override for override in point.overrides if override.startswith("seed=")]
    key = tuple(override for override in point.overrides if override not in seeds)
    if key not in _known:
        _known[key] = composed(*key).config
    return replace(_known[key], seed=int(seeds[0].removeprefix("seed=")) if seeds else 0)


def ids(points: Sequence[Point]) -> list[str]:
    return [cell_id(config_of(point)) for point in points]


def table_ids(grid: Grid) -> list[str]:
    """The cells of a table, those that wait for a choice with a value that no other cell has."""
    return ids([*grid.points, *(point for choice in grid.choices for point in choice.final("7"))])


PAPER = {
    "table1": 8 * 3 * 5,
    "table2": 3 * 3,
    "table3": (1 + 5 * 2) * 5,
    "table4": 6,
    "table5": 4,
    "table6": 6,
    "strategies": 4,
    "noise": (1 + 2 * 3) * 5,
    "resnet1202": 3 * 5,
    "figure3": 4,
}


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(("name", "count"), {**PAPER, "methods": 15, "quickstart": 9}.items())
def test_every_cell_of_a_sweep_is_another_one_and_has_its_own_place(name: str, count: int) -> None:
    grid = grid_of(name)
    finals = [point for choice in grid.choices for point in choice.final("7")]
    places = [tuple(point.labels.items()) for point in (*grid.points, *finals)]
    assert len(places) == len(set(places)) == len(set(table_ids(grid))) == count
    assert grid.name == name and (grid.rows is not None or read(name).shape.classifier_rows)


@pytest.mark.slow
def test_the_paper_shares_27_runs() -> None:
    paper = grid_of("paper")
    assert [part.name for part in paper.parts] == list(PAPER)
    cells = Counter(cell for part in paper.parts for cell in table_ids(part))
    assert (sum(PAPER.values()), sum(cells.values()), len(cells)) == (258, 258, 231)
    selection = ids(
        [
            point
            for part in paper.parts
            for choice in part.choices
            for each in choice.candidates.values()
            for point in each
        ]
    )
    assert len(set(selection)) == len(selection) == 3 * 5
    assert not set(selection) & set(cells)


@pytest.mark.slow
def test_tables_share_the_cells_that_the_paper_has_in_several_places() -> None:
    def one(name: str, **labels: str) -> set[str]:
        points = [point for point in grid_of(name).points if labels.items() <= point.labels.items()]
        assert points
        return set(ids(points))

    assert one("table1", backbone="resnet32", method="dks") == one(
        "table3", aux="ours", method="dks"
    )
    assert one("table1", backbone="resnet32", method="ds") == one("table3", aux="ours", method="ds")
    assert one("table1", backbone="resnet32", method="baseline") == one("table3", method="baseline")
    baseline, dks = (
        one("table2", backbone="resnet18", method=method) for method in ("baseline", "dks")
    )
    for name in ("table4", "table5", "table6", "strategies", "figure3"):
        assert one(name, method="baseline") == baseline, name
    assert (
        one("table4", positions="c2c3")
        == one("table5", method="dks")
        == one("table6", method="dks")
        == dks
    )
    assert one("strategies", strategy="bidir") == one("figure3", method="dks") == dks
    assert (
        one("table2", backbone="resnet18", method="ds")
        == one("table6", method="ds")
        == one("figure3", method="ds", aux="ours")
    )


@pytest.mark.slow
def test_the_paper_trains_what_it_says() -> None:
    def configs(name: str) -> list[Config]:
        return [config_of(point) for point in grid_of(name).points]

    assert {
        (c.data.source, c.seed)
        for name in ("table1", "table3", "resnet1202")
        for c in configs(name)
    } == {("cifar100", seed) for seed in range(1, 6)}
    on_imagenet = ("table2", "table4", "table5", "table6", "strategies", "figure3")
    assert {(c.data.source, c.seed) for name in on_imagenet for c in configs(name)} == {
        ("imagenet", 1)
    }
    assert {(c.backbone.depth, c.data.augmentation.value) for c in configs("table2")} == {
        (18, "squash_crop"),
        (50, "squash_crop"),
        (152, "inception"),
    }
    assert Counter((c.label_noise.kind.value, c.label_noise.ratio) for c in configs("noise")) == {
        ("none", 0.0): 5,
        ("uniform", 0.5): 15,
        ("uniform", 0.8): 15,
    }
    assert {(c.data.source, c.backbone.family, c.backbone.depth) for c in configs("noise")} == {
        ("cifar10", "densenet", 40)
    }
    choices = grid_of("table6").choices
    assert [choice.labels["method"] for choice in choices] == ["kd_c1", "kd_c1_ds", "kd_c2c3_ds"]
    for choice in choices:
        tried = [config_of(point) for points in choice.candidates.values() for point in points]
        assert [c.kd_teacher.temperature for c in tried] == [1, 2, 5, 10, 20]
        assert {c.data.holdout for c in tried} == {50_000}
        assert [config_of(point).data.holdout for point in choice.final("2")] == [0]


def test_an_override_for_a_group_drops_what_the_file_sets_inside_it() -> None:
    parser = OverridesParser.create()
    small = spec.grid_of(files.read("table2"), ["data=digits"], parser)
    assert len(small.points) == 9
    assert not [
        point for point in small.points if any(item.startswith("data.") for item in point.overrides)
    ]
    kept = spec.grid_of(files.read("table2"), ["data=digits", "data.image_size=16"], parser)
    assert all("data.image_size=16" in point.overrides for point in kept.points)
    clean = spec.grid_of(files.read("noise"), ["noise=none", "seed=1"], parser)
    assert sorted(point.overrides for point in clean.points) == [
        ("data=cifar10", "backbone=densenet40_12", "noise=none", f"method={method}", "seed=1")
        for method in ("baseline", "dks", "ds")
    ]
