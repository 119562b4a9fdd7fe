"""A last batch of one image, on which batch normalisation fails, is refused before anything runs,
or as the run begins.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dks.config.errors import RequestError
from dks.data import sizes
from dks.training.run import Outcome, run_cell
from tests.conftest import TINY, config, finished_run, queued

# Of 4x4 pixels the last stage of a CIFAR ResNet makes one.
ONE_PIXEL = (
    *TINY,
    "data.image_size=4",
    "method=baseline",
    "recipe.batch_size=32",
    "recipe.epochs=1",
)


def refusal(*overrides: str) -> str:
    with pytest.raises(RequestError) as refused:
        config(*ONE_PIXEL, *overrides)
    (line,) = refused.value.problems
    return line


@pytest.mark.parametrize(
    ("overrides", "images", "works"),
    [
        ("data.train_images=33", 33, 33),
        ("data.train_images=40 data.holdout=7", 33, 33),
        ("data.train_images=33 recipe.batch_size=16", 33, 17),
        ("data.train_images=33 recipe.batch_size=1", 33, 3),
        ("data.train_images=97 recipe.batch_size=48 method=dks", 97, 49),
        ("data.train_images=97 recipe.batch_size=96", 97, 97),
        (
            "data=digits data.image_size=4 data.train_images=null data.test_images=null "
            "recipe.batch_size=4",
            1433,
            5,
        ),
    ],
)
def test_the_line_names_a_batch_size_that_works(overrides: str, images: int, works: int) -> None:
    line = refusal(*overrides.split())
    assert f"leaves the last batch with one of {images:,} training images" in line
    assert line.endswith(f"image of 4x4 pixels in this network; take recipe.batch_size={works}")
    config(*ONE_PIXEL, *overrides.split(), f"recipe.batch_size={works}")


def test_each_process_needs_two_images_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config(*ONE_PIXEL, "data.train_images=35")  # three in the last batch
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refusal("data.train_images=35")
    assert (
        "recipe.batch_size=32 leaves one of 2 processes in the last batch with one of 35 "
        "training images" in line
    )
    assert line.endswith("take recipe.batch_size=31")  # four
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert refusal("data.train_images=33").endswith("take recipe.batch_size=33"), (
        "who has none takes one as well"
    )
    assert refusal("data.train_images=7").endswith("; train on 8 images or more")


def test_one_image_is_enough_where_maps_are_larger(tmp_path: Path) -> None:
    finished_run(
        tmp_path, "method=baseline", "data.train_images=9", "recipe.batch_size=8", "recipe.epochs=1"
    )


def test_what_was_not_known_before_fails_the_run_as_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extension does not say before it is loaded how many images it has."""
    monkeypatch.setattr(sizes, "images", lambda data: None)
    folder = queued(tmp_path, *ONE_PIXEL[-4:], "data.train_images=33")
    assert run_cell(folder.path) is Outcome.failed
    record = folder.read_record()
    assert record is not None and record.error is not None
    assert record.error["type"] == "RequestError"
    assert "take recipe.batch_size=33" in record.error["message"]
    assert not folder.journal.read()
