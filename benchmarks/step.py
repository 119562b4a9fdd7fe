"""Training steps: each network of the paper, ours against the plain loop.

    python benchmarks/step.py [--networks resnet32,wrn28_10] [--methods dks] [--precision fp32,bf16]
    [--device cuda]

A step is everything from the images in memory to the new weights and the loss that is read,
augmentation included; evaluation, journal and checkpoints are not (`epoch.py` has them). Both ways
train the same network with the same recipe and batch size, on random images of the network's own
size. On a GPU the batch is the recipe's; on a CPU that of a large network is smaller, so that a
step takes seconds and not minutes. The limit is a large matrix product in the same precision,
measured beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Mapping
from functools import partial

import torch
from matrix_product import limit
from measure import Bound, Result, in_turn, run, say, seconds_of
from ours import Ours
from plain_loop import PlainLoop
from workload import (
    METHODS,
    NETWORKS,
    USUAL,
    add_choices,
    batch_size,
    configuration,
    in_precision,
    random_images,
)

from dks.training.flops import flops

# (device, network, method, precision) -> how many times as fast as the plain loop
WANTED = {
    ("cpu", "resnet32", "dks", "fp32"): 1.4,
    ("cpu", "resnet32", "dks", "bf16"): 2.3,
    ("cuda", "resnet32", "dks", "bf16"): 4.0,
    ("cuda", "wrn28_10", "dks", "bf16"): 2.0,
}
# any other network with dks; in fp32, but on a GPU, where the plain loop has TF32, in bf16
NOT_SLOWER = 1.0
MOST = 1.5e11  # floating-point operations of a step on a CPU


def measure(options: argparse.Namespace) -> list[Result]:
    all_of_them = (options.networks, options.methods) == (NETWORKS, METHODS)
    networks, methods = (
        (("resnet32",), ("dks",))
        if options.short and all_of_them
        else (options.networks, options.methods)
    )
    device, found = torch.device(options.device), dict[tuple[str, str], Result]()
    for network, method in itertools.product(networks, methods):
        say(f"{network} {method}")
        found[network, method] = measure_one(network, method, options)
        used = {precision_of(way, device) for way in found[network, method].values}
        limits = {precision: limit(precision, device) for precision in used}
    return [
        with_limits(result, flops(configuration(*what)).step / 1e9, limits, device)
        for what, result in found.items()
    ]


def measure_one(network: str, method: str, options: argparse.Namespace) -> Result:
    """All ways to train one network."""
    device, config = torch.device(options.device), configuration(network, method)
    batch = options.batch or batch_size(config, math.inf if device.type == "cuda" else MOST)
    overrides = (f"recipe.batch_size={batch}", f"device={options.device}")
    config = configuration(network, method, *overrides)
    train, test = random_images(config, 16 * batch), random_images(config, batch)
    ways: dict[str, PlainLoop | Ours] = {"plain": PlainLoop(config, train, test, device)}
    for precision in options.precision:
        ways[precision] = Ours(
            configuration(network, method, *overrides, *in_precision(precision)),
            train,
            test,
            device,
        )
    steps = {
        way: count_steps(each, options.seconds or (0.5 if options.short else 2.0))
        for way, each in ways.items()
    }
    seconds = in_turn(
        {way: partial(each.steps, steps[way]) for way, each in ways.items()}, options.repeats
    )
    rates = {way: [steps[way] * batch / each for each in found] for way, found in seconds.items()}
    # A batch of another size is another measurement.
    bounds = (
        {}
        if options.batch
        else {way: wanted(device.type, network, method, way) for way in options.precision}
    )
    return Result(
        f"{network} {method}, batch {batch}",
        "images/s",
        rates,
        "plain",
        more_is_better=True,
        wanted=bounds,
    )


def with_limits(
    result: Result, operations: float, limits: Mapping[str, float], device: torch.device
) -> Result:
    """The same, and how fast it is in GFLOP/s.

    Args:
        operations: GFLOP an image.
        limits: precision -> GFLOP/s.
    """
    figures = {}
    for way in result.values:
        reached = operations * result.spread(way).median
        figures[way] = {
            "GFLOP/s": reached,
            "% of the limit": 100 * reached / limits[precision_of(way, device)],
        }
    return dataclasses.replace(result, figures=figures)


def precision_of(way: str, device: torch.device) -> str:
    """What a way computes in; torch's own defaults mean TF32 for a convolution on a GPU."""
    if way != "plain":
        return way
    return "tf32" if device.type == "cuda" else "fp32"


def count_steps(trained: PlainLoop | Ours, seconds: float) -> int:
    """Steps that take about so long, after one that wakes everything up."""
    trained.steps(1)
    return max(1, round(seconds / seconds_of(lambda: trained.steps(1))))


def wanted(device: str, network: str, method: str, precision: str) -> list[Bound]:
    least = WANTED.get((device, network, method, precision))
    if least is None and (method, precision) == ("dks", "bf16" if device == "cuda" else "fp32"):
        least = NOT_SLOWER
    return [] if least is None else [Bound("ratio", at_least=least)]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_choices(parser, networks=NETWORKS, methods=METHODS, precision=USUAL)
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="images a step (default: the recipe's, on a CPU fewer)",
    )
    least = (
        "that the steps of a round take, about, and one step at least (default: 2, with "
        "--short 0.5)"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help=least)


if __name__ == "__main__":
    run(__doc__, measure, add_options)
