"""Modules that have another name now can be imported by their old one, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest

from dks.renamed import RENAMED


@pytest.fixture(autouse=True)
def _not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RENAMED:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_the_old_name_gives_what_the_new_one_has(old: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(old)
    assert any(RENAMED[old] in str(each.message) for each in caught)
    new = importlib.import_module(RENAMED[old])
    names = [name for name in vars(new) if not name.startswith("__")]
    assert all(getattr(module, name) is getattr(new, name) for name in names)


def test_what_the_pages_of_the_first_edition_imported() -> None:
    with pytest.warns(FutureWarning):
        losses = importlib.import_module("dks.losses")
    from dks.objectives import SynergyLoss

    assert losses.SynergyLoss is SynergyLoss
