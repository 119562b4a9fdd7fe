"""Parquet files as the Hugging Face hub lays them out, and sets that are not whole or not one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dks import data
from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.config.schema import Data
from dks.data import registry
from dks.data.images import ImageSet
from dks.data.sizes import image_size, images
from dks.tools.doctor import images as doctor
from dks.training.resolver import Resolver
from tests.conftest import ROOT, composed, config, finished_run

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(shade: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(
    path: Path, labels: Any, image: str = "image", label: str = "label", **more: list[Any]
) -> None:
    """A file with one picture for each label, the red of which is its number; further columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = pa.array([picture(number) for number in range(len(labels))], STRUCT)
    pq.write_table(pa.table({image: pictures, label: labels, **more}), path)


def settings(root: Path, **choices: Any) -> Data:
    return Data(source="parquet", root=str(root), **choices)


def loaded(root: Path, **choices: Any) -> tuple[list[int], list[int]]:
    """The labels of the training and of the test set."""
    train, test = data.load(data.describe(settings(root, cache_gib=0.0, **choices)))
    assert isinstance(train, ImageSet)
    assert train.images[:, 0, 0, 0].tolist() == [*range(len(train))]
    return train.labels.tolist(), test.labels.tolist()


def refused(root: Path, **choices: Any) -> str:
    """What is said of it while a run on it is planned."""
    with pytest.raises(RequestError) as error:
        data.describe(settings(root, **choices))
    assert "\n" not in str(error.value)
    return str(error.value)


# --- places and names of files


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        (
            "train-00000-of-00001-a09b74b3ef9c3b56.parquet",
            "test-00000-of-00001-1dd1e00e54174ccd.parquet",
        ),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
        ("train.parquet", "val.parquet"),
        ("train-1-of-1.parquet", "val-0.parquet"),
    ],
)
def test_files_are_found_where_the_hub_has_them(tmp_path: Path, train: str, test: str) -> None:
    write(tmp_path / train, [0, 1, 1])
    write(tmp_path / test, [1, 0])
    assert loaded(tmp_path) == ([0, 1, 1], [1, 0])
    assert (images(settings(tmp_path)), image_size(settings(tmp_path))) == ((3, 2), (4, 4))
    found = {each.name: each for each in doctor.images(settings(tmp_path))}
    assert found.keys() == {"train", "test"}
    assert "2 classes, 3 images in 1 file(s)" in found["train"].found


def test_several_files_are_one_set_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", pa.array([], pa.int64()))
    write(tmp_path / "data" / "test-0.parquet", [1])
    write(tmp_path / "data" / "test-1.parquet", [0])
    assert loaded(tmp_path) == ([0, 1], [1, 0]), "a file without rows among others is no harm"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-00000-of-00002"],
            "beside train-00000-of-00002.parquet there must be the file number 1 of its set",
        ),
        (
            ["train-00001-of-00002"],
            "beside train-00001-of-00002.parquet there must be the file number 0 of its set",
        ),
        (
            ["train-0", "train-2"],
            "beside train-0.parquet there must be the file number 1 of its set",
        ),
        (
            ["default/train/0001", "default/train/0002", "default/train/0004"],
            "there must be the file number 3 of its set",
        ),
        (
            ["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"],
            "are of different sets",
        ),
        (["train-00000-of-00001-aaaa", "train-00000-of-00001-bbbb"], "are of different sets"),
        (["train", "train-0"], "train-0.parquet and train.parquet are of different sets"),
        (
            ["train-clean", "train-other"],
            "train-clean.parquet and train-other.parquet are of different sets",
        ),
        (
            ["train-0-of-1", "train-7-of-1"],
            "there are 2 files of a set of 1, such as train-0-of-1.parquet",
        ),
        (
            ["one/train-0", "two/train-0"],
            "holds 2 data sets; name one of their folders as data.root: ",
        ),
        (
            ["partial-train/0000"],
            "has no file train-*.parquet; it has test-0.parquet, partial-train/0000.parquet",
        ),
    ],
)
def test_what_is_not_one_whole_set_is_refused_by_name(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        write(tmp_path / f"{name}.parquet", [0, 1])
    for folder in {(tmp_path / name).parent for name in names}:
        place = (
            folder.parent / "test"
            if folder.name == "train"
            else folder
            if folder.name != "partial-train"
            else tmp_path
        )
        write(place / "test-0.parquet", [0])
    assert message in refused(tmp_path)


def test_a_missing_part_of_the_test_set_is_found_as_well(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0])
    write(tmp_path / "test-00002-of-00003.parquet", [0])
    assert "beside test-00002-of-00003.parquet there must be the file number 0" in refused(tmp_path)


def test_of_two_test_sets_it_is_said_which_one_is_taken_and_other_files_are_named(
    tmp_path: Path,
) -> None:
    for name, labels in (
        ("train-0", [0, 1]),
        ("validation-0", [0]),
        ("test-0", [1, 1]),
        ("extra-0", [0]),
        ("._train-0", []),
    ):
        write(tmp_path / f"{name}.parquet", labels)
    write(tmp_path / ".cache" / "train-0.parquet", [0])
    assert loaded(tmp_path) == ([0, 1], [1, 1])
    notes = list[str]()
    data.describe(settings(tmp_path), notes=notes)
    assert notes == [
        f"{tmp_path} has files of test and validation: the test set is test, and validation is "
        f"not used",
        f"{tmp_path}: not taken: ._train-0.parquet, extra-0.parquet",
    ]


def test_a_link_to_nowhere_is_refused_by_name_unless_it_is_hidden(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0])
    write(tmp_path / "test-0.parquet", [0])
    (tmp_path / "._train-1.parquet").symlink_to("nowhere")
    assert loaded(tmp_path) == ([0], [0])
    (tmp_path / "extra.parquet").symlink_to("nowhere")
    with pytest.raises(RequestError, match=r"extra\.parquet is a link to nowhere"):
        data.describe(settings(tmp_path))


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0])
    write(tmp_path / "test-0.parquet", [0])
    (tmp_path / "data").symlink_to(tmp_path)
    assert loaded(tmp_path) == ([0], [0])


# --- columns


@pytest.mark.parametrize(
    ("image", "label"),
    [("img", "label"), ("jpg", "cls"), ("image", "labels"), ("img", "fine_label")],
)
def test_known_columns_are_found(tmp_path: Path, image: str, label: str) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}-0.parquet", [0, 2, 1], image, label, __key__=["a", "b", "c"])
    assert loaded(tmp_path) == ([0, 2, 1], [0, 2, 1])
    assert image_size(settings(tmp_path)) == (4, 4)


def test_of_the_two_labels_of_cifar100_the_fine_one_is_read_unless_the_other_is_asked_for(
    tmp_path: Path,
) -> None:
    for split in ("train", "test"):
        write(
            tmp_path / f"{split}-0.parquet", [0, 1, 2], "img", "fine_label", coarse_label=[1, 0, 1]
        )
    assert loaded(tmp_path)[0] == [0, 1, 2]
    assert loaded(tmp_path, label_column="coarse_label")[0] == [1, 0, 1]
    fine, named, coarse = (
        config("data=parquet", f"data.root={tmp_path}", *more)
        for more in (
            [],
            ["data.label_column=fine_label", "data.image_column=img"],
            ["data.label_column=coarse_label"],
        )
    )
    assert (fine.data.num_classes, coarse.data.num_classes) == (3, 2)
    assert cell_id(fine) == cell_id(named) != cell_id(coarse)


def test_a_choice_of_columns_that_changes_what_is_trained_on_is_another_cell(
    tmp_path: Path,
) -> None:
    for split in ("train", "test"):
        pictures = pa.array([picture(9), picture(8)], STRUCT)
        write(
            tmp_path / f"{split}-0.parquet",
            [0, 1],
            "image",
            "label",
            other=pictures,
            swapped=[1, 0],
        )
    cells = {
        cell_id(config("data=parquet", f"data.root={tmp_path}", *more))
        for more in ([], ["data.image_column=other"], ["data.label_column=swapped"])
    }
    assert len(cells) == 3


@pytest.mark.parametrize(
    ("columns", "choices", "message"),
    [
        (
            ("image", "label"),
            {"label_column": "y"},
            "data.label_column=y: .*train-0.parquet has no such column; choose from image,",
        ),
        (
            ("image", "target"),
            {},
            "has no column label .*; it has image, target: choose one with data.label_column=NAME",
        ),
        (
            ("photo", "label"),
            {},
            "has no column image .*; it has photo, label.*: choose one with data.image_column=NAME",
        ),
        (
            ("image", "label", "cls"),
            {},
            "has the columns label and cls; choose one with data.label_column=label",
        ),
        (
            ("image", "label", "img"),
            {},
            "has the columns image and img; choose one with data.image_column=image",
        ),
        (
            ("image", "label"),
            {"label_column": "image"},
            "the column image is struct.*; it must hold whole numbers or texts",
        ),
        (
            ("image", "label"),
            {"image_column": "label"},
            "the column label is int64; it must be a struct with the field bytes",
        ),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(
    tmp_path: Path, columns: tuple[str, ...], choices: dict[str, str], message: str
) -> None:
    for split in ("train", "test"):
        write(
            tmp_path / f"{split}-0.parquet",
            [0, 1],
            *columns[:2],
            **{name: [0, 1] for name in columns[2:]},
        )
    with pytest.raises(RequestError, match=message):
        data.describe(settings(tmp_path, **choices))


def test_columns_are_refused_where_there_are_none() -> None:
    with pytest.raises(
        RequestError,
        match=r"data\.label_column=y is for data=parquet; data\.source=digits has no columns",
    ):
        Resolver()(composed("data.label_column=y"))


# --- labels


def test_labels_may_be_texts(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", ["dog", "ant", "cat", "ant"])
    write(tmp_path / "test-0.parquet", pa.array(["cat", "dog"]).dictionary_encode())
    assert loaded(tmp_path) == ([2, 0, 1, 0], [1, 2])
    assert registry.source("parquet").inspect(settings(tmp_path)).classes == ("ant", "cat", "dog")
    write(tmp_path / "test-0.parquet", ["Cat"])
    assert "has test images of Cat, and no training image of that" in refused(tmp_path)
    write(tmp_path / "test-0.parquet", [1])
    assert "test-0.parquet has other columns or classes than train-0.parquet" in refused(tmp_path)


def name(path: Path, classes: list[str]) -> None:
    """Note the names of classes as the hub's library does."""
    feature = {"label": {"names": classes, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pq.read_table(path)
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})}),
        path,
    )


def test_names_of_classes_come_along(tmp_path: Path) -> None:
    """A class without images is one where the files name it."""
    for split in ("train", "test"):
        write(tmp_path / "set" / f"{split}-0.parquet", [0, 2])
        name(tmp_path / "set" / f"{split}-0.parquet", ["ant", "bee", "cat", "dog"])
    run = finished_run(
        tmp_path,
        "data=parquet",
        f"data.root={tmp_path / 'set'}",
        "data.num_classes=null",
        "recipe.epochs=1",
    )
    assert json.loads(run.classes_file.read_text()) == ["ant", "bee", "cat", "dog"]
    assert run.read_config().data.num_classes == 4
    name(tmp_path / "set" / "test-0.parquet", ["ant", "cat", "bee", "dog"])
    assert "test-0.parquet has other columns or classes than train-0.parquet" in refused(
        tmp_path / "set"
    )
    for split in ("train", "test"):
        name(tmp_path / "set" / f"{split}-0.parquet", ["ant", "bee"])
    assert "has the label 2, and its files name 2 classes, counted from 0" in refused(
        tmp_path / "set"
    )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            [0, 500, 1000],
            [0],
            "has 3 different labels, up to 1000, and no training image with the label 1;",
        ),
        ([1, 2], [1], "has 2 different labels, up to 2, and no training image with the label 0;"),
        ([0, 1], [5], "has 3 different labels, up to 5, and no training image with the label 2;"),
        ([0, 1], [-1], "has the label -1; labels are counted from 0"),
        ([], [0], "train-0.parquet has no rows"),
        ([0], [], "test-0.parquet has no rows"),
        ([0, None], [0], "train-0.parquet: 1 label(s) are missing"),
        ([0, 10**15], [0], f"up to {10**15}, and no training image with the label 1;"),
    ],
)
def test_labels_that_make_no_classes_are_refused_before_anything_runs(
    tmp_path: Path, train: list[int], test: list[int], message: str
) -> None:
    for split, labels in (("train", train), ("test", test)):
        write(tmp_path / f"{split}-0.parquet", pa.array(labels, pa.int64()))
    assert message in refused(tmp_path)


def test_classes_without_images_may_be_asked_for(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}-0.parquet", [0, 3])
    assert "or set data.num_classes=4 if all of these are classes" in refused(tmp_path)
    assert data.describe(settings(tmp_path, num_classes=4)).num_classes == 4


@pytest.mark.parametrize("lost", [{"bytes": None, "path": "cat.png"}, None])
def test_rows_without_bytes_are_counted_before_anything_runs(
    tmp_path: Path, lost: dict[str, Any] | None
) -> None:
    write(tmp_path / "test-0.parquet", [0])
    pictures = pa.array([picture(0), lost, lost], STRUCT)
    pq.write_table(pa.table({"image": pictures, "label": [0, 0, 0]}), tmp_path / "train-0.parquet")
    assert (
        "train-0.parquet: 2 of 3 images are not in the file, which has at most their paths"
        in refused(tmp_path)
    )


# --- content


def test_pixels_that_were_replaced_are_another_cell(tmp_path: Path) -> None:
    """The labels, the sizes and the table of contents of the file, which has no statistics, are as
    they were.
    """
    for split in ("train", "test"):
        write(tmp_path / f"{split}-0.parquet", [0, 1])
        table = pq.read_table(tmp_path / f"{split}-0.parquet")
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, tmp_path / f"{split}-0.parquet", **plain)
    before = data.describe(settings(tmp_path))
    path = tmp_path / "train-0.parquet"
    content = path.read_bytes()
    path.write_bytes(content.replace(picture(1)["bytes"], picture(7)["bytes"]))
    assert len(path.read_bytes()) == len(content) and path.read_bytes() != content
    assert data.describe(settings(tmp_path)).fingerprint != before.fingerprint


CIFAR = ROOT.parent / "shared" / "data" / "cifar10-jpeg"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the images of CIFAR-10 are not here")
def test_real_files_are_known_by_their_content() -> None:
    found = data.describe(settings(CIFAR))
    assert (found.num_classes, found.name, images(found)) == (10, "cifar10-jpeg", (50_000, 10_000))
