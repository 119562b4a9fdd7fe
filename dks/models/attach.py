"""Auxiliary branches on any image classifier, by the names of its layers."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.models.family import Tap
from dks.models.network import SupervisedNetwork
from dks.models.parts import pooled_head


def attach(
    module: nn.Module, taps: Mapping[str, str], example: Tensor, num_classes: int | None = None
) -> SupervisedNetwork:
    """Put auxiliary branches on an image classifier.

    For example `attach(resnet18(), {"c2": "layer3", "c3": "layer2"}, example)`.

    A branch halves the resolution as often as the module does behind the tapped layer, so every
    path from the input to a classifier has the same number of down-samplings (Section 3.2 of the
    paper). What a branch is made of is our own choice, for want of a block that fits every module:
    each stage is one 3x3 convolution of stride 2 with twice the channels of the stage before, batch
    normalisation and ReLU; then global average pooling and one linear layer. At the final
    resolution there are no stages.

    Args:
        module: images (N, C, H, W) -> logits (N, K), in evaluation and in training, where auxiliary
            outputs of its own are refused; kept as it is, not copied.
        taps: classifier -> name of a layer with a feature map (N, C, H, W), as
            `module.named_modules()` has it. The classifiers are c2 (the deepest) to c9.
        example: images (N, C, H, W) of the size to be trained on; run once, in evaluation mode and
            without gradients.
        num_classes: K that is expected; None: as many as the module has.

    Returns:
        A network from images to logits {"c1": (N, K), "c2": (N, K), ...}, the branches on the
        device and of the type of their feature maps. A branch gets what its layer gives, whatever
        later layers change in place. Its `strip()` gives `module` back.

    Raises:
        RequestError: a name is unknown or at the wrong depth, or the module is no convolutional
            classifier of K classes.
    """
    layers = dict(module.named_modules())
    for classifier, layer in taps.items():
        _check_names(classifier, layer, layers)
    seen = _run(module, {name: layers[layer] for name, layer in taps.items()}, example)
    classes = _classes(seen.output, num_classes)
    maps = {name: _feature_map(name, layer, seen, example) for name, layer in taps.items()}
    _check_order(taps, seen)
    branches = {name: _branch(name, taps[name], maps[name], seen.final, classes) for name in taps}
    network = SupervisedNetwork(module, branches, taps)
    # Not network.train(): layers of the module that were frozen in evaluation mode stay so.
    network.training = module.training
    network.branches.train(module.training)
    return network


def places(
    module: nn.Module, taps: Mapping[str, str], example: Tensor, num_classes: int
) -> dict[str, Tap]:
    """Where branches can start in a classifier of so many classes, measured on an example as
    `attach` does it.

    Raises:
        RequestError: as `attach`.
    """
    layers = dict(module.named_modules())
    for classifier, layer in taps.items():
        _check_names(classifier, layer, layers)
    seen = _run(module, {name: layers[layer] for name, layer in taps.items()}, example)
    _classes(seen.output, num_classes)
    maps = {name: _feature_map(name, layer, seen, example) for name, layer in taps.items()}
    _check_order(taps, seen)
    return {
        name: Tap(
            taps[name], maps[name].shape[1], _halvings(name, taps[name], maps[name], seen.final)
        )
        for name in taps
    }


@dataclass
class _Seen:
    """What one forward pass of the example shows."""

    output: object = None
    # classifier -> output of its layer, in order of execution
    features: dict[str, object] = field(default_factory=dict)
    # height and width of the last feature map before the global pooling, pixels
    final: tuple[int, int] | None = None


def _check_names(classifier: str, layer: str, layers: Mapping[str, nn.Module]) -> None:
    if not re.fullmatch("c[2-9]", classifier):
        raise RequestError(
            f"attach: {classifier!r} is no name for a branch; they are c2 (the deepest), c3, ... c9"
        )
    if layer not in layers or not layer:
        close = get_close_matches(layer, [name for name in layers if name])
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else f"it has {', '.join(dict(layers[''].named_children()))}"
        )
        raise RequestError(f"attach: {classifier}: the module has no layer {layer!r}; {hint}")


def _run(module: nn.Module, tapped: Mapping[str, nn.Module], example: Tensor) -> _Seen:
    seen = _Seen()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            # a layer that runs twice counts where it ran last, as in training
            seen.features.pop(name, None)
            seen.features[name] = output

        return hook

    def measure(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        size = (output.shape[-2], output.shape[-1])
        # A pooling to 1x1 is the global one, and a 1x1 convolution of its result is a fully
        # connected layer.
        kernel_of_one = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
        if size != (1, 1) or not (isinstance(layer, nn.AvgPool2d) or kernel_of_one):
            seen.final = size

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in tapped.items()]
    hooks += [
        layer.register_forward_hook(measure)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    ]
    try:
        with _evaluation(module), torch.no_grad():
            seen.output = module(example)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"attach: the module fails on the example {tuple(example.shape)}: {reason}"
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    return seen


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every layer in the mode it was in."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _classes(output: object, expected: int | None) -> int:
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise RequestError(f"attach: the module gives {_what(output)}, not logits (N, K)")
    if expected is not None and output.shape[1] != expected:
        raise RequestError(
            f"attach: num_classes={expected}, but the module gives {output.shape[1]} logits"
        )
    return output.shape[1]


def _feature_map(classifier: str, layer: str, seen: _Seen, image: Tensor) -> Tensor:
    if classifier not in seen.features:
        raise RequestError(
            f"attach: {classifier}: the layer {layer} does not run when the module does"
        )
    output = seen.features[classifier]
    if not isinstance(output, Tensor) or output.dim() != 4 or not _same_proportions(output, image):
        raise RequestError(
            f"attach: {classifier}: the layer {layer} gives {_what(output)}, "
            "not a feature map (N, C, H, W) in the proportions of the images"
        )
    return output


def _same_proportions(features: Tensor, image: Tensor) -> bool:
    """Whether the last two dimensions are the image's, up to 2 pixels of padding.

    (N, H, W, C) of some transformers is not.
    """
    (height, width), (image_height, image_width) = features.shape[-2:], image.shape[-2:]
    return abs(height * image_width - width * image_height) <= 2 * max(image_height, image_width)


def _what(output: object) -> str:
    return (
        f"a tensor {tuple(output.shape)}"
        if isinstance(output, Tensor)
        else f"a {type(output).__name__}"
    )


def _check_order(taps: Mapping[str, str], seen: _Seen) -> None:
    executed = list(seen.features)
    if executed != sorted(taps, reverse=True):
        order = ", ".join(f"{name} = {taps[name]}" for name in sorted(taps))
        raise RequestError(
            f"attach: c2 has to be the deepest layer, c3 one before it, and so on; not {order}"
        )


def _halvings(classifier: str, layer: str, features: Tensor, final: tuple[int, int] | None) -> int:
    """How often the resolution is halved between a feature map (N, C, H, W) and the last one."""
    size = features.shape[2:]
    if final is None or math.prod(size) < math.prod(final):
        raise RequestError(
            f"attach: {classifier}: the layer {layer} lies behind the last feature map"
        )
    # Rounded: convolutions without padding halve 35 to 17 and 8.
    return round(math.log2(math.prod(size) / math.prod(final)) / 2)


def _branch(
    classifier: str, layer: str, features: Tensor, final: tuple[int, int] | None, num_classes: int
) -> nn.Module:
    """A feature map like `features` (N, C, H, W) -> logits (N, K)."""
    channels = features.shape[1]
    halvings = _halvings(classifier, layer, features, final)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, halvings + 1):
        convolution = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        channels *= 2
        stages[f"stage{number}"] = nn.Sequential(
            OrderedDict(conv=convolution, bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True))
        )
    stages["head"] = pooled_head(channels, num_classes)
    return nn.Sequential(stages).to(features.device, features.dtype)
