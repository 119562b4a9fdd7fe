"""The evaluation after an epoch: ours against the plain loop's.

    python benchmarks/evaluation.py [--networks resnet32] [--images 2000] [--device cuda]

Both test the network with its branches, 500 images at a time. The plain loop counts the errors of
c1; ours those of every classifier, among the first and the first five, and their losses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import Result, in_turn, run, say
from ours import Ours
from plain_loop import PlainLoop
from workload import METHODS, USUAL, add_choices, configuration, in_precision, random_images


def measure(options: argparse.Namespace) -> list[Result]:
    return [
        measure_one(network, method, options)
        for network in options.networks
        for method in options.methods
    ]


def measure_one(network: str, method: str, options: argparse.Namespace) -> Result:
    say(f"{network} {method}")
    device = torch.device(options.device)
    count = options.images or (200 if options.short else 2_000)
    config = configuration(network, method, f"device={options.device}")
    train, test = random_images(config, 64), random_images(config, count)
    ways: dict[str, Callable[[], float]] = {
        "plain": PlainLoop(config, train, test, device).evaluate
    }
    for precision in options.precision:
        own = configuration(network, method, f"device={options.device}", *in_precision(precision))
        ways[precision] = Ours(own, train, test, device).evaluate
    for work in ways.values():
        work()  # wakes everything up
    seconds = in_turn(ways, options.repeats)
    rates = {way: [count / each for each in found] for way, found in seconds.items()}
    return Result(
        f"{network} {method}, {count:,} images", "images/s", rates, "plain", more_is_better=True
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    add_choices(parser, networks=("resnet32",), methods=METHODS[-1:], precision=USUAL)
    parser.add_argument(
        "--images", type=int, metavar="N", help="of the test set (default: 2000, with --short 200)"
    )


if __name__ == "__main__":
    run(__doc__, measure, add_options)
