"""What the benchmarks train.

The networks and methods of the paper, on random images of the networks' own size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

import measure  # noqa: F401  (puts the checkout on sys.path)
import torch

from dks.config.compose import compose_here
from dks.config.files import choices
from dks.config.schema import Config
from dks.data.images import ImageSet
from dks.training.flops import flops
from dks.training.resolver import resolve

CIFAR = (
    *(
        "resnet32",
        "resnet110",
        "densenet40_12",
        "densenet100_12",
        "wrn28_4",
        "wrn28_10",
        "wrn28_10_dropout",
        "mobilenet",
    ),
    "resnet1202",
)
IMAGENET = ("resnet18", "resnet50", "resnet152")
NETWORKS = CIFAR + IMAGENET
METHODS = ("baseline", "ds", "dks")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
USUAL = ("fp32", "bf16")


def as_typed(network: str, method: str, sizes: Mapping[str, int] | None = None) -> list[str]:
    """What one types behind `dks train`: CIFAR-100 or ImageNet, but for the images themselves.

    Args:
        sizes: "images" and "test-images" of the sets, and "epochs".
    """
    side, classes = (224, 1000) if network in IMAGENET else (32, 100)
    typed = [
        "tracking=off",
        f"backbone={network}",
        f"method={method}",
        "data=synthetic",
        f"data.image_size={side}",
        f"data.num_classes={classes}",
    ]
    keys = {
        "images": "data.train_images",
        "test-images": "data.test_images",
        "epochs": "recipe.epochs",
    }
    return [*typed, *(f"{keys[name]}={value}" for name, value in (sizes or {}).items())]


def configuration(network: str, method: str, *overrides: str) -> Config:
    """The resolved configuration of a run.

    Raises:
        RequestError: an override is wrong.
    """
    return resolve(compose_here([*as_typed(network, method), *overrides]))


def in_precision(precision: str) -> tuple[str, ...]:
    """What one types for it.

    Fp32 is the default, the others are `compute=fast`, which may do more.
    """
    if precision == "fp32":
        return ("compute=standard",)
    return ("compute=fast", f"compute.precision={'fp32' if precision == 'tf32' else precision}")


def random_images(config: Config, count: int) -> ImageSet:
    """Random pixels and labels."""
    side, classes = config.data.image_size, config.data.num_classes
    assert side and classes
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=draw)
    return ImageSet(pixels, torch.randint(classes, (count,), generator=draw))


def batch_size(config: Config, most: float) -> int:
    """The recipe's, or the largest power of two, at least 4, whose step takes no more than `most`
    floating-point operations.
    """
    fitting = max(4, 2 ** int(math.log2(max(1.0, most / flops(config).step))))
    return min(config.recipe.batch_size, fitting)


def add_choices(parser: argparse.ArgumentParser, **defaults: Sequence[str]) -> None:
    """Options that take several names with commas between them.

    Networks, methods or precision, with these defaults.
    """
    known = {"networks": choices("backbone"), "methods": METHODS, "precision": PRECISIONS}
    for name, default in defaults.items():
        shown = f"any of {', '.join(known[name])} (default: {', '.join(default)})"
        parser.add_argument(
            f"--{name}",
            type=_some_of(known[name]),
            default=tuple(default),
            metavar="NAME,...",
            help=shown,
        )


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def chosen(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {', '.join(known)}")
        return names

    return chosen
