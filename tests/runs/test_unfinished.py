"""A run does not go on with other files than it was begun with, and the same command does not
silently begin anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dks.config.schema import AuxPositions, Config
from dks.data import describe
from dks.runs.record import RunFolder
from dks.runs.unfinished import on_other_files
from tests.conftest import TINY, queued

OWN = (
    "data=imagefolder",
    "data.root=set",
    "data.augmentation=pad_crop",
    "data.num_classes=null",
    "recipe.epochs=3",
)
Run = Callable[..., tuple[int, str, str]]


def picture(name: str, shade: int) -> None:
    """A picture, with the name, size and time that the one before had."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(name)
    os.utime(name, (1, 1))


@pytest.fixture
def begun(in_folder: Path) -> RunFolder:
    """A run that was stopped after its second epoch."""
    for split in ("train", "val"):
        for label in ("a", "b"):
            picture(f"set/{split}/{label}/1.bmp", 10)
    folder = queued(Path(), *OWN)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "last.pt").write_bytes(b"")
    for epoch in (1, 2):
        folder.journal.append(epoch, epoch, {})
    return folder


def now(begun: RunFolder, root: str = "set", **changes: Any) -> Config:
    """What the same command, or another one, would run on the files as they are."""
    config = begun.read_config()
    return replace(config, data=describe(replace(config.data, root=root)), **changes)


def test_a_run_does_not_go_on_with_other_files(begun: RunFolder, run_here: Run) -> None:
    picture("set/train/a/1.bmp", 20)
    before = sorted(Path().rglob("*"))
    status, _, err = run_here(*TINY, *OWN)
    assert (status, err.count("\n")) == (2, 1)
    line = (
        f"the files in data.root=set are not those that runs/{begun.cell_id} was begun with "
        f"(2 of 3 epochs)"
    )
    assert f"{line}; put those back and it goes on, or remove that folder to begin anew" in err
    assert sorted(Path().rglob("*")) == before, "nothing was written"
    anew = now(begun)
    picture("set/train/a/1.bmp", 10)
    assert list(on_other_files([now(begun)])) == []
    shutil.rmtree(begun.path)
    assert list(on_other_files([anew])) == []


def test_only_the_same_run_on_the_same_folder_stands_in_the_way(begun: RunFolder) -> None:
    picture("set/val/b/1.bmp", 20)
    assert len(list(on_other_files([now(begun), now(begun, seed=1)]))) == 1
    assert (
        list(on_other_files([now(begun, seed=1), now(begun, aux_positions=AuxPositions())])) == []
    )
    shutil.copytree("set", "other")
    assert list(on_other_files([now(begun, root="other")])) == []
    coarse = replace(now(begun), data=replace(now(begun).data, label_column="coarse_label"))
    assert list(on_other_files([coarse])) == [], "another label of the same file"
    shutil.rmtree(begun.checkpoints)
    assert list(on_other_files([now(begun)])) == [], "nothing was trained yet"
