"""What a run has written survives a power cut: fsync comes before the name, and then its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dks.runs.journal import Journal
from dks.runs.record import Record, RunFolder
from dks.training import checkpoint
from dks.training.checkpoint import Progress, State


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The writes, fsyncs and renames of this process, in order, by the names of files."""
    seen: list[tuple[str, ...]] = []

    def name(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    def watch(module: Any, function: str, told: Callable[..., tuple[str, ...]]) -> None:
        own = getattr(module, function)

        def watched(*arguments: Any) -> Any:
            seen.append((function, *told(*arguments)))
            return own(*arguments)

        monkeypatch.setattr(module, function, watched)

    watch(os, "write", lambda descriptor, content: (name(descriptor),))
    watch(os, "fsync", lambda descriptor: (name(descriptor),))
    watch(Path, "replace", lambda path, target: (path.name, Path(target).name))
    return seen


def test_a_record_is_on_disk_before_it_has_its_name(
    tmp_path: Path, calls: list[tuple[str, ...]]
) -> None:
    RunFolder(tmp_path).write_record(Record("c", "f", 0, "dks", {}, "", []))
    draft = f".record.json.{os.getpid()}"
    assert calls == [("write", draft), ("fsync", draft), ("replace", draft, "record.json")]


def test_a_line_of_the_journal_is_on_disk_when_it_is_written(
    tmp_path: Path, calls: list[tuple[str, ...]]
) -> None:
    journal, line = (
        Journal(tmp_path / "metrics.jsonl"),
        [("write", "metrics.jsonl"), ("fsync", "metrics.jsonl")],
    )
    journal.append(1, 10, {"test/loss": 1.0})
    assert calls == [*line, ("fsync", tmp_path.name)], "a new file: its name as well"
    calls.clear()
    journal.append(2, 20, {"test/loss": 0.5})
    assert calls == line


def test_a_checkpoint_is_on_disk_before_it_takes_the_place_of_another(
    tmp_path: Path, calls: list[tuple[str, ...]]
) -> None:
    state = State(Progress(1, 2, 0), {}, {}, [], 0.0, {}, 1)
    written = [("write", "draft.pt"), ("write", "draft.pt"), ("fsync", "draft.pt")]
    named = [("replace", "draft.pt", "last.pt"), ("fsync", tmp_path.name)]
    checkpoint.save(tmp_path, state)
    assert calls == [*written, *named]
    calls.clear()
    checkpoint.save(tmp_path, state)
    assert calls == [*written, ("replace", "last.pt", "previous.pt"), *named]
