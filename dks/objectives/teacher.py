"""The frozen teacher of the distillation methods (Table 6 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from rich.markup import escape
from torch import Tensor, nn

from dks import data
from dks.config.errors import RequestError
from dks.config.files import load_choice
from dks.config.schema import Backbone, Config, TeacherKind
from dks.data.images import Images
from dks.models.network import SupervisedNetwork
from dks.models.weights import (
    Input,
    file_network,
    fingerprint,
    input_of,
    run_input,
    run_network,
    stated_input,
)
from dks.runs.terminal import say

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

IMAGENET_CLASSES = 1000


class Teacher(nn.Module):
    """A frozen network that sees the very images of a student, in the form in which it was trained
    on its own.

    Images (N, 3, H, W) as the student gets them -> logits (N, K). What lies around a crop is black
    to both. Where the two forms are the same, nothing is computed.

    Args:
        own: the form of the images that the network was trained on.
        student: that of the images that it is shown; those of another size are resized (bilinear,
            antialiased).
    """

    factor: Tensor | None
    offset: Tensor | None

    def __init__(self, network: nn.Module, own: Input, student: Input) -> None:
        super().__init__()
        self.network = network
        self.size = None if own.size == student.size else own.size
        alike = (own.mean, own.std) == (student.mean, student.std)
        mean, std, shown_mean, shown_std = (
            torch.tensor(values, dtype=torch.float64, device="cpu")[:, None, None]
            for values in (own.mean, own.std, student.mean, student.std)
        )
        self.register_buffer("factor", None if alike else (shown_std / std).float())
        self.register_buffer("offset", None if alike else ((shown_mean - mean) / std).float())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        if self.factor is not None and self.offset is not None:
            images = images * self.factor + self.offset
        logits: Tensor = self.network(images)
        return logits


def load_teacher(config: Config, train: Images) -> Teacher | None:
    """The teacher that a configuration asks for, in evaluation mode and without gradients.

    Args:
        train: what the student is trained on.

    Raises:
        RequestError: it cannot be found or read, it tells another number of classes apart, or the
            data of a run is needed to know how its images were normalised, and is not there any
            more.
    """
    kd = config.kd_teacher
    if kd.kind is TeacherKind.none:
        return None
    student = input_of(config, train)
    if kd.kind is TeacherKind.torchvision:
        from torchvision.models import get_model  # it takes a while, and few runs have need of it

        weights = torchvision_weights(config)
        return Teacher(
            get_model(str(kd.backbone), weights=weights), torchvision_input(weights), student
        )
    if kd.cell is not None:
        trained, network = _from_run(kd.cell, config)
        return Teacher(network.strip(), run_input(trained), student)
    network, _ = _from_file(config)
    size = student.size if kd.image_size is None else (kd.image_size, kd.image_size)
    return Teacher(
        network.strip(), Input(kd.mean or student.mean, kd.std or student.std, size), student
    )


def check_teacher(config: Config) -> None:
    """Everything that can be wrong with a teacher, found before anything runs.

    Nothing is downloaded.

    Raises:
        RequestError: as `load_teacher`.
    """
    kd = config.kd_teacher
    if kd.kind is TeacherKind.torchvision:
        torchvision_weights(config)
    elif kd.cell is not None:
        _from_run(kd.cell, config)
    elif kd.path is not None:
        _, told = _from_file(config)
        if told:
            say(escape(told))
        if kd.mean is None or kd.std is None:
            line = f"kd_teacher.path={kd.path} is shown images that are normalised as the student's"
            say(
                escape(
                    f"{line}; where it was trained on others, give kd_teacher.mean and "
                    f"kd_teacher.std"
                )
            )


def torchvision_weights(config: Config) -> WeightsEnum:
    """Those of torchvision on ImageNet that a configuration asks for, not yet downloaded.

    Raises:
        RequestError: there are none, or the data has another number of classes.
    """
    from torchvision.models import get_model_weights

    kd, classes = config.kd_teacher, config.data.num_classes
    if classes != IMAGENET_CLASSES:
        raise RequestError(
            f"torchvision's teachers tell {IMAGENET_CLASSES} classes apart, the data has "
            f"{classes}; choose teacher=checkpoint "
            "with a network trained on this data"
        )
    try:
        return get_model_weights(str(kd.backbone))["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        raise RequestError(
            f"kd_teacher.backbone={kd.backbone} is no classifier of torchvision with weights of "
            f"ImageNet; choose for example "
            "resnet50"
        ) from None


def torchvision_input(weights: WeightsEnum) -> Input:
    """The images that they were trained for."""
    preset = weights.transforms()
    return Input(preset.mean, preset.std, (preset.crop_size[0], preset.crop_size[0]))


def _from_run(cell: str, config: Config) -> tuple[Config, SupervisedNetwork]:
    trained, network = run_network(config.runs_dir, cell)
    if trained.data.num_classes != config.data.num_classes:
        raise RequestError(
            f"kd_teacher.cell={cell} tells {trained.data.num_classes} classes apart, the data "
            f"has {config.data.num_classes}"
        )
    try:
        if stated_input(trained) is None:
            data.require(trained.data)
    except RequestError as error:
        raise RequestError(
            *(f"kd_teacher.cell={cell}: {problem}" for problem in error.problems)
        ) from error
    return trained, network


def _from_file(config: Config) -> tuple[SupervisedNetwork, str]:
    """The network, and what is to be told of its weights."""
    kd, classes = config.kd_teacher, config.data.num_classes
    assert kd.path is not None and kd.backbone is not None
    if kd.fingerprint not in (None, fingerprint(kd.path)):
        raise RequestError(
            f"kd_teacher.path={kd.path} is not the file that the run was planned with; put that "
            f"back, or type the command "
            "again, which makes another cell"
        )
    known, network, told = file_network(
        load_choice("backbone", kd.backbone, Backbone), kd.backbone, kd.path
    )
    if known != classes:
        raise RequestError(
            f"kd_teacher.path={kd.path} tells {known} classes apart, the data has {classes}"
        )
    return network, told
