"""A network as a text: its layers, the shapes of their outputs, their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from dks.config.schema import Config
from dks.models import build_network

Row = tuple[str, str, str, str]  # path, type, output, parameters
_HEAD: Row = ("layer", "type", "output", "parameters")


# The cells of a sweep share few networks.
_told: dict[str, str] = {}


def summary(config: Config, size: Sequence[int]) -> str:
    """The network of a resolved configuration, its branches included, for images of this height and
    width.

    It is built anew on the meta device, which computes nothing and draws no random numbers; once in
    a process. Of equal blocks that follow one another only the first is told in full.
    """
    key = repr(
        (config.backbone, config.aux_design, config.aux_positions, config.data.num_classes, *size)
    )
    if key not in _told:
        _told[key] = _tell(config, size)
    return _told[key]


def _tell(config: Config, size: Sequence[int]) -> str:
    with torch.device("meta"):
        network = build_network(config, initialise=False)
        images = torch.empty(1, 3, *size)
    shapes: dict[nn.Module, str] = {}
    for layer in network.modules():
        layer.register_forward_hook(_Shape(shapes))
    with torch.no_grad():
        network.eval()(images)
    rows = [_HEAD, *_rows(network, "", shapes)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{path:{widths[0]}}  {kind:{widths[1]}}  {output:{widths[2]}}  "
        f"{count:>{widths[3]}}".rstrip()
        for path, kind, output, count in rows
    ]
    whole, plain = parameters(network), parameters(network.backbone)
    return (
        "\n".join(
            [*lines, "", f"parameters: {plain:,} of the plain network, {whole:,} with its branches"]
        )
        + "\n"
    )


def parameters(module: nn.Module) -> int:
    """How many numbers are trained in it."""
    return sum(parameter.numel() for parameter in module.parameters())


class _Shape:
    """Forward hook that notes the shape of a module's output, without the dimension of images."""

    def __init__(self, shapes: dict[nn.Module, str]) -> None:
        self.shapes = shapes

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.shapes[module] = " x ".join(map(str, output.shape[1:]))


def _rows(module: nn.Module, path: str, shapes: Mapping[nn.Module, str]) -> Iterator[Row]:
    """The modules inside of this one that were called, from the input to the output."""
    children = [
        (name, child, (repr(child), shapes.get(child))) for name, child in module.named_children()
    ]
    for _, equal in groupby(children, key=lambda each: each[2]):
        (name, first, _), *more = equal
        yield from _row(f"{path}{name}", first, shapes)
        if more and next(first.children(), None) is not None:
            names = f"{path}{more[0][0]}" + (f" to {path}{more[-1][0]}" if more[1:] else "")
            kind = (
                f"{len(more)} x " if more[1:] else ""
            ) + f"{type(first).__name__}, as {path}{name}"
            yield (
                names,
                kind,
                shapes.get(first, ""),
                f"{sum(parameters(child) for _, child, _ in more):,}",
            )
        else:
            for other, child, _ in more:
                yield from _row(f"{path}{other}", child, shapes)


def _row(path: str, module: nn.Module, shapes: Mapping[nn.Module, str]) -> Iterator[Row]:
    if module in shapes:
        yield (
            path,
            type(module).__name__,
            shapes[module],
            f"{parameters(module):,}" if parameters(module) else "",
        )
    yield from _rows(module, f"{path}.", shapes)
