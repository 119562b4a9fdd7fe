"""What is kept of runs is a convenience and nothing else."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from dks.tracking import cache
from dks.tracking.cache import RowCache

KEPT = {"a": ("1", {"seed": 1, "best/epoch": math.inf})}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "harm", ["damaged", "truncated", "other version", "other tables", "no JSON", "unwritable"]
)
def test_what_is_kept_is_never_needed(
    folder: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = RowCache("records")
    kept.write(KEPT)
    assert kept.read() == kept.read(["a", "b"]) == KEPT
    whole = kept.path.read_bytes()
    if harm == "damaged":
        kept.path.write_bytes(b"garbage" * 1000)
    elif harm == "truncated":
        kept.path.write_bytes(whole[: len(whole) // 2])
    elif harm == "other version":
        monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    elif harm == "unwritable":
        shutil.rmtree(folder)
        folder.write_text("a file where a folder should be")
    else:
        with closing(sqlite3.connect(kept.path)) as store, store:
            store.execute("UPDATE rows SET row = 'x'" if harm == "no JSON" else "DROP TABLE rows")
    assert kept.read() == {}
    kept.write(KEPT)
    assert kept.read() == ({} if harm == "unwritable" else KEPT), "it is there again"


def test_files_that_nobody_used_for_long_go() -> None:
    old, new = RowCache("old"), RowCache("new")
    old.write(KEPT)
    long_ago = time.time() - cache.UNUSED - 1
    os.utime(old.path, (long_ago, long_ago))
    new.write(KEPT)
    assert not old.path.exists() and new.read() == KEPT
    new.write({}, ["a"])
    assert new.read() == {}
