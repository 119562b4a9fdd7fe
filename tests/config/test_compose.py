"""The composer against Hydra itself.

The same configurations, the same choices, the same refusals, and few compositions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from dks.config.compose import Composed, Composer, from_hydra, register_schema
from dks.config.errors import RequestError
from dks.config.explain import HYDRA_ERRORS, explain
from dks.config.files import declarations
from tests.conftest import sampled


def through_hydra(overrides: Sequence[str]) -> Composed:
    """One composition, as the sweeper makes it."""
    try:
        return from_hydra(compose("config", list(overrides), return_hydra_config=True))
    except HYDRA_ERRORS as error:
        raise RequestError(explain(error)) from error


class Counted:
    """`through_hydra`, and how often it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, overrides: Sequence[str]) -> Composed:
        self.calls.append(tuple(overrides))
        return through_hydra(overrides)


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(declarations("conf")), version_base="1.3"):
        yield


@pytest.fixture
def counted() -> Counted:
    return Counted()


def outcome(work: Any, overrides: Sequence[str]) -> Any:
    """What comes out, or what is raised and in which words."""
    try:
        return work(overrides)
    except Exception as error:
        return type(error).__name__, str(error)


CHOICES = [
    "aux=shallow",
    "aux=none",
    "aux_design=narrow",
    "strategy=topdown",
    "positions=c2",
    "backbone=wrn28_4",
]
CHOICES += [
    "data=synthetic",
    "data=imagenet",
    "recipe=wrn_code",
    "method=kd_c1",
    "teacher=checkpoint",
    "tracking=off",
]
WRONG_CHOICES = [
    "aux=typo",
    "auxx=ours",
    "backbone=null",
    "aux=3",
    "aux=[ours,narrow]",
    "method=null",
]
VALUES = [
    "seed=3",
    "seed=4",
    "recipe.lr=0.5",
    "recipe.lr=1",
    "recipe.lr=1e-3",
    "recipe.epochs=3",
    "recipe.nesterov=true",
]
VALUES += [
    "recipe.milestones=[3,5.5]",
    "recipe.milestones=[]",
    "recipe.mean=null",
    "recipe.mean=[0,0.5,1]",
    "data.mean=null",
]
VALUES += [
    "aux_design.kind=fc",
    "aux_positions.at=[c3,c2]",
    "aux_positions.at=['c2']",
    "kd_teacher.cell=123456789012",
]
VALUES += [
    "kd_teacher.cell='1e5'",
    "kd_teacher.cell=1e5",
    "data.root=/some/folder",
    "runs_dir='with space, comma'",
    "threads=2",
]
VALUES += [
    "threads=null",
    "sweep=true",
    "device=cuda:1",
    "aux_design.max_blocks=null",
    "data.name=null",
    "data.name=a\\,b",
]
VALUES += [
    "backbone.depth=14",
    "loss.form=smoothed_kl",
    "data.name=''",
    "recipe.lr=inf",
    "tracking.uri=sqlite:///x.db",
]
WRONG_VALUES = [
    "recipe.epochs=abc",
    "recipe.epochs=1.5",
    "recipe.epochs=null",
    "recipe.epoch=3",
    "seeds=1",
    "seed=1e3",
    "seed=",
]
WRONG_VALUES += [
    "aux_design.kind=xx",
    "data.mean=[a,b]",
    "data.mean=3",
    "recipe.milestones=null",
    "aux_positions.at=c2",
]
WRONG_VALUES += [
    "recipe.nesterov=2.5",
    "recipe.lr.x=1",
    "seed=[1]",
    "seed={a:1}",
    "recipe.milestones=[[1]]",
]
ODD = [
    "+seed=1",
    "++recipe.lr=0.3",
    "+recipe.new=1",
    "+new=1",
    "~data.root",
    "~recipe",
    "recipe={epochs:2,lr:0.2}",
]
ODD += [
    "recipe.epochs=${threads}",
    "data.name=${runs_dir}",
    "data.name=\\${x}",
    "recipe.epochs=???",
    "sweep=???",
]
ODD += [
    "backbone.branches.c2.stages=[]",
    "backbone.branches={}",
    "backbone@other=resnet20",
    "recipe.lr=choice(1,2)",
    "seed=1,2",
]
ODD += [
    "seed=range(3)",
    "seed=int(3.0)",
    "hydra.job.name=other",
    "hydra/launcher=basic",
    "hydra.nothing=1",
    "=3",
    "aux",
    "seed=1,,2",
]
ODD += [
    "recipe[lr]=0.25",
    "data.mean.0=1",
    "data.mean[0]=1",
    "aux/nothing=1",
    "loss=null",
    "results_dir=${oc.env:HOME}",
]


@pytest.mark.rest_slow(3)
@pytest.mark.parametrize("line", [*CHOICES, *WRONG_CHOICES, *VALUES, *WRONG_VALUES, *ODD])
def test_every_override_means_what_it_means_to_hydra(line: str) -> None:
    """Alone, and between a choice and a value.

    From a composer that knows nothing, and again from what it remembers.
    """
    overrides = ["recipe.lr=0.25", "data=synthetic", line, "aux=narrow", "threads=5"]
    composer = Composer(through_hydra)
    expected = outcome(through_hydra, overrides)
    assert outcome(composer, overrides) == expected
    assert outcome(composer, overrides) == expected


@pytest.mark.rest_slow(4)
@pytest.mark.parametrize(
    "overrides",
    [
        "data.mean=[0,0,0] data.mean[0]=0.5",
        "data.mean=[0,0,0] data.mean.1=0.5 data.mean.7=0.5",
        "recipe={lr:0.5} recipe.lr=0.25",
        "recipe.lr=0.25 recipe={lr:0.5}",
        "recipe.lr=0.25 recipe.lr=0.5",
        "seed=x aux=typo recipe.epoch=1",
        "recipe.epoch=1 seed=x aux=ours aux_design=narrow",
        "aux=ours seed=3 aux_design=narrow",
        "threads=${nothing} threads=3",
    ],
)
def test_overrides_that_meet_do_so_as_in_hydra(overrides: str) -> None:
    assert outcome(Composer(through_hydra), overrides.split()) == outcome(
        through_hydra, overrides.split()
    )


@pytest.fixture(scope="module")
def lasting() -> Composer:
    """One composer for many lists of overrides."""
    return Composer(through_hydra)


# The usual ones more often, so that most lists compose.
LINES = st.one_of(
    *[st.sampled_from(VALUES)] * 5,
    *[st.sampled_from(CHOICES)] * 3,
    *map(st.sampled_from, (WRONG_VALUES, ODD)),
)


@pytest.mark.slow
@given(overrides=st.lists(LINES, max_size=6))
@settings(max_examples=sampled(60, 30), deadline=None)
def test_any_overrides_in_any_order_come_out_as_from_hydra(
    lasting: Composer, overrides: list[str]
) -> None:
    assert outcome(lasting, overrides) == outcome(through_hydra, overrides)


def test_hydra_composes_once_for_every_combination_of_choices(counted: Counted) -> None:
    composer = Composer(counted)
    for seed in range(20):
        for design in ("ours", "shallow"):
            for rate in ("0.1", "0.2"):
                cell = composer(
                    [
                        f"seed={seed}",
                        f"aux={design}",
                        f"recipe.lr={rate}",
                        "recipe.milestones=[0.5]",
                    ]
                )
                assert (cell.config.seed, cell.config.recipe.lr, cell.choices["aux"]) == (
                    seed,
                    float(rate),
                    design,
                )
    assert counted.calls == [("aux=ours",), ("aux=shallow",)]


@pytest.mark.parametrize("wrong", ["aux=typo", "recipe.epochs=abc", "recipe.epoch=1"])
def test_hydra_refuses_once_what_many_cells_get_wrong(counted: Counted, wrong: str) -> None:
    composer = Composer(counted)
    refusals = set()
    for seed in range(20):
        with pytest.raises(RequestError) as refused:
            composer([f"seed={seed}", wrong])
        refusals.add(str(refused.value))
    assert len(counted.calls) == len(refusals) == 1


def test_a_value_that_refers_to_others_follows_them(counted: Counted) -> None:
    composer = Composer(counted)
    for threads in (3, 4):
        assert (
            composer([f"threads={threads}", "recipe.epochs=${threads}"]).config.recipe.epochs
            == threads
        )


def test_a_reference_in_what_was_composed_is_followed_too(counted: Counted) -> None:
    """As a file of one's own in a folder given by --config-dir could have it."""

    def with_reference(overrides: Sequence[str]) -> Composed:
        return counted(["recipe.epochs=${threads}", *overrides])

    composer = Composer(with_reference)
    for threads in (3, 4):
        assert composer([f"threads={threads}"]).config.recipe.epochs == threads


def test_a_value_may_be_given_to_what_has_none() -> None:
    def without_epochs(overrides: Sequence[str]) -> Composed:
        return through_hydra(["recipe.epochs=???", *overrides])

    composer = Composer(without_epochs)
    assert composer(["recipe.epochs=7"]).config.recipe.epochs == 7
    with pytest.raises(RequestError, match=r"recipe.epochs has no value; add recipe.epochs=VALUE"):
        composer(["seed=1"])


def test_no_cell_changes_another() -> None:
    composer = Composer(through_hydra)
    first = composer(["seed=1"])
    first.config.recipe.lr, first.config.data.num_classes, first.choices["data"] = 99.0, 99, "other"
    assert composer(["seed=1"]) == through_hydra(["seed=1"])
