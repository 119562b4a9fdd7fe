"""What a distillation teacher is shown.

The very images of its student, in the form in which it was trained on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dks import data
from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.config.schema import Config
from dks.data.batches import Normalise, TrainingBatches
from dks.data.images import ImageSet
from dks.models.weights import Input, input_of, run_network
from dks.objectives.teacher import Teacher, load_teacher
from dks.runs.record import RunFolder
from dks.training.flops import flops
from tests.conftest import TINY, config, finished_run

CPU = torch.device("cpu")
# Far from those of the images, so that with them a network is no other network's friend.
MEAN, STD = [0.1, 0.7, 0.4], [0.5, 0.1, 0.3]
CONSTANTS = (f"{MEAN}".replace(" ", ""), f"{STD}".replace(" ", ""))
OWN = (f"recipe.mean={CONSTANTS[0]}", f"recipe.std={CONSTANTS[1]}")
KNOWN = (f"kd_teacher.mean={CONSTANTS[0]}", f"kd_teacher.std={CONSTANTS[1]}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with constants of its own that has learnt something."""
    return finished_run(tmp_path_factory.mktemp("teacher"), "method=baseline", "data=digits", *OWN)


@pytest.fixture(scope="module")
def saved(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its network in a file, of which nobody knows the constants."""
    path = tmp_path_factory.mktemp("saved") / "net.pt"
    torch.save(
        {"net": run_network(trained.path.parent, trained.cell_id)[1].strip().state_dict()}, path
    )
    return path


def student(trained: RunFolder, *overrides: str) -> Config:
    """A student of that run, unless the overrides name another teacher."""
    run = (
        ()
        if any("path=" in each for each in overrides)
        else (f"kd_teacher.cell={trained.cell_id}",)
    )
    runs = f"runs_dir={trained.path.parent}"
    given: Config = config(
        *TINY, "data=digits", runs, "method=kd_c1", "teacher=checkpoint", *run, *overrides
    )
    return given


def shown(given: Config) -> tuple[Teacher, ImageSet, Callable[[Tensor], Tensor]]:
    """The teacher of a student, the student's test set, and how the student gets its images."""
    train, test = data.load(given.data)
    teacher = load_teacher(given, train)
    assert teacher is not None and isinstance(test, ImageSet) and isinstance(train, ImageSet)
    form = input_of(given, train)
    return teacher, test, Normalise(form.mean, form.std, CPU)


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_teachers_own_error_is_what_it_shows_on_the_images_of_its_student(
    kind: str, trained: RunFolder, saved: Path
) -> None:
    given = student(
        trained,
        *(
            (f"kd_teacher.path={saved}", "kd_teacher.backbone=resnet8", *KNOWN)
            if kind == "file"
            else ()
        ),
    )
    teacher, test, normalise = shown(given)
    record = trained.read_record()
    assert record is not None
    with torch.no_grad():
        logits = teacher(normalise(test.images))
        wrong = teacher.network(normalise(test.images))  # what it was shown before
    error = 100 * float((logits.argmax(dim=1) != test.labels).double().mean())
    assert error == pytest.approx(record.final["test/top1_error"], abs=1e-4)
    assert float(F.cross_entropy(logits, test.labels)) == pytest.approx(
        record.final["test/loss"], abs=1e-4
    )
    assert abs(float(F.cross_entropy(wrong, test.labels)) - record.final["test/loss"]) > 0.1
    assert record.final["test/top1_error"] < 80  # chance is 90


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_what_lies_around_a_crop_is_the_same_to_both(mode: str, trained: RunFolder) -> None:
    given = student(trained, f"recipe.pad_mode={mode}")
    train, _ = data.load(given.data)
    assert isinstance(train, ImageSet)
    teacher, _, normalise = shown(given)

    def batches(normalised: Callable[[Tensor], Tensor]) -> TrainingBatches:
        recipe = given.recipe
        return TrainingBatches(
            train, recipe.batch_size, 0, 3, True, normalised, CPU, recipe.pad_mode
        )  # type: ignore[arg-type]

    seen: list[Tensor] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for mine, its in zip(
        batches(normalise).epoch(1), batches(Normalise(MEAN, STD, CPU)).epoch(1), strict=True
    ):
        teacher(mine.images)
        torch.testing.assert_close(seen.pop(), its.images, rtol=1e-5, atol=1e-5)


def test_in_a_run_a_teacher_sees_pixels(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first image to the last.

    Brought back by its own constants they are whole numbers from 0 to 255.
    """
    from dks.training import run

    seen: list[Tensor] = []

    def watched(given: Any, train: Any) -> nn.Module | None:
        teacher = load_teacher(given, train)
        assert teacher is not None
        teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        return teacher

    monkeypatch.setattr(run, "load_teacher", watched)
    finished_run(
        trained.path.parent.parent,
        "method=kd_c1",
        "teacher=checkpoint",
        f"kd_teacher.cell={trained.cell_id}",
        "data.pad=3",
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = 255 * (torch.cat(seen) * std + mean)
    assert len(pixels) == 2 * 64
    assert float((pixels - pixels.round()).abs().max()) < 1e-3
    assert float(pixels.min()) == pytest.approx(0, abs=1e-3) and float(pixels.max()) < 255.001
    assert float((pixels.round() == 0).double().mean()) > 0.1  # borders


def test_where_both_know_images_alike_nothing_is_computed(trained: RunFolder) -> None:
    teacher, test, normalise = shown(student(trained, *OWN))
    images = normalise(test.images)
    seen: list[Tensor] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    teacher(images)
    assert seen[0] is images


def test_constants_of_the_training_set_are_those_of_the_teachers_own(tmp_path: Path) -> None:
    """Neither names any.

    The teacher's are those of what it was trained on, the student's of what is left of it.
    """
    folder = finished_run(tmp_path, "method=baseline", "recipe.epochs=1")
    teacher, test, normalise = shown(student(folder, "data=synthetic", "data.holdout=32"))
    pixels = data.load(folder.read_config().data)[0].images.numpy() / 255  # type: ignore[union-attr]
    mean, std = pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(0, 2, 3))
    seen: list[Tensor] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    teacher(normalise(test.images))
    expected = (test.images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    torch.testing.assert_close(seen[0], expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_teacher_sees_images_of_its_own_size(kind: str, trained: RunFolder, saved: Path) -> None:
    """It was trained on 8x8 pixels, the student sees 12x12."""
    file = (
        f"kd_teacher.path={saved}",
        "kd_teacher.backbone=resnet8",
        *KNOWN,
        "kd_teacher.image_size=8",
    )
    teacher, test, normalise = shown(
        student(trained, "data.image_size=12", *(file if kind == "file" else ()))
    )
    seen: list[Tensor] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    teacher(normalise(test.images))
    small = F.interpolate(test.images.float(), (8, 8), mode="bilinear", antialias=True)
    expected = (small / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_torchvisions_weights_see_what_they_were_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """224x224 pixels with the constants of ImageNet.

    The weights are random, for nothing is downloaded.
    """
    torch.manual_seed(0)
    asked: list[Any] = []
    network: nn.Module = torchvision.models.resnet18()

    def get_model(name: str, weights: Any) -> nn.Module:
        asked.append((name, weights))
        return network

    monkeypatch.setattr("torchvision.models.get_model", get_model)
    given = config(
        *TINY,
        "data.num_classes=1000",
        "data.image_size=28",
        "method=kd_c1",
        "teacher=resnet50",
        "kd_teacher.backbone=resnet18",
    )
    teacher, test, normalise = shown(given)
    assert asked == [("resnet18", torchvision.models.ResNet18_Weights.IMAGENET1K_V1)]
    large = F.interpolate(
        test.images[:2].float() / 255, (224, 224), mode="bilinear", antialias=True
    )
    expected = (large - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(
            teacher(normalise(test.images[:2])), network.eval()(expected), rtol=1e-4, atol=1e-4
        )


def test_on_imagenet_by_the_paper_torchvisions_weights_see_the_batch_itself() -> None:
    """As torchvision's own presets say, whose constants `data=imagenet` has."""
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    own = Input(preset.mean, preset.std, (224, 224))
    teacher = Teacher(
        nn.Identity(), own, Input([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], (224, 224))
    )
    images = torch.randn(1, 3, 224, 224)
    assert teacher(images) is images


# --- what is asked for


FILE = ("kd_teacher.backbone=resnet8",)


def test_what_a_file_was_trained_on_is_part_of_the_cell_where_it_says_something(
    trained: RunFolder, saved: Path
) -> None:
    file = (f"kd_teacher.path={saved}", *FILE)
    plain = cell_id(student(trained, *file, *OWN))
    for other in (KNOWN[:1], KNOWN[1:], ("kd_teacher.image_size=12",)):
        assert cell_id(student(trained, *file, *other)) != cell_id(student(trained, *file))
    # The student's own, said again.
    for same in (KNOWN[:1], KNOWN[1:], KNOWN, ("kd_teacher.image_size=8",)):
        assert cell_id(student(trained, *file, *OWN, *same)) == plain
    digits = (*file, "data.image_size=null")
    assert cell_id(student(trained, *digits)) == cell_id(
        student(trained, *digits, "kd_teacher.image_size=8")
    )


def test_a_file_whose_constants_nobody_gave_has_the_students_and_it_is_said(
    trained: RunFolder, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, _, _ = shown(student(trained, f"kd_teacher.path={saved}", *FILE))
    assert teacher.factor is None and teacher.size is None
    assert capsys.readouterr().err.splitlines() == [
        f"weights from {saved}: under net",
        f"kd_teacher.path={saved} is shown images that are normalised as the student's; where it "
        f"was trained on others, give "
        "kd_teacher.mean and kd_teacher.std",
    ]
    student(trained, f"kd_teacher.path={saved}", *FILE, *KNOWN)
    assert capsys.readouterr().err == f"weights from {saved}: under net\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            KNOWN,
            "kd_teacher.mean is for a file (kd_teacher.path); a run and torchvision's weights "
            "have their own, drop it",
        ),
        (
            ("kd_teacher.path=FILE", *FILE, "kd_teacher.std=[1,1]"),
            "kd_teacher.std=[1.0, 1.0] must be three finite numbers",
        ),
        (
            ("kd_teacher.path=FILE", *FILE, "kd_teacher.image_size=0"),
            "kd_teacher.image_size=0 must be at least 1 and at most",
        ),
    ],
)
def test_constants_that_make_no_sense_are_refused(
    overrides: tuple[str, ...], message: str, trained: RunFolder, saved: Path
) -> None:
    with pytest.raises(RequestError) as refused:
        student(trained, *(each.replace("FILE", str(saved)) for each in overrides))
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["fcn_resnet50", "resnet51", "quantized_resnet50"])
def test_what_is_no_classifier_of_torchvision_is_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(
        RequestError,
        match=f"kd_teacher.backbone={name} is no classifier of torchvision with weights of",
    ):
        config(
            *TINY,
            "data.num_classes=1000",
            "method=kd_c1",
            "teacher=resnet50",
            f"kd_teacher.backbone={name}",
        )


def test_a_teacher_is_counted_at_its_own_size(trained: RunFolder, saved: Path) -> None:
    """At twice the side, its forward pass takes four times the operations but for the classifier.

    64 x 10 products.
    """
    file = (f"kd_teacher.path={saved}", *FILE)
    once, twice = (
        flops(student(trained, *file, *more)).step for more in ((), ("kd_teacher.image_size=16",))
    )
    head = 2 * 64 * 10
    forward = flops(student(trained, *file)).inference
    assert twice - once == 4 * (forward - head) + head - forward


def test_a_teacher_whose_images_nobody_knows_any_more_is_refused(tmp_path: Path) -> None:
    """Its constants are those of its training set, which has changed."""
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)

    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "set" / place).mkdir(parents=True)
        torchvision.io.write_png(pixels, str(tmp_path / "set" / place / "0.png"))
    source = (
        "data=imagefolder",
        f"data.root={tmp_path / 'set'}",
        "data.augmentation=pad_crop",
        "data.image_size=8",
    )
    more = (
        "data.mean=null",
        "data.std=null",
        "data.num_classes=null",
        "data.train_images=null",
        "data.test_images=null",
    )
    folder = finished_run(tmp_path, *source, *more, "method=baseline", "recipe.epochs=1")
    arguments = (
        f"kd_teacher.cell={folder.cell_id}",
        f"runs_dir={tmp_path / 'runs'}",
        "data.num_classes=2",
    )
    config(*TINY, "data=synthetic", "method=kd_c1", "teacher=checkpoint", *arguments)
    torchvision.io.write_png(255 - pixels, str(tmp_path / "set" / "train" / "a" / "0.png"))
    with pytest.raises(
        RequestError,
        match=f"kd_teacher.cell={folder.cell_id}: the files in data.root=.* are not those",
    ):
        config(*TINY, "data=synthetic", "method=kd_c1", "teacher=checkpoint", *arguments)
