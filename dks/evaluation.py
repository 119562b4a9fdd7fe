"""Testing trained networks: a finished run on its own test set, and a checkpoint on a folder of images as the paper tests."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from rich.markup import escape
from torch import Tensor
from torchvision.datasets import ImageFolder

from dks import data
from dks.config.errors import RequestError
from dks.config.schema import Augmentation, Compute, Data
from dks.data.batches import Normalise, TestBatches, channel_statistics, evaluation_batches
from dks.data.holdout import hold_out
from dks.data.images import ImageFiles
from dks.data.streaming import StreamedTest
from dks.ledger.states import look_up
from dks.machine.environment import pick_device
from dks.models.network import SupervisedNetwork
from dks.terminal import Display, explain
from dks.training.arithmetic import choose_operations
from dks.training.metrics import evaluate, suffix
from dks.weights import file_network, fingerprint, run_network

# Of each channel, images in [0, 1]: what every ImageNet network of the paper and of torchvision is trained with.
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RESIZED, CROPPED = 256, 224  # pixels, Section 4.2 of the paper


class Protocol(str, Enum):
    """How an image becomes 224x224 pixels; in the end both cut out the centre."""

    paper = "paper"  # the whole image to 256x256, its aspect ratio not kept (bicubic)
    torchvision = "torchvision"  # its shorter side to 256, as torchvision tests its own weights (bilinear)


# The same as the test images of a run see it.
AUGMENTATIONS = {Protocol.paper: Augmentation.squash_crop, Protocol.torchvision: Augmentation.resized_crop}


@dataclass(frozen=True)
class Evaluation:
    """What a test found."""

    subject: dict[str, str]  # what was tested, and on what
    images: int
    classifiers: tuple[str, ...]  # of the network, c1 first
    metrics: dict[str, float]  # by the names of the journal, errors in percent
    recorded: dict[str, float] | None = None  # those of the last epoch, for a run

    def __str__(self) -> str:
        what = " ".join(f"{key}={value}" for key, value in self.subject.items())
        lines = [f"{what}, {self.images:,} images: top-1 / top-5 error in %"]
        for name in self.classifiers:
            recorded = f"   (recorded {_errors(self.recorded, name)})" if self.recorded is not None else ""
            lines.append(f"  {name}  {_errors(self.metrics, name)}{recorded}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same for programs."""
        values = {"subject": self.subject, "images": self.images, "metrics": self.metrics}
        return json.dumps(values | ({} if self.recorded is None else {"recorded": self.recorded}), indent=1)


def evaluate_run(
    runs_dir: str, cell_id: str, device: str | None = None, batch_size: int | None = None, workers: int | None = None
) -> Evaluation:
    """Test a finished run again, on its own test set.

    With the device, batch size and number of threads of the run, which are the defaults, the metrics are those it recorded, but
    for the last bits of losses where several processes or another machine computed them.

    Raises:
        RequestError: there is no such finished run, or its data is not there any more or has changed.
    """
    config, network = run_network(runs_dir, cell_id)
    _, record = look_up(runs_dir, cell_id)
    assert record is not None, "a finished run has a record"
    if data.describe(config.data).fingerprint != config.data.fingerprint:
        raise RequestError(f"the files in data.root={config.data.root} are not those that run {cell_id} was trained on")
    where = _usable(device or config.device)
    config.eval_batch_size = batch_size or config.eval_batch_size
    config.data.workers = config.data.workers if workers is None else workers
    train, test = data.load(config.data)
    train, _ = hold_out(train, config.data.holdout, config.seed)  # images are normalised by what the run was trained on
    batches = evaluation_batches(config, test, Normalise(*channel_statistics(config, train), where), where)
    explain(f"{len(test):,} test images of data={config.data.name} in batches of {config.eval_batch_size} on {where}")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(record.attempts[0].threads if record.attempts else threads)
        metrics = _tested(network, batches, where, config.compute)
    finally:
        torch.set_num_threads(threads)
    subject = {"cell_id": cell_id, "data": str(config.data.name)}
    return Evaluation(subject, len(test), network.classifiers, metrics, {name: record.final[name] for name in metrics})


def evaluate_file(
    weights: str,
    backbone: str,
    images: str,
    protocol: Protocol = Protocol.paper,
    device: str = "auto",
    batch_size: int = 128,
    workers: int | None = None,
) -> Evaluation:
    """Test the weights in a file, such as the authors released, on a folder of images with one subfolder for each class.

    Args:
        weights: a state dict, see `dks.weights.load_state_dict`.
        backbone: the network it belongs to, a choice of the group `backbone`.
        images: the folder, or the one that holds it as `val`. Its subfolders in alphabetical order are the classes 0, 1, ...
        batch_size: images a step.
        workers: processes that decode images, 0 for none beside this one; None: one for each core.

    Raises:
        RequestError: a file or the folder cannot be read, or they do not fit together.
    """
    where = _usable(device)
    num_classes, network = file_network(backbone, weights)
    folder = _image_folder(images)
    if len(folder.classes) > num_classes:
        raise RequestError(
            f"{folder.root} has {len(folder.classes)} classes and {weights} tells {num_classes} apart; "
            "name a folder with the classes it was trained on"
        )
    if len(folder.classes) < num_classes:
        few = f"{len(folder.classes)} of the {num_classes} classes of {weights}"
        Display.current().say(escape(f"{folder.root} has {few}; they are taken for the first ones"))
    files = ImageFiles(tuple(path for path, _ in folder.samples), torch.tensor(folder.targets))
    form = Data(augmentation=AUGMENTATIONS[protocol], resize=RESIZED, image_size=CROPPED, workers=workers)
    batches = StreamedTest(files, batch_size, form, Normalise(IMAGENET_MEAN, IMAGENET_STD, where), where)
    explain(f"weights from {weights}; {len(files):,} images in {folder.root} in batches of {batch_size} on {where}")
    subject = {
        "weights": weights,
        "fingerprint": fingerprint(weights),
        "backbone": backbone,
        "images": str(folder.root),
        "protocol": protocol.value,
    }
    return Evaluation(subject, len(files), network.classifiers, _tested(network, batches, where, Compute()))


def _tested(
    network: SupervisedNetwork, batches: TestBatches | StreamedTest, device: torch.device, compute: Compute
) -> dict[str, float]:
    choose_operations(compute)
    network.to(device).to(memory_format=torch.channels_last)
    watched = Display.current().track(_read(batches), len(batches), "testing")
    return evaluate(network, watched, device, precision=compute.precision)


def _read(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; an image that cannot be decoded is the user's to know, in one line."""
    try:
        yield from batches
    except ValueError as error:
        traceback.clear_frames(error.__traceback__)  # they keep the other workers waiting
        # A worker wraps the message up in its own traceback; it is the end of it.
        raise RequestError(str(error).splitlines()[-1].rpartition(f"{ValueError.__name__}: ")[2]) from error


def _image_folder(images: str) -> ImageFolder:
    root = Path(images)
    if not root.is_dir():
        raise RequestError(
            f"--images {images} is not a folder; name the one with a subfolder for each class, or with val in it"
        )
    try:
        return ImageFolder(str(root / "val" if (root / "val").is_dir() else root))
    except FileNotFoundError as error:
        raise RequestError(f"--images {images}: {error}") from error


def _usable(name: str) -> torch.device:
    try:
        device = pick_device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either where there is no such device
        raise RequestError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device={name}: choose auto, cpu, cuda or cuda:N")
    return device


def _errors(metrics: dict[str, float], classifier: str) -> str:
    end = suffix(classifier)
    return f"{metrics[f'test/top1_error{end}']:6.2f} / {metrics[f'test/top5_error{end}']:.2f}"
