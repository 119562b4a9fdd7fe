"""Sources in their real formats, augmentation against torchvision, label noise."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dks import data
from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.config.schema import Data, LabelNoise, NoiseKind, PadMode
from dks.data import cifar, digits
from dks.data.batches import Normalise, TestBatches, TrainingBatches, training_batches
from dks.data.holdout import hold_out
from dks.data.images import ImageSet
from dks.data.label_noise import corrupt
from dks.data.seeds import generator
from dks.machine.world import World
from tests.conftest import config

CPU = torch.device("cpu")
AS_STORED = Normalise([0.0, 0.0, 0.0], [1 / 255] * 3, CPU)  # leaves pixel values as they are


def test_digits_are_split_by_class_and_have_three_equal_channels() -> None:
    train, test = data.load(data.describe(Data(source="digits")))
    assert (len(train), len(test)) == (1433, 364)
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 8, 8)
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    assert torch.equal(train.images[:, 0], train.images[:, 2])
    for digit in range(10):
        whole = (train.labels == digit).sum() + (test.labels == digit).sum()
        assert (test.labels == digit).sum() == -(-whole // 5)
    # Fixed: these very images are the test set, in this order.
    assert hashlib.sha256(test.images.numpy().tobytes()).hexdigest()[:16] == "130ca9796ceaab65"


def test_digits_are_those_of_scikit_learn_wherever_it_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = digits.load(Data(source="digits"))
    # then scikit-learn reads them itself
    monkeypatch.setattr(digits, "FILE", Path("elsewhere.csv.gz"))
    for ours, theirs in zip(found, digits.load(Data(source="digits")), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def write_cifar(root: Path, classes: int) -> None:
    """Files in the published binary layout of CIFAR, with few images."""
    rng = np.random.default_rng(0)
    if classes == 10:
        folder, key = root / "cifar-10-batches-py", "labels"
        names = {f"data_batch_{i}": 20 for i in range(1, 6)} | {"test_batch": 10}
        meta = ("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    else:
        folder, key = root / "cifar-100-python", "fine_labels"
        names = {"train": 100, "test": 10}
        meta = ("meta", {"fine_label_names": [f"class {i}" for i in range(100)]})
    folder.mkdir(parents=True)
    for name, count in names.items():
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels, key: [int(i) % classes for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / meta[0]).write_bytes(pickle.dumps(meta[1]))


@pytest.mark.parametrize(("source", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, classes: int
) -> None:
    from torchvision import datasets

    write_cifar(tmp_path, classes)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[source]
    assert cifar.FOLDERS[source] == kind.base_folder
    # The checksums are those of the published files, which these are not.
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    described = data.describe(Data(source=source, root=str(tmp_path)))
    assert (described.num_classes, described.name) == (classes, source)
    train, test = data.load(described)
    assert (len(train), len(test)) == (100, 10)
    assert train.images.shape[1:] == (3, 32, 32)
    file = "cifar-10-batches-py/data_batch_1" if classes == 10 else "cifar-100-python/train"
    raw = pickle.loads((tmp_path / file).read_bytes())["data"][3].reshape(3, 32, 32)
    assert np.array_equal(train.images[3].numpy(), raw)
    assert test.labels.tolist() == [i % classes for i in range(10)]


def test_cifar_files_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path, 10)
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        data.load(data.describe(Data(source="cifar10", root=str(tmp_path), name="own")))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_parquet(
    root: Path, split: str, sides: list[int], labels: list[int], shade: int = 0
) -> list[np.ndarray]:
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(labels) + shade)
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]
    struct = [{"bytes": png(image), "path": None} for image in images]
    image = pa.array(struct, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": image, "label": pa.array(labels, pa.int64())})
    pq.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=3)
    return images


def test_parquet_is_read_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "flowers"
    images = write_parquet(root, "train", [8] * 7, [0, 1, 2, 3, 0, 1, 2])
    write_parquet(root, "test", [8] * 2, [3, 0])
    described = data.describe(Data(source="parquet", root=str(root)))
    assert (described.num_classes, described.name) == (4, "flowers")
    train, test = data.load(described)
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), np.stack(images))
    assert train.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert test.labels.tolist() == [3, 0]


def test_other_files_are_another_cell_and_another_place_is_not(tmp_path: Path) -> None:
    def cell(root: Path) -> str:
        return cell_id(config("data=parquet", f"data.root={root}", "recipe.epochs=1"))

    for name, shade in (("one", 0), ("elsewhere", 0), ("other", 1)):
        write_parquet(tmp_path / name, "train", [8] * 4, [0, 1, 0, 1], shade)
        write_parquet(tmp_path / name, "test", [8] * 2, [0, 1])
    assert cell(tmp_path / "one") == cell(tmp_path / "elsewhere")
    assert cell(tmp_path / "one") != cell(tmp_path / "other")


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", [8, 10], [0, 1])
    write_parquet(tmp_path, "test", [12], [1])
    with pytest.raises(
        ValueError, match=r"row 1: 10x10 pixels, others have 8x8; set data.image_size"
    ):
        data.load(data.describe(Data(source="parquet", root=str(tmp_path))))
    train, test = data.load(data.describe(Data(source="parquet", root=str(tmp_path), image_size=9)))
    assert train.images.shape == (2, 3, 9, 9)
    assert test.images.shape == (1, 3, 9, 9)


def bad_image(root: Path) -> None:
    image = pa.array(
        [{"bytes": b"no image", "path": None}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": image, "label": pa.array([0])}), root / "train-0.parquet")


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    bad_image(tmp_path)
    write_parquet(tmp_path, "test", [8], [0])
    with pytest.raises(ValueError, match=r"train-0.parquet, row 0: the image cannot be decoded"):
        data.load(data.describe(Data(source="parquet", root=str(tmp_path))))


def no_label(root: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([{"bytes": b""}])}), root / "train-00000-of-00001.parquet"
    )


def wrong_image(root: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([b"x"]), "label": pa.array([0])}),
        root / "train-00000-of-00001.parquet",
    )


def negative_label(root: Path) -> None:
    write_parquet(root, "train", [8], [-1])


def not_parquet(root: Path) -> None:
    (root / "train-0.parquet").write_bytes(b"something else entirely")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (no_label, "has no column label"),
        (wrong_image, "must be a struct with the field bytes"),
        (negative_label, "has the label -1"),
        (not_parquet, "cannot be read as Parquet"),
        (lambda root: None, r"has no file train-\*.parquet"),
    ],
)
def test_parquet_files_of_another_layout_are_refused_before_anything_runs(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write_parquet(tmp_path, "test", [8], [0])
    write(tmp_path)
    with pytest.raises(RequestError, match=message):
        data.describe(Data(source="parquet", root=str(tmp_path)))


def test_synthetic_images_are_always_the_same_and_differ_by_class() -> None:
    wanted = data.describe(
        Data(source="synthetic", num_classes=4, image_size=8, train_images=40, test_images=20)
    )
    train, test = data.load(wanted)
    again = data.registry.source("synthetic").load(wanted)[0]
    assert torch.equal(train.images, again.images)
    mean = torch.stack([train.images[train.labels == k].float().mean(dim=0) for k in range(4)])
    nearest = torch.cdist(test.images.float().flatten(1), mean.flatten(1)).argmin(dim=1)
    assert (nearest == test.labels).float().mean() > 0.9


# --- augmentation


def indexed_images(count: int = 1, side: int = 6) -> ImageSet:
    """Every pixel has a value of its own, none is 0, so that a crop tells where it was cut and
    whether it was mirrored.
    """
    one = torch.arange(1, side * side + 1, dtype=torch.uint8).reshape(1, 1, side, side)
    return ImageSet(one.expand(count, 3, side, side).contiguous(), torch.arange(count))


def batches(
    images: ImageSet, pad: int, flip: bool, seed: int = 0, batch_size: int = 64
) -> TrainingBatches:
    return TrainingBatches(images, batch_size, seed, pad, flip, AS_STORED, CPU)


@pytest.mark.slow
def test_crops_and_flips_have_the_distribution_of_torchvision() -> None:
    """All (2p+1)^2 windows, mirrored or not, equally often.

    Chi-squared for ours and for torchvision's transforms.
    """
    side, pad, draws = 6, 2, 20_000
    images = indexed_images(1, side)
    reference = v2.Compose([v2.RandomCrop(side, padding=pad), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    theirs = [reference(images.images[0]) for _ in range(draws)]
    many = ImageSet(
        images.images.expand(draws, -1, -1, -1).contiguous(), torch.zeros(draws, dtype=torch.int64)
    )
    ours = [image for batch in batches(many, pad, flip=True).epoch(1) for image in batch.images]

    def counts(crops: list[torch.Tensor]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for crop in crops:
            key = crop.round().to(torch.uint8).contiguous().numpy().tobytes()
            found[key] = found.get(key, 0) + 1
        return found

    mine, torchvisions = counts(ours), counts(theirs)
    kinds = 2 * (2 * pad + 1) ** 2
    assert len(mine) == len(torchvisions) == kinds
    assert set(mine) == set(torchvisions)
    for found in (mine, torchvisions):
        expected = draws / kinds
        chi_squared = sum((count - expected) ** 2 / expected for count in found.values())
        # 49 degrees of freedom: exceeded once in 2,000 times by chance, and the seeds are fixed
        assert chi_squared < 88


def test_without_flip_nothing_is_mirrored_and_without_padding_nothing_is_moved() -> None:
    images = indexed_images(200)
    crops = torch.cat([batch.images for batch in batches(images, pad=1, flip=False).epoch(1)])
    rows = crops[:, 0, 2, 1:5]  # pixels that no padding reaches
    assert (rows.diff(dim=1) == 1).all()
    for batch in batches(images, pad=0, flip=False).epoch(1):
        assert torch.equal(batch.images, images.images[batch.labels].float())


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    loader = batches(indexed_images(100), pad=1, flip=True, batch_size=32)
    first, second = ([batch.labels for batch in loader.epoch(epoch)] for epoch in (1, 2))
    assert [len(labels) for labels in first] == [32, 32, 32, 4]
    assert len(loader) == 4
    assert torch.cat(first).sort().values.tolist() == list(range(100))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_a_batch_is_a_function_of_seed_epoch_and_step() -> None:
    images = indexed_images(100)
    whole = list(batches(images, 1, True, seed=7).epoch(3))
    torch.manual_seed(123)  # the global generator has no part in it
    again = list(batches(images, 1, True, seed=7).epoch(3))
    other = list(batches(images, 1, True, seed=8).epoch(3))
    pairs = list(zip(whole, again, strict=True))
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs
    )
    assert not torch.equal(whole[0].images, other[0].images)


def test_images_are_normalised_by_channel_after_padding() -> None:
    images = ImageSet(torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8), torch.arange(10))
    mean, std = images.statistics()
    normalise = Normalise(mean, std, CPU)
    (batch, labels), *_ = TestBatches(images, 10, normalise, CPU)
    expected = v2.functional.normalize(images.images.float() / 255, mean, std)
    assert torch.allclose(batch, expected, atol=1e-5)
    assert torch.allclose(batch.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(batch.std(dim=(0, 2, 3), unbiased=False), torch.ones(3), atol=1e-4)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, images.labels)
    # Padding is black before normalisation, as torchvision pads before ToTensor.
    padded = TrainingBatches(images, 10, 0, 4, False, normalise, CPU)
    black = (-torch.tensor(mean) / torch.tensor(std))[:, None]
    corners = torch.cat(
        [batch.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] for batch in padded.epoch(1)]
    )
    assert torch.isclose(corners, black, atol=1e-5).all(dim=1).any()


def plain_batch(
    images: torch.Tensor,
    order: list[int],
    corners: list[list[int]],
    mirrored: list[bool],
    pad: int,
    mode: PadMode,
) -> torch.Tensor:
    """The crops of a batch, one image after another, each padded, cut and mirrored by numpy."""
    height, width = images.shape[-2:]
    crops = []
    for index, (top, left), mirror in zip(order, corners, mirrored, strict=True):
        around = ((0, 0), (pad, pad), (pad, pad))
        padded = np.pad(
            images[index].numpy(), around, "reflect" if mode is PadMode.reflect else "constant"
        )
        window = padded[:, top : top + height, left : left + width]
        crops.append(window[:, :, ::-1] if mirror else window)
    return torch.from_numpy(np.stack(crops).copy())


@pytest.mark.parametrize(("mode", "darkest"), [("reflect", 200), ("zero", 0)])
def test_a_recipe_says_what_lies_beyond_the_border(mode: str, darkest: int) -> None:
    """White images: whatever is mirrored is white, and zeros are black."""
    given = config("data=synthetic", "data.image_size=8", "data.pad=3", f"recipe.pad_mode={mode}")
    white = ImageSet(torch.full((64, 3, 8, 8), 200, dtype=torch.uint8), torch.zeros(64).long())
    shown = [batch.images for batch in training_batches(given, white, AS_STORED, CPU).epoch(1)]
    assert round(float(torch.cat(shown).min())) == darkest


@pytest.mark.parametrize(
    "resident", [False, True], ids=["padded by the batch", "padded as a whole"]
)
@pytest.mark.parametrize("mode", PadMode)
@pytest.mark.parametrize(
    "form", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"]
)
@pytest.mark.parametrize("held_out", [0, 30])
def test_batches_are_bitwise_those_cut_out_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
    resident: bool,
    mode: PadMode,
    form: torch.memory_format,
    held_out: int,
) -> None:
    """As they always were.

    Order, windows and mirrors from the generator of the epoch, in this order of drawing.
    """
    monkeypatch.setattr("dks.data.batches._fits", lambda size, device: resident)  # as on a GPU
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (101, 3, 7, 9), dtype=torch.uint8, generator=draw)
    whole = ImageSet(pixels.contiguous(memory_format=form), torch.arange(101))
    kept, val = hold_out(whole, held_out, seed=2)
    assert isinstance(kept, ImageSet)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    normalise = Normalise(mean, std, CPU)
    scale = torch.tensor(std)[:, None, None]
    factor, offset = 1 / (255 * scale), -torch.tensor(mean)[:, None, None] / scale
    for flip in (True, False):
        loader = TrainingBatches(kept, 16, 5, 3, flip, normalise, CPU, mode)
        draws = generator(5, "epoch", 2)
        order = torch.randperm(len(kept), generator=draws)
        y, x = torch.randint(0, 7, (2, len(kept)), generator=draws)
        mirrored = torch.rand(len(kept), generator=draws) < 0.5
        for step, batch in enumerate(loader.epoch(2)):
            part = slice(16 * step, 16 * step + 16)
            corners = torch.stack([y[part], x[part]], dim=1).tolist()
            mirrors = mirrored[part].tolist() if flip else [False] * len(corners)
            cut = plain_batch(kept.images, order[part].tolist(), corners, mirrors, 3, mode)
            assert torch.equal(batch.images, cut.float() * factor + offset)
            assert torch.equal(batch.labels, kept.labels[order[part]])
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for part in (kept, val):
        if isinstance(part, ImageSet):
            tested = TestBatches(part, 16, normalise, CPU)
            assert torch.equal(
                torch.cat([images for images, _ in tested]), part.images.float() * factor + offset
            )
            assert torch.equal(torch.cat([labels for _, labels in tested]), part.labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize(
    "fits", [True, False], ids=["on the device", "copied while the last batch is computed with"]
)
def test_batches_on_a_gpu_are_those_on_the_cpu(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    monkeypatch.setattr(
        "dks.data.batches._fits", lambda size, device: fits and device.type == "cuda"
    )
    images = ImageSet(torch.randint(0, 256, (500, 3, 8, 8), dtype=torch.uint8), torch.arange(500))

    def epoch(device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
        normalise = Normalise([0.4, 0.5, 0.6], [0.2, 0.3, 0.25], device)
        trained = TrainingBatches(images, 16, 5, 3, True, normalise, device).epoch(2)
        tested = TestBatches(images, 30, normalise, device)
        return [*((batch.images, batch.labels) for batch in trained), *tested]

    for ours, expected in zip(epoch(torch.device("cuda")), epoch(CPU), strict=True):
        assert all(
            one.is_cuda and torch.equal(one.cpu(), other)
            for one, other in zip(ours, expected, strict=True)
        )


def test_batches_and_parts_of_a_set_share_its_pixels() -> None:
    """Where it computes on the CPU: what is mapped from a file stays there."""
    pixels = torch.randint(0, 256, (50, 8, 8, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    kept, val = hold_out(ImageSet(pixels, torch.arange(50)), 10, seed=0)
    assert isinstance(kept, ImageSet) and isinstance(val, ImageSet)
    training = batches(kept, pad=2, flip=True)
    tested = TestBatches(val, 5, AS_STORED, CPU, World(1, 2))
    for stored in (kept.stored, val.stored, training.pixels, tested.part.stored):
        assert stored.data_ptr() == pixels.data_ptr()


def test_statistics_and_sizes_do_not_depend_on_how_pixels_lie_in_memory() -> None:
    planes = torch.randint(0, 256, (5000, 3, 5, 6), dtype=torch.uint8)
    one, other = (
        ImageSet(each, torch.arange(5000))
        for each in (planes, planes.contiguous(memory_format=torch.channels_last))
    )
    assert one.statistics() == other.statistics() == one.subset(torch.randperm(5000)).statistics()
    assert torch.equal(one.resized(9).images, other.resized(9).images)
    mean, std = one.subset(torch.arange(7)).statistics()
    assert mean == pytest.approx((planes[:7] / 255).mean(dim=(0, 2, 3)).tolist())
    assert std == pytest.approx(
        (planes[:7] / 255).std(dim=(0, 2, 3), unbiased=False).tolist(), rel=1e-5
    )


# --- label noise


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_noise_gives_exactly_that_many_wrong_labels_spread_over_the_other_classes(
    ratio: float,
) -> None:
    clean = torch.arange(20_000) % 10
    labels, changed = corrupt(clean, LabelNoise(NoiseKind.uniform, ratio), 10, seed=3)
    assert len(changed) == ratio * 20_000
    assert torch.equal(torch.nonzero(labels != clean).flatten(), changed)
    of_class = labels[changed][clean[changed] == 4]
    counts = torch.bincount(of_class, minlength=10)
    assert counts[4] == 0
    wrong = counts[torch.arange(10) != 4]  # a class that is never drawn counts as well
    expected = len(of_class) / 9
    # 8 degrees of freedom
    assert float(((wrong - expected) ** 2 / expected).sum()) < 30
    again, _ = corrupt(clean, LabelNoise(NoiseKind.uniform, ratio), 10, seed=3)
    other, _ = corrupt(clean, LabelNoise(NoiseKind.uniform, ratio), 10, seed=4)
    assert torch.equal(labels, again)
    assert not torch.equal(labels, other)


def test_without_noise_labels_are_left_alone() -> None:
    clean = torch.arange(10)
    labels, changed = corrupt(clean, LabelNoise(), 10, seed=0)
    assert torch.equal(labels, clean)
    assert len(changed) == 0
