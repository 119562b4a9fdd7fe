"""Testing again.

A run gives the numbers it recorded, a checkpoint those of an independent computation.
"""

from __future__ import annotations

import io
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dks.cli.main import main
from dks.config.errors import RequestError
from dks.machine import code
from dks.runs.record import RunFolder
from dks.tools.evaluate import evaluate, evaluate_configured, evaluate_file, evaluate_run
from dks.tools.export import Format, export
from tests.conftest import finished_run

CLASSES = 7


def told(capsys: pytest.CaptureFixture[str], run: RunFolder) -> str:
    with pytest.raises(SystemExit):
        main(["evaluate", run.cell_id, "--runs-dir", str(run.path.parent)])
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def without_lines_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log gets one after ten seconds, which these tests take on a busy machine alone."""
    monkeypatch.setattr("dks.runs.terminal.LINE_EVERY", float("inf"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on one thread whose classifiers have learnt something, so that their errors differ."""
    folder, threads = tmp_path_factory.mktemp("finished"), torch.get_num_threads()
    sizes = ("data.train_images=320", "data.test_images=70", "eval_batch_size=32")
    run = finished_run(folder, *sizes, "recipe.lr=0.02", "threads=1")
    torch.set_num_threads(threads)
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two JPEG files a class in `val/`, of several sizes and proportions, none square, one of them
    gray.

    The sides are multiples of 25 over 200, so that no centre lies between two pixels.
    """
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in range(CLASSES):
        for number, size in enumerate([(300 + 25 * label, 200), (200, 250 + 25 * label)]):
            coarse = Image.fromarray(draw.integers(0, 256, (4 + label, 5, 3), dtype=np.uint8))
            path = folder / "val" / f"n{label:04d}" / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = coarse.resize(size, Image.Resampling.BICUBIC)
            (image.convert("L") if label == number == 1 else image).save(path, quality=95)
    return folder


def squeezed(image: Image.Image) -> Image.Image:
    return image.resize((256, 256), Image.Resampling.BICUBIC)


def in_proportion(image: Image.Image) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    return image.resize((256 * width // short, 256 * height // short), Image.Resampling.BILINEAR)


def by_hand(folder: Path, resize: Callable[[Image.Image], Image.Image]) -> tuple[Tensor, Tensor]:
    """Images and labels of a folder, computed with PIL and numpy alone."""
    pixels, labels = [], []
    for label, each in enumerate(sorted(folder.iterdir())):
        for path in sorted(each.iterdir()):
            image = np.asarray(resize(Image.open(path).convert("RGB")), dtype=np.float64) / 255
            top, left = ((side - 224) // 2 for side in image.shape[:2])
            cut = image[top : top + 224, left : left + 224]
            pixels.append((cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
            labels.append(label)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float(), torch.tensor(labels)


@pytest.fixture(scope="module")
def resnet(photos: Path) -> nn.Module:
    """torchvision's ResNet-18 with random weights, its classifier centred on the photos so that its
    answers vary.
    """
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=CLASSES).eval()
    images, _ = by_hand(photos / "val", squeezed)
    with torch.no_grad():
        network.fc.bias.zero_()
        logits = network(images)
        network.fc.weight.div_(logits.std(dim=0).mean())
        network.fc.bias.sub_(logits.mean(dim=0) / logits.std(dim=0).mean())
    return network


@pytest.fixture(scope="module")
def released(resnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint in the form that the authors released.

    The state dict of a `DataParallel` module.
    """
    path = tmp_path_factory.mktemp("released") / "resnet18.pth"
    torch.save(nn.DataParallel(resnet).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def expected(resnet: nn.Module, photos: Path) -> dict[str, dict[str, float]]:
    """The metrics by protocol, computed without anything of this project."""
    metrics = {}
    for protocol, resize in (("paper", squeezed), ("torchvision", in_proportion)):
        images, labels = by_hand(photos / "val", resize)
        with torch.no_grad():
            logits = resnet(images)
        order = logits.argsort(dim=1, descending=True)
        top1, top5 = (
            100 * (1 - float((order[:, :k] == labels[:, None]).any(dim=1).double().mean()))
            for k in (1, 5)
        )
        metrics[protocol] = {
            "test/loss": float(F.cross_entropy(logits, labels)),
            "test/top1_error": top1,
            "test/top5_error": top5,
        }
    return metrics


def dks(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """`dks ARGUMENTS`: exit status, output, errors."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def a_file(weights: Path, images: Path) -> list[str]:
    """The command that tests a ResNet-18 in a file on a folder."""
    return f"evaluate --weights {weights} --backbone resnet18 --images {images}".split()


# --- the function


def test_evaluate_counts_every_image_once_in_evaluation_mode() -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            assert not self.training
            return {"c1": images[:, :, 0, 0], "c2": -images[:, :, 0, 0]}

    logits = torch.tensor([[4.0, 3, 2, 1, 0, -1], [0, 1, 2, 3, 4, 5], [9, 0, 0, 0, 0, 0]])
    labels = torch.tensor([1, 0, 0])
    batches = [(logits[:2, :, None, None], labels[:2]), (logits[2:, :, None, None], labels[2:])]
    found = evaluate(Network().train(), batches, torch.device("cpu"))
    assert found == pytest.approx(
        {
            "test/loss": float(F.cross_entropy(logits, labels)),
            "test/top1_error": 100 * 2 / 3,
            "test/top5_error": 100 / 3,
            "test/loss_c2": float(F.cross_entropy(-logits, labels)),
            "test/top1_error_c2": 100 * 2 / 3,
            "test/top5_error_c2": 100 / 3,
        }
    )


# --- runs


def test_a_run_gives_again_what_it_recorded(finished: RunFolder) -> None:
    record, threads = finished.read_record(), torch.get_num_threads()
    assert record is not None
    found = evaluate_run(str(finished.path.parent), finished.cell_id)
    assert (
        found.metrics
        == {name: value for name, value in record.final.items() if name.startswith("test/")}
        == found.recorded
    )
    assert len(found.metrics) == 9
    assert len({found.metrics[f"test/top1_error{end}"] for end in ("", "_c2", "_c3")}) > 1
    assert found.images == 70
    assert torch.get_num_threads() == threads
    # In batches of another size the last bits may differ.
    assert evaluate_run(
        str(finished.path.parent), finished.cell_id, "cpu", 7
    ).metrics == pytest.approx(found.metrics, rel=1e-5)


def test_a_run_that_held_images_out_gives_again_what_it_recorded(tmp_path: Path) -> None:
    """Images are normalised by what was trained on, without those held out."""
    run = finished_run(tmp_path, "data.holdout=40", "data.test_images=70", "eval_batch_size=32")
    found = evaluate_run(str(run.path.parent), run.cell_id)
    assert found.metrics == found.recorded


def test_dks_evaluate_prints_the_errors_of_every_classifier(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", finished.cell_id, "--runs-dir", str(finished.path.parent)]
    record = finished.read_record()
    assert record is not None
    status, out, err = dks(capsys, *arguments)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert (
        lines[0]
        == f"cell_id={finished.cell_id} data=synthetic, 70 images: top-1 / top-5 error in %"
    )
    for line, end in zip(lines[1:], ("", "_c2", "_c3"), strict=True):
        errors = (
            f"{record.final[f'test/top1_error{end}']:.2f} / "
            f"{record.final[f'test/top5_error{end}']:.2f}"
        )
        assert line.split() == [
            end.strip("_") or "c1",
            *errors.split(),
            "(recorded",
            *f"{errors})".split(),
        ]
    status, out, _ = dks(capsys, *arguments, "--json")
    values = json.loads(out)
    assert status == 0
    assert (
        values["metrics"]
        == values["recorded"]
        == {name: record.final[name] for name in values["metrics"]}
    )


def test_a_run_whose_data_changed_or_went_away_is_not_tested(tmp_path: Path) -> None:
    def write(split: str, shade: int) -> None:
        encoded = []
        for number in range(8):
            Image.new("RGB", (8, 8), (shade, 30 * number, 0)).save(buffer := io.BytesIO(), "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {"image": pa.array(encoded, kind), "label": pa.array([0, 1] * 4, pa.int64())}
        )
        pq.write_table(table, root / f"{split}-0.parquet")

    root = tmp_path / "set"
    root.mkdir()
    write("train", 100)
    write("test", 100)
    source = (
        "data.source=parquet",
        f"data.root={root}",
        "data.num_classes=null",
        "data.train_images=null",
        "data.test_images=null",
    )
    folder = finished_run(tmp_path, *source, "method=baseline")
    runs = str(tmp_path / "runs")
    found = evaluate_run(runs, folder.cell_id)
    assert found.metrics == found.recorded
    write("test", 200)
    with pytest.raises(
        RequestError, match=f"are not those that run {folder.cell_id} was trained on"
    ):
        evaluate_run(runs, folder.cell_id)
    # Nor is it exported with the mean and the standard deviation of other images.
    with pytest.raises(RequestError, match="are not those that the run was planned with"):
        export(runs, folder.cell_id, Format.safetensors, str(tmp_path / "net.safetensors"))
    (root / "test-0.parquet").unlink()
    with pytest.raises(RequestError, match=r"has no file test-\*\.parquet"):
        evaluate_run(runs, folder.cell_id)


def test_a_run_whose_images_were_replaced_in_place_is_neither_tested_nor_exported(
    tmp_path: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names, sizes and times are as they were.

    What is exported has the statistics of the images in it.
    """
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "set" / place).mkdir(parents=True)
        Image.effect_noise((8, 8), 90).convert("RGB").save(tmp_path / "set" / place / "1.bmp")
    own = (
        "data.augmentation=pad_crop",
        "data.num_classes=null",
        "data.image_size=null",
        "data.mean=null",
        "data.std=null",
    )
    folder = finished_run(
        tmp_path, "data=imagefolder", f"data.root={tmp_path / 'set'}", *own, "recipe.epochs=1"
    )
    picture = tmp_path / "set" / "train" / "a" / "1.bmp"
    state = picture.stat()
    Image.effect_noise((8, 8), 90).convert("RGB").save(picture)
    os.utime(picture, ns=(state.st_atime_ns, state.st_mtime_ns))
    capsys.readouterr()
    status, _, err = dks(capsys, "evaluate", folder.cell_id)
    assert (status, err.count("\n")) == (2, 1)
    assert (
        f"the files in data.root={tmp_path / 'set'} are not those that run {folder.cell_id} was "
        f"trained on" in err
    )
    status, _, err = dks(capsys, "export", folder.cell_id, "--format", "safetensors")
    assert (status, err.count("\n"), list(tmp_path.glob("*.safetensors"))) == (2, 1, [])
    assert (
        f"the files in data.root={tmp_path / 'set'} are not those that the run was planned with"
        in err
    )


def test_a_run_on_image_files_gives_again_what_it_recorded(tmp_path: Path, photos: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(photos / "val")
    source = (
        "data=imagefolder",
        f"data.root={root}",
        "data.augmentation=squash_crop",
        "data.resize=20",
        "data.image_size=16",
    )
    sizes = (
        "data.workers=0",
        "data.num_classes=null",
        "data.train_images=null",
        "data.test_images=null",
    )
    folder = finished_run(tmp_path, *source, *sizes, "method=baseline", "threads=1")
    found = evaluate_run(str(tmp_path / "runs"), folder.cell_id, batch_size=4, workers=0)
    assert found.recorded is not None
    assert found.metrics == pytest.approx(found.recorded, rel=1e-5)
    assert found.images == 2 * CLASSES


# --- checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["paper", "torchvision"])
def test_a_released_checkpoint_gives_what_an_independent_computation_gives(
    protocol: str,
    photos: Path,
    released: Path,
    expected: dict[str, dict[str, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--workers", "1", "--batch-size", "5", "--device", "cpu", "--json"]
    options += [] if protocol == "paper" else ["--protocol", protocol]
    status, out, err = dks(capsys, *a_file(released, photos), *options)
    assert (status, err) == (0, f"weights from {released}: without the prefix module.\n")
    values = json.loads(out)
    assert values["subject"]["protocol"] == protocol
    assert values["images"] == 2 * CLASSES
    hand = expected[protocol]
    # else there were little to compare
    assert 0 < hand["test/top5_error"] < hand["test/top1_error"] < 100
    assert values["metrics"] == pytest.approx(hand, rel=1e-4)
    losses = [each["test/loss"] for each in expected.values()]
    assert abs(losses[0] - losses[1]) > 0.01, "the photos are not square"


def test_the_images_are_those_that_a_run_would_take(
    released: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link is followed, other names are taken, and what is hidden or no image is not."""
    (tmp_path / "test" / "a" / ".b").mkdir(parents=True)
    (tmp_path / "test" / "a" / "more").symlink_to(photos / "val" / "n0000")
    (tmp_path / "test" / "a" / "1.jfif").write_bytes(
        (photos / "val" / "n0001" / "0.JPEG").read_bytes()
    )
    (tmp_path / "test" / "a" / "._1.png").write_bytes(b"")
    (tmp_path / "test" / "a" / "list.txt").write_bytes(b"")
    options = ("--workers", "0", "--device", "cpu", "--json")
    status, out, err = dks(capsys, *a_file(released, tmp_path), *options)
    assert (status, json.loads(out)["images"], json.loads(out)["subject"]["images"]) == (
        0,
        3,
        str(tmp_path / "test"),
    )
    assert f"{tmp_path}/test: not taken: 1 .txt (a/list.txt), 2 hidden (a/._1.png, ...)" in err


@pytest.mark.slow
def test_the_folder_itself_will_do(
    photos: Path,
    released: Path,
    expected: dict[str, dict[str, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--workers", "0", "--device", "cpu", "--quiet")
    status, out, err = dks(capsys, *a_file(released, photos / "val"), *options)
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    assert first.endswith(
        f"backbone=resnet18 images={photos / 'val'} protocol=paper, 14 images: top-1 / top-5 "
        f"error in %"
    )
    hand = expected["paper"]
    assert second == f"  c1  {hand['test/top1_error']:6.2f} / {hand['test/top5_error']:.2f}"


def test_a_checkpoint_with_more_classes_than_the_folder_is_tested_and_says_so(
    resnet: nn.Module,
    photos: Path,
    expected: dict[str, dict[str, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = OrderedDict(resnet.state_dict())
    state["fc.weight"] = torch.cat([state["fc.weight"], torch.zeros(3, 512)])
    state["fc.bias"] = torch.cat([state["fc.bias"], torch.full((3,), -1e4)])  # never chosen
    torch.save({"state_dict": state, "epoch": 100}, tmp_path / "wide.pth")
    found = evaluate_file(
        str(tmp_path / "wide.pth"), "resnet18", str(photos), device="cpu", workers=0
    )
    assert found.metrics == pytest.approx(expected["paper"], rel=1e-4)
    assert (
        f"has 7 of the 10 classes of {tmp_path / 'wide.pth'}; they are taken for the first ones"
        in capsys.readouterr().err
    )


def test_a_checkpoint_with_fewer_classes_than_the_folder_is_refused(
    photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "narrow.pth"
    torch.save(torchvision.models.resnet18(num_classes=6).state_dict(), path)
    with pytest.raises(RequestError, match=rf"val has 7 classes and {path} tells 6 apart"):
        evaluate_file(str(path), "resnet18", str(photos), device="cpu", workers=0)


SMALL = (
    "backbone=resnet8",
    "data=synthetic",
    "data.image_size=8",
    "data.train_images=320",
    "data.test_images=70",
)


def test_a_small_checkpoint_is_tested_on_the_data_of_a_configuration(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of a run, as somebody else's script saved them, have the error that the run
    recorded for c1.
    """
    record, path = finished.read_record(), tmp_path / "ckpt.pth"
    assert record is not None
    state = {
        f"module.{name.removeprefix('backbone.')}": value
        for name, value in load_file(finished.weights_file).items()
    }
    inner = {name: value for name, value in state.items() if "branches" not in name}
    torch.save({"net": inner, "acc": np.float64(93.5), "epoch": 7}, path)
    status, out, err = dks(
        capsys, "evaluate", SMALL[0], "--weights", str(path), *SMALL[1:], "--json"
    )
    values = json.loads(out)
    assert (status, values["images"]) == (0, 70)
    assert err == f"weights from {path}: under net, without the prefix module.\n"
    assert {key: values["subject"][key] for key in ("backbone", "data")} == {
        "backbone": "resnet8",
        "data": "synthetic",
    }
    errors = {
        name: record.final[name] for name in ("test/loss", "test/top1_error", "test/top5_error")
    }
    assert values["metrics"] == pytest.approx(errors, rel=1e-5)
    # Its normalisation is given as in training.
    status, out, err = dks(
        capsys,
        "evaluate",
        "--weights",
        str(path),
        *SMALL,
        "recipe.mean=[0.9,0.9,0.9]",
        "--json",
        "--quiet",
    )
    assert (status, err) == (0, "")
    assert abs(json.loads(out)["metrics"]["test/loss"] - record.final["test/loss"]) > 0.01


@pytest.mark.slow
def test_a_checkpoint_is_tested_on_image_files_as_a_run_on_them_is(
    photos: Path, released: Path, expected: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(photos / "val")
    overrides = ["backbone=resnet18", "data=imagefolder", f"data.root={tmp_path}"]
    found = evaluate_configured(str(released), overrides, device="cpu", workers=0)
    assert found.images == 2 * CLASSES
    assert found.metrics == pytest.approx(expected["torchvision"], rel=1e-4)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_is_no_image_is_named_in_one_line(
    released: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "n0" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    options = ("--workers", str(workers), "--device", "cpu")
    status, out, err = dks(capsys, *a_file(released, tmp_path), *options)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {broken}: the image cannot be decoded (")
    assert "Traceback" not in err


@pytest.mark.rest_slow(13)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "or --weights, --backbone and --images (--weights, --backbone, --images not given)"),
        (
            "--weights w.pt --images .",
            "or --weights, --backbone and --images (--backbone not given)",
        ),
        (
            "backbone=resnet8 data=digits",
            "give CELL_ID, --weights with backbone=NAME and data=NAME, or --weights, "
            "--backbone and ",
        ),
        ("abc data=digits", "a run is tested on its own test set; drop data=digits, or CELL_ID"),
        ("--weights w.pt backbone=resnet8", "--weights w.pt needs data=NAME"),
        (
            "--weights w.pt --images . data=digits",
            "--images and data=digits: name network and images in one way or the other",
        ),
        (
            "--weights w.pt backbone=resnet8 data=digits seed=1",
            "seed: a test depends on backbone, data, recipe, compute alone",
        ),
        (
            "--weights w.pt backbone=resnet8,resnet20 data=digits",
            "backbone=resnet8,resnet20: a file is tested in one way at a",
        ),
        ("--weights W backbone=resnet18 data=digits", "tells 7 classes apart, data=digits has 10"),
        (
            "--weights W backbone=resnet18 data=nowhere",
            "data=nowhere: no such choice; choose from cifar10, ",
        ),
        (
            "abc --weights w.pt --protocol paper",
            "a run is tested on its own test set; drop --weights, --protocol, or CELL_ID",
        ),
        ("abc", "there is no run abc in runs"),
        (
            "--weights w.pt --backbone resnet18 --images .",
            "w.pt cannot be read: No such file or directory",
        ),
        (
            "--weights w.pt --backbone resnet18 --images . --device cuda:99",
            "device=cuda:99 cannot be used here: ",
        ),
        (
            "--weights w.pt --backbone resnet18 --images . --device meta",
            "device=meta: choose auto, cpu, cuda or cuda:N",
        ),
        ("--weights W --backbone resnet18 --images no", "--images no is not a folder"),
        (
            "--weights W --backbone resnet18 --images .",
            ". has no folder in it; there must be one for each class",
        ),
        (
            "--weights W --backbone resnet50 --images .",
            "as backbone=resnet50 does not fit the network: missing ",
        ),
    ],
)
def test_requests_that_are_wrong_are_one_line(
    arguments: str,
    message: str,
    released: Path,
    in_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(released) if item == "W" else item for item in arguments.split()]
    status, out, err = dks(capsys, "evaluate", *given)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(in_folder.iterdir())


@pytest.mark.parametrize("option", ["--batch-size", "--workers"])
def test_numbers_that_make_no_sense_are_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = dks(capsys, "evaluate", "abc", option, "-1")
    assert (status, err.count("\n")) == (2, 1)
    assert option in err and "-1" in err


def test_a_run_of_another_code_is_said_to_be_one(
    finished: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test is one of today's code."""
    assert "code" not in told(capsys, finished)
    (attempt,) = finished.read_record().attempts  # type: ignore[union-attr]
    monkeypatch.setattr(code, "_own", lambda: "2" * 64)
    said = (
        f"trained by another code ({str(attempt.code)[:12]}) than today's 222222222222, which "
        f"tests it"
    )
    assert said in " ".join(told(capsys, finished).split())
