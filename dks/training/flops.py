"""What a network costs before anything runs.

Its parameters and floating-point operations, counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dks.config.errors import RequestError
from dks.config.files import load_choice
from dks.config.identity import canonical_json
from dks.config.schema import Augmentation, Backbone, Config, Data, TeacherKind
from dks.data.sizes import image_size
from dks.models import build_network
from dks.models.weights import Input
from dks.objectives.objective import Objective
from dks.objectives.teacher import Teacher, torchvision_input, torchvision_weights
from dks.runs.record import RunFolder


def network_key(config: Config) -> str:
    """A text that two configurations share if their steps cost the same for each image.

    Same network, teacher and image size.

    The synergy loss and the weights are left out: they add next to nothing to a step.
    """
    kd = config.kd_teacher
    teacher = (
        None
        if kd.kind is TeacherKind.none
        else [kd.kind, kd.backbone, kd.fingerprint, kd.cell, kd.image_size]
    )
    parts = [asdict(config.backbone), asdict(config.aux_design), asdict(config.aux_positions)]
    streamed = config.data.augmentation is not Augmentation.pad_crop
    return canonical_json(
        [*parts, config.data.num_classes, image_size(config.data), streamed, teacher]
    )


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one image, a multiplication and an addition being two, as
    `torch.utils.flop_counter` counts them: those of convolutions and matrix products. Parameters
    and activations are counted beside them.
    """

    inference: int  # the plain network, stripped of its branches
    forward: int  # the network in training
    # one training step: forward, backward, what activation checkpointing computes again, and the
    #     teacher's forward
    step: int
    parameters: int  # of the plain network
    training_parameters: int  # of the network in training
    # bytes that forward keeps for backward in float32; without batch normalisation's, some half of
    # all
    activations: int


_counted: dict[str, Flops] = {}


def flops(config: Config) -> Flops:
    """Parameters and operations of the network of a resolved configuration.

    Counted on the meta device, which computes nothing.

    Raises:
        RequestError: the size of the images is not known.
    """
    key = network_key(config)
    if key not in _counted:
        size = image_size(config.data)
        if size is None:
            raise RequestError(
                f"data.root={config.data.root}: no image is there to see how large it is; set "
                f"data.image_size"
            )
        _counted[key] = _count(config, size)
    return _counted[key]


def _count(config: Config, size: tuple[int, int]) -> Flops:
    with torch.device("meta"):
        network = build_network(config, initialise=False)
        teacher = untrained_teacher(config)
        image, label = torch.empty(1, 3, *size), torch.zeros(1, dtype=torch.int64)
    parameters, all_parameters = _parameters(network.backbone), _parameters(network)
    objective = Objective(config, teacher)
    folded = _Folded(network)
    _without_normalisation(nn.ModuleList([network] if teacher is None else [network, teacher]))

    def step() -> Iterator[None]:
        logits = network.train()(image)
        yield
        objective(logits, label, objective.observe(image)).total.backward()

    forward, whole, activations = folded.count(step)
    plain = network.strip().eval()

    def infer() -> Iterator[None]:
        with torch.no_grad():
            plain(image)
        yield

    return Flops(folded.count(infer)[0], forward, whole, parameters, all_parameters, activations)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _without_normalisation(module: nn.Module) -> None:
    """Take batch normalisation out, in which no operation is counted, and which takes most of the
    time on the meta device.
    """
    for layer in list(module.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(layer, name, nn.Identity())


class _Folded:
    """A network whose runs of like blocks are one block each, with the number of blocks that it
    stands for beside itself: in ResNet-1202 they are 199 of 200. Changes the network in place.
    """

    def __init__(self, network: nn.Module) -> None:
        self.runs: list[tuple[nn.Module, int]] = []
        inside: set[nn.Module] = set()
        for layer in list(network.modules()):
            if isinstance(layer, nn.Sequential) and layer not in inside:
                for block in self._fold(layer):
                    inside.update(block.modules())

    def _fold(self, layer: nn.Sequential) -> list[nn.Module]:
        names, blocks = [repr(block) for block in layer], list(layer)
        kept, previous = list[nn.Module](), ""
        for name, block in zip(names, blocks, strict=True):
            if name == previous:
                self.runs[-1] = kept[-1], self.runs[-1][1] + 1
                continue
            kept.append(block)
            # A block that gives what it takes can stand for its successors: the same channels, and
            #     the same resolution.
            strides = (getattr(part, "stride", 1) in (1, (1, 1)) for part in block.modules())
            previous = name if _parameters(block) and all(strides) else ""
            if previous:
                self.runs.append((block, 0))
        del layer[:]
        layer.extend(kept)
        return [block for block in kept if any(block is run for run, more in self.runs if more)]

    def count(self, work: Callable[[], Iterator[None]]) -> tuple[int, int, int]:
        """For the unfolded network the operations of the work up to where it pauses, those of all
        of it, and the bytes that it keeps while it pauses.
        """
        runs = [(block, more) for block, more in self.runs if more]
        inputs: dict[nn.Module, Tensor] = {}

        def note(block: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs.setdefault(block, given[0].detach())

        hooks = [block.register_forward_pre_hook(note) for block, _ in runs]
        first, whole, kept = _counted_in(work)
        for hook in hooks:
            hook.remove()
        for block, more in runs:
            if block in inputs:
                part, all_of_it, own = _counted_in(partial(_alone, block, inputs[block]))
                first = first + more * part
                whole = whole + more * all_of_it
                kept = kept + more * own
        return first, whole, kept


def _alone(block: nn.Module, given: Tensor) -> Iterator[None]:
    if not block.training:
        with torch.no_grad():
            block(given)
        yield
        return
    # what begins with a ReLU in place may not change a leaf
    output = block(given.requires_grad_().clone())
    yield
    output.sum().backward()


def counter() -> FlopCounterMode:
    """What counts the operations inside its context.

    As torch has it, but right for convolutions of channels in groups.
    """
    own = {torch.ops.aten.convolution_backward: _backward_of_convolution}
    return FlopCounterMode(display=False, custom_mapping=own)


def _backward_of_convolution(
    gradient: Sequence[int],
    given: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    **ignored: Any,
) -> int:
    """Each of the gradients takes what the forward pass does.

    Torch counts that of the weights as if every channel of the output saw all of the input: too
    much by the number of groups, which in MobileNet is that of the channels.

    Args:
        gradient, given, weight: shapes of the output's gradient, of the input and of the weights.
        options: the others of `aten.convolution_backward`: of them `transposed` and which gradients
            are wanted are looked at.
    """
    *_, transposed, _, _, wanted = options
    batch, _, *positions = given if transposed else gradient
    gradients: int = sum(wanted[:2])
    return 2 * batch * math.prod(positions) * math.prod(weight) * gradients


def _counted_in(work: Callable[[], Iterator[None]]) -> tuple[int, int, int]:
    # by their memory, and held: the number of one that is gone is given to another
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with counter() as counting:
        pausing = work()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            next(pausing)
        first = counting.get_total_flops()
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
        next(pausing, None)
    return first, counting.get_total_flops(), size


def untrained_teacher(config: Config) -> nn.Module | None:
    """A network like the teacher.

    Its weights, which change no cost, are neither fetched nor read.
    """
    kd, data = config.kd_teacher, config.data
    if kd.kind is TeacherKind.none:
        return None
    if kd.kind is TeacherKind.torchvision:
        from torchvision.models import get_model

        teacher: nn.Module = get_model(str(kd.backbone), weights=None)
        size: tuple[int, int] | None = torchvision_input(torchvision_weights(config)).size
    elif kd.cell is not None:
        trained = RunFolder(Path(config.runs_dir) / kd.cell).read_config()
        teacher, size = build_network(trained, initialise=False).strip(), image_size(trained.data)
    else:
        spec = load_choice("backbone", str(kd.backbone), Backbone)
        plain = Config(backbone=spec, data=Data(source="", num_classes=data.num_classes))
        teacher = build_network(plain, initialise=False).strip()
        size = None if kd.image_size is None else (kd.image_size, kd.image_size)
    shown = image_size(data)
    assert shown is not None, "what is counted has a size"
    channels = [0.0] * 3, [1.0] * 3  # the same for both, for a normalisation costs next to nothing
    return Teacher(teacher, Input(*channels, size or shown), Input(*channels, shown))
