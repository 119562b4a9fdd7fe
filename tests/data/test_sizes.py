"""How many images there are, and of which size, without loading them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dks.config.schema import Data
from dks.data.sizes import image_size, images
from tests.conftest import config


def test_images_of_sources_of_a_fixed_size_are_known_without_their_files() -> None:
    assert images(Data(source="cifar10")) == images(Data(source="cifar100")) == (50_000, 10_000)
    assert images(Data(source="imagenet")) == (1_281_167, 50_000)
    assert images(Data(source="synthetic", train_images=7, test_images=3)) == (7, 3)
    assert image_size(Data(source="cifar10")) == (32, 32)


def test_images_of_the_digits_are_as_many_as_are_loaded() -> None:
    from dks import data

    train, test = data.load(given := config().data)
    assert images(given) == (len(train), len(test))
    assert image_size(given) == tuple(train.images.shape[-2:])  # type: ignore[union-attr]


def test_held_out_images_are_evaluated_and_not_trained_on() -> None:
    assert images(Data(source="cifar10", holdout=5_000)) == (45_000, 15_000)


def test_images_in_parquet_files_are_counted(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    encoded = io.BytesIO()
    Image.new("RGB", (12, 10)).save(encoded, "png")
    for name, count in (("train-0", 4), ("train-1", 3), ("test-0", 2)):
        rows = {"image": [{"bytes": encoded.getvalue(), "path": ""}] * count, "label": [0] * count}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    given = Data(source="parquet", root=str(tmp_path))
    assert images(given) == (7, 2)
    assert image_size(given) == (10, 12)


def test_images_in_folders_are_counted(tmp_path: Path) -> None:
    from PIL import Image

    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / split / "cat").mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (6, 5)).save(tmp_path / split / "cat" / f"{number}.png")
        (tmp_path / split / "cat" / "notes.txt").write_text("no image")
    given = Data(source="imagefolder", root=str(tmp_path))
    assert images(given) == (3, 2)
    assert image_size(given) == (5, 6)


@pytest.mark.parametrize("source", ["parquet", "imagefolder"])
def test_images_that_are_not_there_are_not_guessed(source: str, tmp_path: Path) -> None:
    given = Data(source=source, root=str(tmp_path / "nothing"))
    assert images(given) is None
    assert image_size(given) is None
