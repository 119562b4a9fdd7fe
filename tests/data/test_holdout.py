"""Training images that are held out.

Kept out of training, drawn by the seed, evaluated beside the test set.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dks import data
from dks.config.errors import RequestError
from dks.config.schema import Config
from dks.data.batches import Normalise, channel_statistics, evaluation_batches
from dks.data.holdout import hold_out
from dks.data.images import ImageFiles, ImageSet
from dks.data.seeds import generator
from dks.models.weights import run_network
from dks.runs.record import RunFolder, Status
from dks.training.metrics import evaluate
from dks.training.resolver import resolve
from dks.training.run import Outcome, _data, run_cell
from tests.conftest import TINY, composed, config, queued

CPU = torch.device("cpu")


def numbered(count: int) -> ImageSet:
    """Image i has the colour i and the label i."""
    labels = torch.arange(count)
    return ImageSet(
        labels[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8).contiguous(), labels
    )


def test_both_parts_make_up_the_training_set_and_the_seed_draws_them() -> None:
    kept, val = hold_out(numbered(50), 12, seed=3)
    assert val is not None
    assert (len(kept), len(val)) == (38, 12)
    assert sorted([*kept.labels.tolist(), *val.labels.tolist()]) == list(range(50))
    for part in (kept, val):
        assert isinstance(part, ImageSet)
        assert (
            part.images[:, 0, 0, 0].tolist() == part.labels.tolist() == sorted(part.labels.tolist())
        )
    _, again = hold_out(numbered(50), 12, seed=3)
    _, other = hold_out(numbered(50), 12, seed=4)
    assert again is not None and other is not None
    assert torch.equal(val.labels, again.labels)
    assert not torch.equal(val.labels, other.labels)


def test_nothing_held_out_is_the_very_training_set() -> None:
    train = numbered(5)
    kept, val = hold_out(train, 0, seed=0)
    assert kept is train
    assert val is None


def test_image_files_are_divided_as_images_are() -> None:
    files = ImageFiles(tuple(f"{i}.png" for i in range(50)), torch.arange(50))
    kept, val = hold_out(files, 12, seed=3)
    assert isinstance(kept, ImageFiles) and isinstance(val, ImageFiles)
    _, images = hold_out(numbered(50), 12, seed=3)
    assert images is not None
    assert val.labels.tolist() == images.labels.tolist()
    assert val.paths == tuple(f"{label}.png" for label in val.labels.tolist())
    assert not set(kept.paths) & set(val.paths)


def check_noise_of(settings: Config, held: int, wrong: int) -> None:
    """So many images are held out with the labels that they have, and of the others exactly so many
    have a wrong one.
    """
    whole, _ = data.load(settings.data)
    kept, val, _, changed = _data(settings)
    expected_kept, expected_val = hold_out(whole, held, settings.seed)
    assert val is not None and expected_val is not None
    assert len(val) == held
    assert torch.equal(val.labels, expected_val.labels), "choices are made by clean labels"
    assert int((kept.labels != expected_kept.labels).sum()) == len(changed) == wrong
    order = torch.randperm(len(whole), generator=generator(settings.seed, "holdout"))
    rows = order[held:].sort().values  # of the whole set
    assert changed.tolist() == rows[kept.labels != whole.labels[rows]].tolist()


def test_held_out_images_have_clean_labels_and_the_ratio_is_exact_for_the_others() -> None:
    noisy = ("noise=uniform", "label_noise.ratio=0.5")
    check_noise_of(config(*TINY, *noisy, "data.holdout=16"), held=16, wrong=24)
    check_noise_of(
        config(*TINY, *noisy, "data.holdout=1", "label_noise.ratio=0.8", "seed=3"), held=1, wrong=50
    )
    plain, none, _, changed = _data(config(*TINY, *noisy))
    clean, _ = data.load(config(*TINY).data)
    assert none is None
    assert changed.tolist() == torch.nonzero(plain.labels != clean.labels).flatten().tolist()
    assert len(changed) == 32


def test_the_test_set_stays_and_no_held_out_image_is_trained_on(tmp_path: Path) -> None:
    folder = queued(tmp_path, "data.holdout=24", "recipe.batch_size=10")
    assert run_cell(folder.path) is Outcome.done
    entries = folder.journal.read()
    assert [entry.step for entry in entries] == [4, 8], "40 of 64 images are trained on"
    names = {name.removeprefix("test/") for name in entries[0].metrics if name.startswith("test/")}
    assert {"loss", "top1_error", "top5_error", "top1_error_c2"} <= names
    assert names == {
        name.removeprefix("val/") for name in entries[0].metrics if name.startswith("val/")
    }
    record = folder.read_record()
    assert record is not None
    assert record.final == {"epoch": 2, **entries[1].metrics}

    settings, network = run_network(str(folder.path.parent), folder.cell_id)
    kept, val, test, _ = _data(settings)
    assert val is not None
    normalise = Normalise(*channel_statistics(settings, kept), CPU)
    network.to(memory_format=torch.channels_last)
    for name, images in (("val", val), ("test", test)):
        batches = evaluation_batches(settings, images, normalise, CPU)
        found = evaluate(network, batches, CPU, prefix=name)
        assert found == {
            key: value for key, value in record.final.items() if key.startswith(f"{name}/")
        }


def test_a_run_without_held_out_images_has_no_validation_metrics(tmp_path: Path) -> None:
    folder = queued(tmp_path)
    run_cell(folder.path)
    assert not [name for name in folder.journal.read()[0].metrics if name.startswith("val/")]


def test_a_run_refuses_to_hold_out_everything(tmp_path: Path) -> None:
    folder = queued(tmp_path, "data.holdout=64")
    assert run_cell(folder.path) is Outcome.failed
    record = folder.read_record()
    assert record is not None
    assert record.status is Status.failed
    assert record.error is not None
    assert "data.holdout=64 leaves none of the 64 training images" in record.error["message"]
    with pytest.raises(RequestError, match="hold out fewer"):
        hold_out(numbered(5), 6, 0)


def test_a_negative_number_is_refused_before_anything_runs() -> None:
    with pytest.raises(RequestError, match=r"data\.holdout=-1 must be at least 0"):
        resolve(composed(*TINY, "data.holdout=-1"))


def test_the_images_are_loaded_once_for_both() -> None:
    assert data.load(config(*TINY).data) is data.load(config(*TINY, "data.holdout=16").data)


def test_files_that_are_held_out_are_tested_as_test_images_are(tmp_path: Path) -> None:
    """Streamed.

    The held-out files are decoded by the test protocol, without augmentation, and keep their
    labels.
    """
    from PIL import Image

    for split, count in (("train", 10), ("val", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((12, 12), 60).convert("RGB").save(folder / f"{number}.png")
    folder = streamed(tmp_path, "noise=uniform", "label_noise.ratio=0.5")
    check_noise_of(folder.read_config(), held=8, wrong=6)
    assert run_cell(folder.path) is Outcome.done, folder.read_record()
    assert [entry.step for entry in folder.journal.read()] == [3], "12 of 20 files are trained on"
    assert folder.journal.read()[0].metrics["val/top1_error"] % 12.5 == 0, "8 images"


def streamed(tmp_path: Path, *more: str) -> RunFolder:
    return queued(
        tmp_path,
        "data=imagefolder",
        f"data.root={tmp_path / 'images'}",
        "data.augmentation=squash_crop",
        "data.resize=10",
        "data.image_size=8",
        "data.mean=[0.5,0.5,0.5]",
        "data.std=[0.2,0.2,0.2]",
        "data.workers=0",
        "data.holdout=8",
        "recipe.batch_size=4",
        "recipe.epochs=1",
        *more,
    )
