"""Whole epochs: ours as `dks train` runs them against the plain loop's.

    python benchmarks/epoch.py [--networks resnet32] [--images 1024] [--device cuda]

An epoch is training and evaluation; ours also writes a checkpoint, the journal and the heartbeat,
and measures itself. Each is a program of its own, and counts from the end of its first epoch to the
end of its last one, so that starting is not in it (see `startup.py`). CIFAR has 50,000 images an
epoch, so what is written at the end of one weighs far more here than there.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from measure import Result, in_turn, run, say
from runs import epoch_ends, plain_epochs, train
from workload import METHODS, USUAL, add_choices, as_typed, in_precision


def measure(options: argparse.Namespace) -> list[Result]:
    return [
        measure_one(network, method, options)
        for network in options.networks
        for method in options.methods
    ]


def measure_one(network: str, method: str, options: argparse.Namespace) -> Result:
    say(f"{network} {method}")
    images, epochs = options.images or (128 if options.short else 1024), 2 if options.short else 3
    sizes = {"images": images, "test-images": images // 4, "epochs": epochs}

    def plain() -> float:
        seconds = plain_epochs(network, method, options.device, sizes)
        return sum(seconds[1:]) / (epochs - 1)

    def ours(precision: str) -> float:
        with tempfile.TemporaryDirectory() as place:
            (folder,) = train(
                Path(place),
                *as_typed(network, method, sizes),
                f"device={options.device}",
                *in_precision(precision),
            )
            ends = epoch_ends(folder)
        return (ends[-1] - ends[0]) / (epochs - 1)

    ways = {
        "plain": plain,
        **{precision: partial(ours, precision) for precision in options.precision},
    }
    seconds = in_turn(ways, options.repeats, value=lambda work: work())
    name = f"{network} {method}, {images:,} and {sizes['test-images']:,} images"
    return Result(name, "s", seconds, "plain")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_choices(parser, networks=("resnet32",), methods=METHODS[-1:], precision=USUAL)
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="of the training set (default: 1024, with --short 128)",
    )


if __name__ == "__main__":
    run(__doc__, measure, add_options, short_repeats=2)
