"""What the program does is what commit c624696 did: facts that it wrote, in tests/golden/, against those of today."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden.make import FACTS, HERE, SLOW


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FACTS])
def test_it_is_as_it_was(name: str, tmp_path: Path) -> None:
    assert FACTS[name](tmp_path) == (HERE / name).read_text()
