"""`docs/reliability.md` names tests that are there, and says which of them are slow."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"(\*slow\* )?`(tests/\w+/\w+\.py)::(\w+)`", PAGE)


def found_in(file: str) -> dict[str, bool]:
    """Name -> is it slow, for all tests of a file.

    With `pytestmark` a class or a file marks all of its own.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    marks = {
        ast.unparse(node.targets[0]): ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }

    def is_slow(text: str) -> bool:
        return "mark.slow" in text or "mark.slow" in marks.get(text, "")

    def below(body: list[ast.stmt], slow: bool) -> dict[str, bool]:
        own = [
            ast.unparse(node.value)
            for node in body
            if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)
        ]
        slow, found = slow or any(map(is_slow, own)), dict[str, bool]()
        for node in body:
            if isinstance(node, ast.ClassDef):
                found |= below(node.body, slow)
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = slow or any(
                    is_slow(ast.unparse(each)) for each in node.decorator_list
                )
        return found

    return below(tree.body, False)


def test_every_promise_names_a_test() -> None:
    promises = [
        line
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(promises) > 25
    assert [line for line in promises if "tests/" not in line] == []
    assert PAGE.count("tests/") == len(NAMED), "all are written the same way"


@pytest.mark.parametrize("file", sorted({file for _, file, _ in NAMED}))
def test_every_named_test_is_there_and_slow_where_it_says_so(file: str) -> None:
    there = found_in(file)
    for slow, _, name in (each for each in NAMED if each[1] == file):
        assert name in there, f"{file}::{name}"
        assert there[name] == bool(slow), (
            f"{file}::{name} is {'slow' if there[name] else 'not slow'}"
        )
