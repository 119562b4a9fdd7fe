"""The frozen teacher of the distillation methods (Table 6 of the paper)."""

from __future__ import annotations

from torch import nn

from dks.config.errors import RequestError
from dks.config.schema import Config, KdTeacher, TeacherKind

IMAGENET_CLASSES = 1000


def load_teacher(config: Config) -> nn.Module | None:
    """The teacher that a configuration asks for: images (N, 3, H, W) -> logits (N, K), in evaluation mode, without gradients.

    Raises:
        RequestError: it cannot be found or read, or it tells another number of classes apart.
    """
    kd, classes = config.kd_teacher, config.data.num_classes
    assert classes is not None
    if kd.kind is TeacherKind.none:
        return None
    if kd.kind is TeacherKind.torchvision:
        check_teacher(config)
        from torchvision.models import get_model  # it takes a while, and few runs have need of it

        teacher: nn.Module = get_model(str(kd.backbone), weights="IMAGENET1K_V1")
    elif kd.cell is not None:
        teacher = _from_run(kd.cell, config.runs_dir, classes)
    else:
        teacher = _from_file(kd, classes)
    return teacher.eval().requires_grad_(False)


def check_teacher(config: Config) -> None:
    """Everything that can be wrong with a teacher, found before anything runs; nothing is downloaded.

    Raises:
        RequestError: as `load_teacher`.
    """
    kd, classes = config.kd_teacher, config.data.num_classes
    if kd.kind is not TeacherKind.torchvision:
        load_teacher(config)
    elif classes != IMAGENET_CLASSES:
        raise RequestError(
            f"torchvision's teachers tell {IMAGENET_CLASSES} classes apart, the data has {classes}; choose teacher=checkpoint "
            "with a network trained on this data"
        )
    else:
        from torchvision.models import list_models

        if kd.backbone not in list_models():
            raise RequestError(f"kd_teacher.backbone={kd.backbone} is no model of torchvision; choose for example resnet50")


def _from_run(cell: str, runs_dir: str, classes: int) -> nn.Module:
    from dks.weights import run_network

    trained, network = run_network(runs_dir, cell)
    if trained.data.num_classes != classes:
        raise RequestError(f"kd_teacher.cell={cell} tells {trained.data.num_classes} classes apart, the data has {classes}")
    return network.strip()


def _from_file(kd: KdTeacher, classes: int) -> nn.Module:
    from dks.weights import file_network, fingerprint

    assert kd.path is not None
    assert kd.backbone is not None
    if kd.fingerprint not in (None, fingerprint(kd.path)):
        raise RequestError(
            f"kd_teacher.path={kd.path} is not the file that the run was planned with; put that back, or type the command "
            "again, which makes another cell"
        )
    known, network = file_network(kd.backbone, kd.path)
    if known != classes:
        raise RequestError(f"kd_teacher.path={kd.path} tells {known} classes apart, the data has {classes}")
    return network.strip()
