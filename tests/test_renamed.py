"""Modules that have another name now can be imported by their old one, with a warning."""

from __future__ import annotations

import importlib
import sys

import pytest

from dks.renamed import RENAMED


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_the_old_name_gives_what_the_new_one_has(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    for name in RENAMED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.warns(FutureWarning, match=RENAMED[old]):
        module = importlib.import_module(old)
    new = importlib.import_module(RENAMED[old])
    names = [name for name in vars(new) if not name.startswith("__")]
    assert all(getattr(module, name) is getattr(new, name) for name in names)


def test_what_the_pages_of_the_first_edition_imported() -> None:
    with pytest.warns(FutureWarning):
        from dks.losses import SynergyLoss  # type: ignore[import-not-found,unused-ignore]
    from dks.objectives.losses import SynergyLoss as today

    assert SynergyLoss is today
