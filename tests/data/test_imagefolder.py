"""Folders of images.

ImageNet's layout, the paper's and torchvision's transforms, several decoding processes.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dks import data
from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.config.schema import Augmentation, Config, Data
from dks.data.batches import Normalise
from dks.data.images import ImageFiles, ImageSet
from dks.data.sizes import images
from dks.data.streaming import (
    StreamedTest,
    StreamedTraining,
    _named,
    evaluation_transform,
    training_transform,
)
from dks.training.resolver import Resolver
from dks.training.run import Outcome, run_cell
from tests.conftest import ROOT, composed, config, queued, start

CPU = torch.device("cpu")
AS_STORED = Normalise([0.0] * 3, [1 / 255] * 3, CPU)


def write_images(
    root: Path, count: int = 6, size: tuple[int, int] = (40, 30), seed: int = 0
) -> Path:
    """JPEGs of three classes, each with a colour of its own."""
    rng = np.random.default_rng(seed)
    for split, number in (("train", count), ("val", count // 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / f"{i}.JPEG", quality=90)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "insects")


def settings(root: Path, augmentation: str = "squash_crop", workers: int = 0) -> Data:
    return Data(
        source="imagefolder",
        root=str(root),
        augmentation=Augmentation(augmentation),
        resize=20,
        image_size=16,
        workers=workers,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


def test_classes_are_the_folders_in_alphabetical_order(root: Path) -> None:
    described = data.describe(settings(root))
    assert (described.num_classes, described.name) == (3, "insects")
    train, test = data.load(described)
    assert isinstance(train, ImageFiles)
    assert (len(train), len(test)) == (18, 9)
    assert [Path(path).parent.name for path in train.paths[::6]] == ["ant", "bee", "cat"]
    assert train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_small_images_can_be_kept_in_memory(root: Path) -> None:
    wanted = data.describe(Data(source="imagefolder", root=str(root), image_size=8))
    train, _ = data.load(wanted)
    assert isinstance(train, ImageSet)
    assert train.images.shape == (18, 3, 8, 8)
    with Image.open(root / "train" / "bee" / "2.JPEG") as image:
        expected = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(train.images[8].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("augmentation", ["squash_crop", "inception"])
def test_the_papers_test_protocol_squashes_and_cuts_out_the_centre(
    root: Path, augmentation: str
) -> None:
    with Image.open(root / "val" / "ant" / "0.JPEG") as image:
        ours = evaluation_transform(settings(root, augmentation))(image)
        squashed = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), squashed[2:18, 2:18])


def test_torchvisions_test_protocol_keeps_the_proportions(root: Path) -> None:
    reference = transforms.Compose(
        [transforms.Resize(20), transforms.CenterCrop(16), transforms.PILToTensor()]
    )
    with Image.open(root / "val" / "ant" / "0.JPEG") as image:
        assert torch.equal(
            evaluation_transform(settings(root, "resized_crop"))(image), reference(image)
        )


def test_training_crops_are_windows_of_the_squashed_image_mirrored_half_of_the_time(
    root: Path,
) -> None:
    with Image.open(root / "train" / "bee" / "0.JPEG") as image:
        squashed = torch.from_numpy(
            np.array(image.resize((20, 20), Image.Resampling.BICUBIC))
        ).permute(2, 0, 1)
        windows = (
            squashed.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(25, 3, 16, 16)
        )
        places = {window.numpy().tobytes(): (i, False) for i, window in enumerate(windows)}
        places |= {
            window.flip(2).contiguous().numpy().tobytes(): (i, True)
            for i, window in enumerate(windows)
        }
        torch.manual_seed(0)
        transform = training_transform(settings(root))
        found = [places[transform(image).contiguous().numpy().tobytes()] for _ in range(2000)]
    counts = [sum(place == i for place, _ in found) for i in range(25)]
    # chi-squared, 24 degrees of freedom, p = 0.001
    assert sum((count - 80) ** 2 / 80 for count in counts) < 52
    assert 900 < sum(mirrored for _, mirrored in found) < 1100


def test_the_stronger_augmentation_also_varies_colours(root: Path) -> None:
    with Image.open(root / "train" / "ant" / "0.JPEG") as image:
        uniform = Image.new("RGB", image.size, (200, 100, 50))
    plain, strong = (
        training_transform(settings(root, name)) for name in ("resized_crop", "inception")
    )
    assert {
        tuple(plain(uniform).flatten(1).unique(dim=1).flatten().tolist()) for _ in range(10)
    } == {(200, 100, 50)}
    assert len({tuple(strong(uniform)[:, 0, 0].tolist()) for _ in range(10)}) > 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_a_function_of_seed_epoch_and_step_whoever_decodes_it(
    root: Path, workers: int
) -> None:
    train, test = data.load(data.describe(settings(root)))
    assert isinstance(train, ImageFiles)
    assert isinstance(test, ImageFiles)

    def batches(seed: int, count: int) -> StreamedTraining:
        return StreamedTraining(train, 8, seed, settings(root, workers=count), AS_STORED, CPU)

    alone, several = batches(1, 0), batches(1, workers)
    for epoch in (1, 2):
        pairs = list(zip(alone.epoch(epoch), several.epoch(epoch), strict=True))
        assert [len(a.labels) for a, _ in pairs] == [8, 8, 2]
        assert all(
            torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs
        )
        assert torch.cat([a.labels for a, _ in pairs]).bincount().tolist() == [6, 6, 6]
    first, second, other = (
        next(iter(batches(seed, 0).epoch(epoch))).images for seed, epoch in ((1, 1), (1, 2), (2, 1))
    )
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    tested = StreamedTest(test, 4, settings(root, workers=workers), AS_STORED, CPU)
    assert len(tested) == 3
    assert torch.cat([labels for _, labels in tested]).tolist() == test.labels.tolist()


@pytest.mark.slow
def test_a_run_on_a_folder_of_images_learns_colours(root: Path, tmp_path: Path) -> None:
    folder = queued(
        tmp_path,
        "data=imagefolder",
        f"data.root={root}",
        "data.resize=20",
        "data.image_size=16",
        "data.workers=1",
        "data.num_classes=null",
        "recipe.epochs=6",
        "recipe.lr=0.02",
        "recipe.batch_size=6",
    )
    assert run_cell(folder.path) is Outcome.done
    record = folder.read_record()
    assert record is not None
    assert record.final["test/top1_error"] < 34  # chance is 67


@pytest.mark.slow
@pytest.mark.parametrize("how", ["an image is damaged", "it is killed"])
def test_no_process_that_decodes_outlives_a_run(root: Path, tmp_path: Path, how: str) -> None:
    """Nor does the run wait for it, which it once did for ever when it met a damaged image."""
    damaged, last = how == "an image is damaged", root / "train" / "cat" / "5.JPEG"
    if damaged:
        last.write_bytes(last.read_bytes()[:100])
    options = (
        "data.resize=20",
        "data.image_size=16",
        "data.workers=2",
        "recipe.batch_size=6",
        "tracking=off",
        "threads=1",
    )
    process = start(
        [
            str(ROOT / "train.py"),
            "data=imagefolder",
            f"data.root={root}",
            *options,
            "recipe.epochs=5000",
        ],
        tmp_path,
    )
    seen = set[psutil.Process]()
    until = time.monotonic() + 200
    while process.poll() is None:
        assert time.monotonic() < until
        with suppress(psutil.NoSuchProcess):
            seen |= set(psutil.Process(process.pid).children(recursive=True))
        if not damaged and any(
            path.stat().st_size for path in tmp_path.glob("runs/*/metrics.jsonl")
        ):
            process.kill()
        time.sleep(0.1)
    _, err = process.communicate(timeout=30)  # which whoever lives on would have open
    assert process.returncode == (1 if damaged else -signal.SIGKILL), err
    assert not damaged or "5.JPEG: the image cannot be decoded" in err
    assert len(seen) >= 4, (
        "what forks, and two that decode for the training; one that is Python's own"
    )
    _, alive = psutil.wait_procs(seen, timeout=30)
    assert not alive


def remove_class(root: Path) -> None:
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    (root / "val" / "cat").rmdir()


def empty_class(root: Path) -> None:
    for path in (root / "train" / "cat").iterdir():
        path.unlink()


def no_val(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_class, "train and val have different classes, for example cat"),
        (empty_class, "cat holds no image"),
        (no_val, "val is not a folder"),
    ],
)
def test_a_folder_of_another_layout_is_refused(root: Path, damage: object, message: str) -> None:
    damage(root)  # type: ignore[operator]
    with pytest.raises(RequestError, match=message):
        data.describe(settings(root))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data=imagenet", "has 3 classes and ImageNet 1000"),
        ("data=imagefolder data.image_size=300", "at most data.resize=256"),
        ("data=imagefolder data.mean=null", "data.mean and data.std must be given"),
        ("data=imagefolder data.workers=-1", "data.workers=-1 must be at least 0"),
    ],
)
def test_contradictions_are_refused(root: Path, overrides: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        config(*overrides.split(), f"data.root={root}")


def test_an_image_that_does_not_decode_fails_the_run_with_its_name(root: Path) -> None:
    (root / "train" / "bee" / "3.JPEG").write_bytes(b"no image")
    train, _ = data.load(data.describe(settings(root)))
    assert isinstance(train, ImageFiles)
    with pytest.raises(ValueError, match=r"3\.JPEG: the image cannot be decoded"):
        list(StreamedTraining(train, 8, 0, settings(root), AS_STORED, CPU).epoch(1))


def test_what_a_worker_process_says_is_one_line() -> None:
    said = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File "
        "x\nValueError: a.png: (truncated)\n"
    )

    def failing(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise ValueError(said)

    with pytest.raises(ValueError, match=r"^a\.png: \(truncated\)$"):
        list(_named(map(failing, [0])))


def replaced(path: Path) -> None:
    """By other bytes, as many, with the same times."""
    state = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("place", ["train/ant/5.JPEG", "val/cat/0.JPEG"])
def test_images_that_are_replaced_in_place_are_another_cell(root: Path, place: str) -> None:
    before = config("data=imagefolder", f"data.root={root}")
    replaced(root / place)
    assert cell_id(config("data=imagefolder", f"data.root={root}")) != cell_id(before)
    with pytest.raises(RequestError, match="are not those that the run was planned with"):
        data.require(before.data)


def test_images_moved_to_another_class_are_another_cell_and_other_names_are_not(root: Path) -> None:
    before = data.describe(settings(root))
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "dog")  # it stays the third class
    assert data.describe(settings(root)) == before
    (root / "train" / "ant" / "5.JPEG").rename(root / "train" / "bee" / "6.JPEG")
    assert data.describe(settings(root)).fingerprint != before.fingerprint


def test_imagenet_is_known_by_its_numbers_and_another_folder_is_a_set_of_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dks.data.imagefolder.IMAGENET_CLASSES", 3)
    planned = Resolver(absent_ok=True)(composed("data=imagenet", "backbone=resnet18"))

    def here(*more: str) -> Config:
        return config("data=imagenet", "backbone=resnet18", f"data.root={root}", *more)

    monkeypatch.setattr("dks.data.imagefolder.IMAGENET_IMAGES", (18, 9))
    assert cell_id(here()) == cell_id(planned)
    assert (here().data.name, here().data.fingerprint) == ("imagenet", None)
    (root / "train" / "ant" / "5.JPEG").unlink()
    own = here()
    assert (own.data.name, own.data.source, images(own.data)) == ("insects", "imagefolder", (17, 9))
    assert cell_id(own) != cell_id(planned)
    folder = (
        "data=imagefolder",
        f"data.root={root}",
        "data.augmentation=squash_crop",
        "data.num_classes=1000",
    )
    assert cell_id(own) == cell_id(config(*folder, "backbone=resnet18")), "by whatever name it goes"
    with pytest.raises(RequestError, match="are not those that the run was planned with"):
        data.require(dataclasses.replace(planned.data, root=str(root)))
    resolver = Resolver()
    resolver(composed("data=imagenet", "backbone=resnet18", f"data.root={root}"))
    numbers = "17 training and 9 test images, not 18 training and 9 test images"
    assert resolver.notes == [f"{root} is not ImageNet but a set of its own: {numbers}"]
    named = root.rename(root.parent / "imagenet")
    for source in ("imagenet", "imagefolder"):
        assert (
            data.describe(dataclasses.replace(settings(named), source=source)).name == "imagenet-17"
        )


def test_other_images_are_another_cell_and_another_place_is_not(tmp_path: Path) -> None:
    def cell(name: str, seed: int) -> str:
        return cell_id(
            config(
                "data=imagefolder",
                f"data.root={write_images(tmp_path / name, seed=seed)}",
                "data.name=x",
            )
        )

    assert cell("one", 0) == cell("elsewhere", 0) != cell("other", 1)
