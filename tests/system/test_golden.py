"""What the program does is what commit c624696 did: facts that it wrote, in tests/golden/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.golden.facts import FAST, HERE, SLOW, of_today


@pytest.mark.parametrize("name", FAST)
def test_it_is_as_it_was(name: str, tmp_path: Path) -> None:
    assert of_today(name, tmp_path) == (HERE / name).read_text()
    if name == "statuses.txt":
        assert list(tmp_path.iterdir()) == [], "a wrong request leaves nothing behind"


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_it_is_as_it_was_at_length(name: str, tmp_path: Path) -> None:
    assert of_today(name, tmp_path) == (HERE / name).read_text()


@pytest.mark.parametrize("how", [["-m", "dks", "--version"], [str(ROOT / "train.py"), "--version"]])
def test_the_program_starts_as_a_process(how: list[str]) -> None:
    """What the others call in this process lies behind the first lines of a program."""
    began = subprocess.run([sys.executable, *how], cwd=ROOT, capture_output=True, text=True)
    assert (began.returncode, began.stderr) == (0, "")
    assert began.stdout
