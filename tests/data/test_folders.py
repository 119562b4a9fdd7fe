"""One list of the images in a folder, for all commands.

Links, names, what is hidden, and what is not taken.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from dks import data
from dks.config.errors import RequestError
from dks.config.schema import Augmentation, Data
from dks.data import folders
from dks.data.folders import counted, listed
from dks.data.images import ImageFiles
from dks.data.sizes import images
from dks.tools.doctor import images as doctor


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(path, "PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with two images each, for training and for the test."""
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            for image in (1, 2):
                picture(
                    tmp_path / "pets" / split / name / f"{image}.png", 100 * number + 10 * image
                )
    return tmp_path / "pets"


def settings(root: Path) -> Data:
    return Data(
        source="imagefolder",
        root=str(root),
        image_size=4,
        resize=4,
        augmentation=Augmentation.resized_crop,
    )


def names(root: Path) -> list[str]:
    """The training images as they are trained on."""
    train, _ = data.load(data.describe(settings(root)))
    assert isinstance(train, ImageFiles)
    return [str(Path(path).relative_to(root / "train")) for path in train.paths]


def notes(root: Path) -> list[str]:
    found = list[str]()
    data.describe(settings(root), notes=found)
    return found


def test_links_are_followed_as_torchvision_does(root: Path, tmp_path: Path) -> None:
    picture(tmp_path / "more" / "inner" / "3.png")
    picture(tmp_path / "more" / "0.png")
    (root / "train" / "cat" / "behind").symlink_to(tmp_path / "more")
    (root / "train" / "dog" / "link.png").symlink_to(tmp_path / "more" / "0.png")
    expected = [
        "cat/1.png",
        "cat/2.png",
        "cat/behind/0.png",
        "cat/behind/inner/3.png",
        "dog/1.png",
        "dog/2.png",
        "dog/link.png",
    ]
    assert names(root) == expected
    theirs = ImageFolder(str(root / "train"))
    assert {str(Path(path).relative_to(root / "train")) for path, _ in theirs.samples} == set(
        expected
    )
    assert counted(root / "train").images == 7
    assert images(settings(root)) == (7, 4)
    assert "7 images" in {each.name: each.found for each in doctor.images(settings(root))}["train"]


def test_links_that_lead_back_end_and_are_said(root: Path) -> None:
    (root / "train" / "cat" / "self").symlink_to(root / "train" / "cat")
    (root / "train" / "cat" / "all").symlink_to(root / "train")
    (root / "train" / "dog" / "everything").symlink_to(root)
    assert names(root) == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    assert notes(root) == [f"{root}/train: not taken: 3 links to a folder above (cat/all, ...)"]


@pytest.mark.parametrize("suffix", ["jfif", "gif", "pgm", "PNM", "jpe", "tif", "apng"])
def test_all_names_that_can_be_read_are_taken(root: Path, suffix: str) -> None:
    form = {
        "jfif": "JPEG",
        "gif": "GIF",
        "pgm": "PPM",
        "PNM": "PPM",
        "jpe": "JPEG",
        "tif": "TIFF",
        "apng": "PNG",
    }[suffix]
    Image.new("L", (4, 4)).save(root / "train" / "dog" / f"3.{suffix}", form)
    assert names(root)[-1] == f"dog/3.{suffix}"


def test_what_is_not_taken_is_counted_and_named(root: Path) -> None:
    (root / "train" / "read me").write_text("")
    for name in ("cat/list.txt", "dog/list.txt", "dog/3.heic", "dog/LICENSE"):
        (root / "train" / name).write_text("")
    (root / "val" / "dog" / "3.JP2").write_text("")
    assert names(root) == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    assert notes(root) == [
        f"{root}/train: not taken: 1 .heic (dog/3.heic), 2 .txt (cat/list.txt, ...), 1 beside "
        f"the classes (read me), "
        "1 without a suffix (dog/LICENSE)",
        f"{root}/val: not taken: 1 .jp2 (dog/3.JP2)",
    ]
    assert [
        (each.level, each.found) for each in doctor.images(settings(root)) if each.name == "images"
    ] == [("yellow", note) for note in notes(root)]


def test_hidden_files_and_folders_are_skipped_and_said(root: Path) -> None:
    before = data.describe(settings(root))
    picture(root / "train" / ".ipynb_checkpoints" / "1.png")
    picture(root / "val" / "cat" / ".cache" / "1.png")
    (root / "val" / "dog" / "._1.png").write_bytes(b"of another system")
    (root / "val" / "dog" / ".lost.png").symlink_to("nowhere")
    assert data.describe(settings(root)) == before, "the same classes, and the same cell"
    assert notes(root) == [
        f"{root}/train: not taken: 1 hidden (.ipynb_checkpoints)",
        f"{root}/val: not taken: 3 hidden (cat/.cache, ...)",
    ]


def test_what_is_no_file_is_refused_by_name(root: Path) -> None:
    os.mkfifo(root / "train" / "dog" / "3.png")
    with pytest.raises(RequestError, match=r"train/dog/3\.png is no file that could hold an image"):
        data.describe(settings(root))


@pytest.mark.parametrize("place", ["train/bird", "train/dog/more", "val/dog/3.png"])
def test_links_to_nowhere_are_refused_by_name(root: Path, place: str) -> None:
    (root / place).symlink_to("nowhere")
    with pytest.raises(RequestError, match=f"{place} is a link to nowhere"):
        data.describe(settings(root))


@pytest.mark.parametrize("name", ["validation", "test"])
def test_the_test_set_may_be_called_otherwise(root: Path, name: str) -> None:
    before = data.describe(settings(root))
    (root / "val").rename(root / name)
    assert data.describe(settings(root)) == before
    assert (notes(root), len(data.load(before)[1])) == ([], 4)


def test_of_two_test_sets_it_is_said_which_one_is_taken(root: Path) -> None:
    before = data.describe(settings(root))
    picture(root / "test" / "cat" / "1.png")
    assert data.describe(settings(root)) == before
    assert notes(root) == [
        f"{root} has the folders val and test: the test set is val, and test is not used"
    ]


def test_images_are_counted_again_only_where_a_folder_changed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(root / "train" / "cat" / "inner" / "3.png")
    (root / "train" / "cat" / "notes.txt").write_text("")
    listings, original = list[Path](), folders.listed
    monkeypatch.setattr(
        folders, "listed", lambda folder: listings.append(folder) or original(folder)
    )
    monkeypatch.setattr("dks.data.contents.RECENT", -1.0)
    monkeypatch.setattr("dks.data.contents.Kept._memory", {})
    for _ in range(3):
        found = counted(root / "train")
        assert (found.images, found.left_out) == (
            5,
            f"{root}/train: not taken: 1 .txt (cat/notes.txt)",
        )
    assert len(listings) == 1
    picture(root / "train" / "cat" / "inner" / "4.png")
    assert counted(root / "train").images == 6
    (root / "train" / "dog" / "1.png").unlink()
    assert counted(root / "train").images == 5
    (root / "train" / "dog").rename(root / "train" / "eel")
    assert counted(root / "train").images == 5
    assert len(listings) == 4


def test_folders_that_just_changed_are_not_remembered(root: Path) -> None:
    """What comes next may have the same time."""
    assert counted(root / "train").images == 4
    assert not folders.Kept(root / "train").last(folders.COUNT)


def test_the_order_is_that_of_the_paths(root: Path) -> None:
    for name in ("b/1.png", "b.png", "a-b/1.png", "a/2.png"):
        picture(root / "train" / "cat" / name)
    paths = list(listed(root / "train").images["cat"])
    assert [path.removeprefix(f"{root}/train/cat/") for path in paths] == [
        *("1.png", "2.png", "a/2.png", "a-b/1.png", "b/1.png", "b.png")
    ]
    assert paths == [str(path) for path in sorted(map(Path, paths))]
