"""What the program does, collected by its command lines.

Each file of facts holds the commands as well: a function here gets the text of the file and an
empty folder, runs the commands and gives the text as it would be written today.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import re
import shlex
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import dks

HERE = Path(__file__).resolve().parent

TINY = (
    "data=synthetic data.image_size=8 data.train_images=64 data.test_images=32 data.pad=1 "
    "recipe.batch_size=16 recipe.epochs=2 threads=1 device=cpu tracking=off"
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


def ids_of_files(text: str, folder: Path) -> str:
    """As `ids`, of cells whose data, teachers and components are files of one's own."""
    with tarfile.open(HERE / "files.tar.gz") as files:
        files.extractall(folder)  # our own; Python before 3.11.4 knows no filter
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DKS_EXTENSIONS", str(folder / "mine.py"))
        return ids(text, folder)


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


def outputs(text: str, folder: Path) -> str:
    """`$ ARGUMENTS` and what `dks ARGUMENTS` prints, on the runs of small.tar.gz.

    `in FILE: WORD | WORD` has the words that are in a page that was written.
    """
    _small(folder)
    written = []
    for line in text.splitlines():
        if line.startswith("$ "):
            ran = dks(*shlex.split(line[2:]), folder=folder)
            assert ran.status == 0, f"{line}: {ran.err}"
            # Of a number with all its digits, the last may depend on the order of a sum.
            out = re.sub(r"\d+\.\d{11,}", _shorter, ran.out)
            out = re.sub(r"today's [0-9a-f]{12}\b", "today's CODE", out)
            written += [line, *out.splitlines()]
        elif line.startswith("in "):
            name, _, words = line[3:].partition(": ")
            page = _visible((folder / name).read_text())
            found = [word for word in words.split(" | ") if word in page]
            written.append(f"in {name}: {' | '.join(found)}")
    return _lines(written)


def keys(text: str, folder: Path) -> str:
    """The keys of JSON and the types of their values, in what commands print and write.

    `$ ARGUMENTS` prints JSON, `< FILE` has some, and `! ARGUMENTS` is only run.
    """
    written = []
    for line in text.splitlines():
        if line[:2] not in ("$ ", "! ", "< "):
            continue
        written.append(line)
        if line.startswith("< "):
            said = (folder / line[2:]).read_text()
        else:
            ran = dks(*shlex.split(line[2:].replace("TINY", TINY)), folder=folder)
            assert ran.status in (0, 1), f"{line}: {ran.err}"
            said = ran.out
        if not line.startswith("! "):
            many = line.endswith(".jsonl")
            value = [json.loads(one) for one in said.splitlines()] if many else json.loads(said)
            tree: dict[str, set[str]] = {}
            _grow(tree, "", value)
            written += [f"{key or '.'}: {' or '.join(sorted(tree[key]))}" for key in sorted(tree)]
    return _lines(written)


def _grow(tree: dict[str, set[str]], key: str, value: Any) -> None:
    """Add a value, and all that is in it, to a tree of keys and types."""
    names = {
        bool: "bool",
        int: "number",
        float: "number",
        str: "text",
        dict: "object",
        list: "list",
    }
    tree.setdefault(key, set()).add("null" if value is None else names[type(value)])
    if isinstance(value, dict):
        for name, item in value.items():
            _grow(tree, f"{key}.{re.sub(r'^[0-9a-f]{12,}$', 'ID', name)}", item)
    elif isinstance(value, list):
        for item in (item for item in value if isinstance(item, dict | list)):
            _grow(tree, f"{key}[]", item)


def _small(folder: Path) -> None:
    """The runs, the sweep and the MLflow store of small.tar.gz."""
    with tarfile.open(HERE / "small.tar.gz") as files:
        files.extractall(folder)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store:
        store.executescript((folder / "store.sql").read_text())


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number.group()):.10g}"


def _visible(page: str) -> str:
    """The text of an HTML page."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


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
    "outputs.txt": outputs,
}
SLOW: dict[str, Callable[[str, Path], str]] = {
    "more_ids.txt": ids,
    "more_plans.txt": plans,
    "json_keys.txt": keys,
    "ids_of_files.txt": ids_of_files,
    "statuses_of_done.txt": statuses,
    "statuses_of_runs.txt": statuses,
}
FACTS = FAST | SLOW


def of_today(name: str, folder: Path) -> str:
    """The text of a file of facts as the program that is installed gives it."""
    return FACTS[name]((HERE / name).read_text(), folder)
