"""Testing trained networks.

A finished run on its own test set, a checkpoint on that of any configuration, or on a folder of
images as the paper tests.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.markup import escape
from torch import Tensor

from dks import data
from dks.config.compose import compose_here
from dks.config.errors import RequestError
from dks.config.files import load_choice
from dks.config.overrides import checked
from dks.config.schema import Augmentation, Backbone, Compute, Data
from dks.data.batches import Normalise, TestBatches, evaluation_batches
from dks.data.folders import class_names, listed, test_folder
from dks.data.imagefolder import image_files
from dks.data.streaming import StreamedTest
from dks.machine.environment import pick_device
from dks.models.network import SupervisedNetwork
from dks.models.weights import file_network, fingerprint, run_input, run_network
from dks.runs.states import look_up
from dks.runs.terminal import Display, error_head, error_text, explain, say
from dks.training.arithmetic import choose_operations
from dks.training.metrics import evaluate, suffix
from dks.training.resolver import resolve

# Of each channel, images in [0, 1]: what every ImageNet network of the paper and of torchvision is
# trained with.
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# The parts of a configuration that the test of a trained network depends on.
DECIDING = ("backbone", "data", "recipe", "compute")
RESIZED, CROPPED = 256, 224  # pixels, Section 4.2 of the paper


class Protocol(str, Enum):
    """How an image becomes 224x224 pixels; in the end both cut out the centre."""

    paper = "paper"  # the whole image to 256x256, its aspect ratio not kept (bicubic)
    # its shorter side to 256, as torchvision tests its own weights (bilinear)
    torchvision = "torchvision"


# The same as the test images of a run see it.
AUGMENTATIONS = {
    Protocol.paper: Augmentation.squash_crop,
    Protocol.torchvision: Augmentation.resized_crop,
}


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
        lines = [f"{what}, {self.images:,} images: {error_head(self.metrics)} error in %"]
        for name in self.classifiers:
            end = suffix(name)
            recorded = (
                ""
                if self.recorded is None
                else f"   (recorded {error_text(self.recorded, end, width=6)})"
            )
            lines.append(f"  {name}  {error_text(self.metrics, end, width=6)}{recorded}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same for programs."""
        values = {"subject": self.subject, "images": self.images, "metrics": self.metrics}
        return json.dumps(
            values | ({} if self.recorded is None else {"recorded": self.recorded}), indent=1
        )


def evaluate_run(
    runs_dir: str,
    cell_id: str,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Test a finished run again, on its own test set.

    With the device, batch size and number of threads of the run, which are the defaults, the
    metrics are those it recorded, but for the last bits of losses where several processes or
    another machine computed them.

    Raises:
        RequestError: there is no such finished run, or its data is not there any more or has
            changed.
    """
    config, network = run_network(runs_dir, cell_id)
    _, record = look_up(runs_dir, cell_id)
    assert record is not None, "a finished run has a record"
    notes = list[str]()
    if data.describe(config.data, notes=notes).fingerprint != config.data.fingerprint:
        raise RequestError(
            f"the files in data.root={config.data.root} are not those that run {cell_id} was "
            f"trained on"
        )
    _tell(*notes)
    where = _usable(device or config.device)
    config.eval_batch_size = batch_size or config.eval_batch_size
    config.data.workers = config.data.workers if workers is None else workers
    own, (_, test) = run_input(config), data.load(config.data)
    batches = evaluation_batches(config, test, Normalise(own.mean, own.std, where), where)
    explain(
        f"{len(test):,} test images of data={config.data.name} in batches of "
        f"{config.eval_batch_size} on {where}"
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(record.attempts[0].threads if record.attempts else threads)
        metrics = _tested(network, batches, where, config.compute)
    finally:
        torch.set_num_threads(threads)
    subject = {"cell_id": cell_id, "data": str(config.data.name)}
    return Evaluation(
        subject,
        len(test),
        network.classifiers,
        metrics,
        {name: record.final[name] for name in metrics},
    )


def evaluate_file(
    weights: str,
    backbone: str,
    images: str,
    protocol: Protocol = Protocol.paper,
    device: str = "auto",
    batch_size: int = 128,
    workers: int | None = None,
) -> Evaluation:
    """Test the weights in a file, such as the authors released, on a folder of images with one
    subfolder for each class.

    Args:
        weights: a file, see `dks.models.weights.load_state_dict`.
        backbone: the network it belongs to, a choice of the group `backbone`.
        images: the folder, or the one that holds it as `val`, `validation` or `test`. Its
            subfolders in alphabetical order are the classes 0, 1, ...
        batch_size: images a step.
        workers: processes that decode images, 0 for none beside this one; None: one for each core.

    Raises:
        RequestError: a file or the folder cannot be read, or they do not fit together.
    """
    where = _usable(device)
    num_classes, network, told = file_network(
        load_choice("backbone", backbone, Backbone), backbone, weights
    )
    folder, notes = _image_folder(images)
    if (classes := len(class_names(folder))) > num_classes:
        raise RequestError(
            f"{folder} has {classes} classes and {weights} tells {num_classes} apart; "
            "name a folder with the classes it was trained on"
        )
    if classes < num_classes:
        few = f"{classes} of the {num_classes} classes of {weights}"
        _tell(f"{folder} has {few}; they are taken for the first ones")
    listing = listed(folder)
    _tell(*notes, listing.left_out, told)
    files = image_files(listing)
    form = Data(
        augmentation=AUGMENTATIONS[protocol], resize=RESIZED, image_size=CROPPED, workers=workers
    )
    batches = StreamedTest(
        files, batch_size, form, Normalise(IMAGENET_MEAN, IMAGENET_STD, where), where
    )
    explain(
        f"weights from {weights}; {len(files):,} images in {folder} in batches of {batch_size} "
        f"on {where}"
    )
    subject = {
        "weights": weights,
        "fingerprint": fingerprint(weights),
        "backbone": backbone,
        "images": str(folder),
        "protocol": protocol.value,
    }
    return Evaluation(
        subject, len(files), network.classifiers, _tested(network, batches, where, Compute())
    )


def evaluate_configured(
    weights: str,
    overrides: Sequence[str],
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Test the weights in a file on the test set of a configuration, its images normalised as a run
    of it would.

    Args:
        weights: a file, see `dks.models.weights.load_state_dict`.
        overrides: as of a run, `backbone=` and `data=` among them; what else belongs to `DECIDING`
            can be given.
        batch_size: images a step; None: that of a run.
        workers: as `evaluate_file`.

    Raises:
        RequestError: the file or the data cannot be read, they do not fit together, or an override
            has no say in a test.
    """
    overrides = checked(overrides)
    parsed = OverridesParser.create().parse_overrides([*overrides])
    if swept := [str(each.input_line) for each in parsed if each.is_sweep_override()]:
        raise RequestError(
            f"{', '.join(swept)}: a file is tested in one way at a time; give one value"
        )
    keys = [each.key_or_group for each in parsed]
    if strange := [key for key in keys if key.partition(".")[0] not in DECIDING]:
        raise RequestError(
            f"{', '.join(strange)}: a test depends on {', '.join(DECIDING)} alone; drop what is "
            f"beside them"
        )
    if lacking := [f"{key}=NAME" for key in ("backbone", "data") if key not in keys]:
        raise RequestError(f"--weights {weights} needs {' and '.join(lacking)}")
    composed = compose_here(["method=baseline", "tracking=off", *overrides])
    config, backbone = resolve(composed), str(composed.choices["backbone"])
    where = _usable(device)
    config.eval_batch_size = batch_size or config.eval_batch_size
    config.data.workers = config.data.workers if workers is None else workers
    num_classes, network, told = file_network(config.backbone, backbone, weights)
    if num_classes != config.data.num_classes:
        raise RequestError(
            f"{weights} tells {num_classes} classes apart, data={config.data.name} has "
            f"{config.data.num_classes}"
        )
    if told:
        say(escape(told))
    own, (_, test) = run_input(config), data.load(config.data)
    batches = evaluation_batches(config, test, Normalise(own.mean, own.std, where), where)
    explain(
        f"weights from {weights}; {len(test):,} test images of data={config.data.name} on {where}"
    )
    explain(f"normalised by mean={own.mean} std={own.std}")
    subject = {
        "weights": weights,
        "fingerprint": fingerprint(weights),
        "backbone": backbone,
        "data": str(config.data.name),
    }
    return Evaluation(
        subject, len(test), network.classifiers, _tested(network, batches, where, config.compute)
    )


def _tested(
    network: SupervisedNetwork,
    batches: TestBatches | StreamedTest,
    device: torch.device,
    compute: Compute,
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
        raise RequestError(
            str(error).splitlines()[-1].rpartition(f"{ValueError.__name__}: ")[2]
        ) from error


def _image_folder(images: str) -> tuple[Path, tuple[str, ...]]:
    """The folder with the classes, and a line on others that could be it."""
    root = Path(images)
    if not root.is_dir():
        raise RequestError(
            f"--images {images} is not a folder; name the one with a subfolder for each class, "
            f"or with val in it"
        )
    inner, notes = test_folder(root)
    return (inner, notes) if inner.is_dir() else (root, ())


def _tell(*lines: str) -> None:
    for line in lines:
        if line:
            Display.current().say(escape(line))


def _usable(name: str) -> torch.device:
    try:
        device = pick_device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch raises either where there is no such device
        raise RequestError(
            f"device={name} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device={name}: choose auto, cpu, cuda or cuda:N")
    return device
