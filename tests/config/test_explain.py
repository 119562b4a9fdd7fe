"""What is used of Hydra and OmegaConf beyond their documented names still holds.

A test that fails here names what a new version has changed; see `dks/config/explain.py`.
"""

from __future__ import annotations

import copy

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config.compose import compose_here, register_schema
from dks.config.errors import RequestError

# What is wrong -> parts of the line: the key, and what would be right.
WORDINGS = {
    "recipe.epochs=x": ("recipe.epochs=x", "whole number"),
    "recipe.lr=x": ("recipe.lr=x", "must be a number"),
    "data.flip=3.5": ("data.flip=3.5", "true or false"),
    "recipe.schedule=x": ("recipe.schedule=x", "step", "cosine"),
    "recipe.epochs=null": ("recipe.epochs=null", "needs a value"),
    "recipe.milestones=3": ("recipe.milestones", "must be a list"),
    "recipe=3": ("recipe", "one choice", "cifar_resnet"),
    "backbone=x": ("backbone=x", "resnet20", "wrn28_10"),
    "recipe.epoch=3": ("recipe.epoch", "did you mean epochs?"),
    "recipe.lr='${recipe.nothing}'": ("recipe.lr", "nothing"),
    "recipe.lr=[1": ("recipe.lr=[1", "cannot be read"),
}


@pytest.mark.parametrize("override", WORDINGS)
def test_an_error_of_hydra_or_omegaconf_is_still_understood(override: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose_here([override])
    (line,) = caught.value.problems
    assert [part for part in WORDINGS[override] if part not in line] == [], line


def test_hydra_still_copies_its_store_through_its_own_method() -> None:
    """Otherwise each composition would take 20 ms more."""
    register_schema()
    assert copy.deepcopy(ConfigStore.instance()) is ConfigStore.instance()


def test_an_override_of_hydra_still_has_the_parts_that_are_read() -> None:
    override = OverridesParser.create().parse_override("++recipe.lr='a,b',2")
    assert (override.key_or_group, override.is_sweep_override()) == ("recipe.lr", True)
    assert [str(each) for each in override.sweep_string_iterator()] == ["'a,b'", "2"]
