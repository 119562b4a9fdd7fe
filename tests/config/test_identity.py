"""Cell identity: what changes it and what does not."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import random
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dks.config.files import choices
from dks.config.identity import (
    EXECUTION_ONLY,
    LEFT_OUT_WHEN_EMPTY,
    SCHEMA_VERSION,
    canonical_json,
    cell_id,
    config_id,
)
from dks.config.names import SHORT_NAMES
from dks.config.schema import Config
from dks.training.resolver import Resolver
from tests.conftest import composed, config, sampled


@pytest.fixture(scope="module")
def base() -> Config:
    return config("data=synthetic")


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of every leaf of a dataclass."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value, path = getattr(node, field.name), f"{prefix}{field.name}"
        found.update(
            leaves(value, f"{path}.") if dataclasses.is_dataclass(value) else {path: value}
        )
    return found


def changed(value: Any) -> Any:
    """Another value of about the same kind."""
    if isinstance(value, Enum):
        return (
            next(other for other in type(value) if other is not value)
            if len(type(value)) > 1
            else "other"
        )
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, "more"]
    if isinstance(value, dict):
        return {**value, "more": 1}
    return 17  # None


def with_change(base: Config, path: str) -> Config:
    other = copy.deepcopy(base)
    node: Any = other
    *parents, last = path.split(".")
    for name in parents:
        node = getattr(node, name)
    setattr(node, last, changed(getattr(node, last)))
    return other


PATHS = sorted(leaves(Config()))


def is_execution_only(path: str) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in EXECUTION_ONLY)


@pytest.mark.parametrize("path", [path for path in PATHS if not is_execution_only(path)])
def test_every_key_that_can_change_a_result_changes_the_cell(base: Config, path: str) -> None:
    assert cell_id(with_change(base, path)) != cell_id(base)


@pytest.mark.parametrize("path", [path for path in PATHS if is_execution_only(path)])
def test_no_execution_only_key_changes_the_cell(base: Config, path: str) -> None:
    assert cell_id(with_change(base, path)) == cell_id(base)


def test_every_execution_only_name_exists() -> None:
    tops = {path.partition(".")[0] for path in PATHS}
    assert all(name in PATHS or name in tops for name in EXECUTION_ONLY)


def test_the_seed_changes_the_cell_and_not_the_config_id(base: Config) -> None:
    other = with_change(base, "seed")
    assert cell_id(other) != cell_id(base)
    assert config_id(other) == config_id(base)
    assert config_id(with_change(base, "recipe.lr")) != config_id(base)


@given(paths=st.sets(st.sampled_from(PATHS), max_size=4))
@settings(max_examples=sampled(150, 40), deadline=None)
def test_cell_id_is_what_the_contract_says(base: Config, paths: set[str]) -> None:
    """The first 12 hex digits of the SHA-256 of the canonical JSON of what is left, plus the schema
    version.
    """
    some = base
    for path in sorted(paths):
        some = with_change(some, path)
    left = dataclasses.asdict(some)
    for name in EXECUTION_ONLY:
        *parents, last = name.split(".")
        node = left
        for parent in parents:
            node = node[parent]
        del node[last]
    for name in LEFT_OUT_WHEN_EMPTY:
        part, key = name.split(".")
        if not left[part][key]:
            del left[part][key]
    left["schema_version"] = SCHEMA_VERSION
    assert cell_id(some) == hashlib.sha256(canonical_json(left).encode()).hexdigest()[:12]
    del left["seed"]
    assert config_id(some) == hashlib.sha256(canonical_json(left).encode()).hexdigest()[:12]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), values), st.randoms(use_true_random=False))
@settings(max_examples=sampled(200, 40))
def test_the_order_of_keys_does_not_matter(tree: dict[str, Any], shuffler: random.Random) -> None:
    def shuffled(node: Any) -> Any:
        if isinstance(node, dict):
            items = list(node.items())
            shuffler.shuffle(items)
            return {key: shuffled(value) for key, value in items}
        return [shuffled(item) for item in node] if isinstance(node, list) else node

    assert canonical_json(shuffled(tree)) == canonical_json(tree)


@given(values, values)
@settings(max_examples=sampled(200, 40))
def test_canonical_json_separates_what_python_separates(one: Any, other: Any) -> None:
    # Python says True == 1; JSON does not, and a configuration must not.
    same = json.loads(canonical_json(one)) == json.loads(canonical_json(other))
    assert (canonical_json(one) == canonical_json(other)) == (
        same
        and json.dumps(json.loads(canonical_json(one)), sort_keys=True)
        == json.dumps(json.loads(canonical_json(other)), sort_keys=True)
    )


def test_canonical_json_writes_a_whole_number_in_one_way_and_no_nan() -> None:
    assert canonical_json({"b": 1.0, "a": [0.1, 1]}) == '{"a":[0.1,1],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


OVERRIDES = [
    "aux=shallow",
    "strategy=topdown",
    "seed=3",
    "recipe.lr=0.05",
    "backbone=resnet20",
    "positions=c2",
    "data=synthetic",
]


@given(st.permutations(OVERRIDES))
@settings(max_examples=sampled(8, 4), deadline=None)
def test_the_order_of_overrides_does_not_matter(overrides: list[str]) -> None:
    assert cell_id(config(*overrides)) == cell_id(config(*OVERRIDES))


SPELLINGS = [(short, choice) for short, long in SHORT_NAMES.items() for choice in choices(long)]


@pytest.mark.rest_slow(4)
@pytest.mark.parametrize(("short", "choice"), SPELLINGS)
def test_short_and_long_spelling_give_the_same_cell(short: str, choice: str) -> None:
    long = SHORT_NAMES[short]
    one, other = composed(f"{short}={choice}").config, composed(f"{long}={choice}").config
    assert one == other
    assert cell_id(one) == cell_id(other)


def test_every_group_with_a_short_name_has_the_same_choices_under_both() -> None:
    for short, long in SHORT_NAMES.items():
        assert choices(short) == choices(long)


def test_a_preset_and_its_parts_are_the_same_cell() -> None:
    assert (
        cell_id(config("method=baseline"))
        == cell_id(config("aux=none"))
        == cell_id(config("aux=none", "strategy=none"))
    )
    assert cell_id(config("method=ds")) == cell_id(config("strategy=none"))
    assert cell_id(config("method=dks")) == cell_id(config())


def test_equal_numbers_written_differently_are_the_same_cell() -> None:
    assert cell_id(config("recipe.lr=0.1")) == cell_id(config("recipe.lr=1e-1"))
    assert cell_id(config("loss.alpha=1")) == cell_id(config("loss.alpha=1.0"))


def test_a_whole_number_is_the_same_written_as_a_float_and_a_truth_value_is_not(
    base: Config,
) -> None:
    """In this order: what is remembered of one part must not pass for another."""
    ids = []
    for epochs in (1, 1.0, True):
        other = copy.deepcopy(base)
        other.recipe.epochs = epochs  # type: ignore[assignment]
        ids.append(cell_id(other))
    assert ids[0] == ids[1] != ids[2]


# --- what changes a result is in the identity; what does not, and the results themselves, are in
# test_equal_results.py


def planned(overrides: str) -> Config:
    """Resolved; ImageNet need not be here."""
    return Resolver(absent_ok=True)(composed(*overrides.split()))


IMAGENET = "data=imagenet backbone=resnet18"
# A choice -> what does matter under it.
MEANINGFUL = {
    "": "aux_positions.at=[c2] loss.alpha=2 loss.beta=3 loss.form=smoothed_kl data.pad=2 "
    "recipe.pad_mode=reflect",
    "aux=none": "recipe.lr=1 data.holdout=9 backbone=resnet20",
    "aux=ours": "aux_design.width=0.5 aux_design.max_blocks=1",
    "aux=ap_conv_2fc": "aux_design.pool=2 aux_design.conv_channels=8 aux_design.hidden=64",
    "strategy=none": "loss.alpha=2",
    "method=single": "positions=c3 recipe.uniform_gamma=true",
    "data=synthetic": "data.train_images=7 data.test_images=7",
    "data.pad=0": "data.flip=true",
    "recipe.schedule=cosine": "recipe.schedule=step recipe.warmup_epochs=1",
    "recipe.milestones=[3]": "recipe.milestones=[4] recipe.gamma=0.5 recipe.reset_momentum=true "
    "recipe.schedule=cosine",
    IMAGENET: "data.resize=300 data.image_size=200 data.augmentation=inception",
    f"{IMAGENET} method=kd_c1": "kd_teacher.temperature=2 kd_teacher.weight=2 "
    "kd_teacher.backbone=resnet18",
    f"{IMAGENET} method=kd_c1 kd_teacher.temperature=2": "kd_teacher.scale_by_t2=false",
}


@pytest.mark.rest_slow(6)
@pytest.mark.parametrize("choice", MEANINGFUL)
def test_what_matters_under_a_choice_is_another_cell(choice: str) -> None:
    one = planned(choice)
    others = [planned(f"{choice} {override}") for override in MEANINGFUL[choice].split()]
    assert len({cell_id(each) for each in (one, *others)}) == len(others) + 1
