"""What the program does, collected by its command lines.

Each file of facts holds the commands as well: a function here gets the text of the file and an
empty folder, runs the commands and gives the text as it would be written today.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.program import dks

HERE = Path(__file__).resolve().parent

TINY = (
    "data=synthetic data.image_size=8 data.train_images=64 data.test_images=32 data.pad=1 "
    "recipe.batch_size=16 recipe.epochs=2 threads=1 tracking=off"
)


def ids(text: str, folder: Path) -> str:
    """`# ARGUMENTS` of `dks sweep plan`, and a line a cell: cell_id, config_id, seed, overrides."""
    written = []
    for line in text.splitlines():
        if line.startswith("# "):
            written.append(line)
            for cell in _plan(line[2:], folder)["cells"]:
                facts = [cell["cell_id"], cell["config_id"], str(cell["seed"]), *cell["overrides"]]
                written.append(" ".join(facts))
    return _lines(written)


def plans(text: str, folder: Path) -> str:
    """A line a shipped sweep: name, axes, cells and a digest of all that is said of them."""
    written = []
    for arguments in (line.partition(": ")[0] for line in text.splitlines()):
        plan = _plan(arguments, folder)
        cells = sorted(
            [cell["cell_id"], cell["config_id"], cell["seed"], cell["overrides"], sorted(cell)]
            for cell in plan["cells"]
        )
        digest = hashlib.sha256(json.dumps(cells).encode()).hexdigest()
        axes = ",".join(plan["axes"])
        written.append(f"{arguments}: {plan['name']}, axes {axes}, {len(cells)} cells, {digest}")
    return _lines(written)


def statuses(text: str, folder: Path) -> str:
    """Exit status | is there output | lines on standard error of a wrong request | command | words.

    The words are what that line has to name. All commands run in one folder, one after another.
    """
    written = []
    for line in text.splitlines():
        command, _, words = line.split(" | ", 3)[3].partition(" | ")
        ran = dks(*shlex.split(command.replace("TINY", TINY)), folder=folder)
        lines = str(ran.err.count("\n")) if ran.status == 2 else "-"
        facts = [str(ran.status), "out" if ran.out else "-", lines, command]
        named = " ".join(word for word in words.split() if word in ran.err)
        written.append(" | ".join([*facts, named] if words else facts))
    return _lines(written)


def _plan(arguments: str, folder: Path) -> dict[str, Any]:
    """What `dks sweep plan --json` says; no network is measured."""
    ran = dks("sweep", "plan", *shlex.split(arguments), "--json", "--probe", "0", folder=folder)
    assert ran.status == 0, f"{arguments}: {ran.err}"
    found: dict[str, Any] = json.loads(ran.out)
    return found


def _lines(written: list[str]) -> str:
    return "".join(f"{line}\n" for line in written)


FAST: dict[str, Callable[[str, Path], str]] = {
    "ids.txt": ids,
    "plans.txt": plans,
    "statuses.txt": statuses,
}
SLOW: dict[str, Callable[[str, Path], str]] = {
    "more_ids.txt": ids,
    "more_plans.txt": plans,
    "statuses_of_done.txt": statuses,
    "statuses_of_runs.txt": statuses,
}
FACTS = FAST | SLOW


def of_today(name: str, folder: Path) -> str:
    """The text of a file of facts as the program that is installed gives it."""
    return FACTS[name]((HERE / name).read_text(), folder)
