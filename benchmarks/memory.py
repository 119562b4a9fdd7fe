"""The peak memory of a training step: ours against the plain loop, each in a process of its own.

    python benchmarks/memory.py [--networks resnet32,wrn28_10] [--methods dks] [--device cuda]

Weights, gradients, momentum, activations and what the operations take for themselves, over two
steps; not what Python and torch take before. On the CPU it is by how much the process grew (Linux),
on CUDA what tensors take.
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import torch
from measure import Result, in_turn, run, say
from ours import Ours
from plain_loop import PlainLoop
from runs import program
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

from dks.machine.memory import PeakMemory

MOST = 1.5e11  # floating-point operations of a step on a CPU, as in step.py


def peak(way: str, overrides: list[str], network: str, method: str, device: torch.device) -> float:
    """MiB, in this process."""
    config = configuration(network, method, *overrides)
    train, test = (random_images(config, config.recipe.batch_size) for _ in range(2))
    memory = PeakMemory(device)
    trained = (
        PlainLoop(config, train, test, device, workers=0)
        if way == "plain"
        else Ours(config, train, test, device)
    )
    trained.steps(2)
    found = memory.mib()
    assert found is not None, "the system does not say how much memory a process takes"
    return found


def measure(options: argparse.Namespace) -> list[Result]:
    networks = ("resnet32",) if options.short and options.networks == NETWORKS else options.networks
    return [
        measure_one(network, method, options) for network in networks for method in options.methods
    ]


def measure_one(network: str, method: str, options: argparse.Namespace) -> Result:
    say(f"{network} {method}")
    config = configuration(network, method)
    batch = options.batch or batch_size(
        config, math.inf if options.device.startswith("cuda") else MOST
    )
    given = [f"recipe.batch_size={batch}", f"device={options.device}"]

    def in_process(way: str) -> float:
        overrides = given if way == "plain" else [*given, *in_precision(way)]
        return float(
            program(
                [__file__, "--call", network, method, way, options.device, *overrides], Path.cwd()
            )
        )

    ways = {way: partial(in_process, way) for way in ("plain", *options.precision)}
    values = in_turn(ways, options.repeats, value=lambda work: work())
    return Result(f"{network} {method}, batch {batch}", "MiB", values, "plain")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_choices(parser, networks=NETWORKS, methods=METHODS[-1:], precision=USUAL)
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="images a step (default: the recipe's, on a CPU fewer)",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        _, _, network, method, way, device, *overrides = sys.argv
        print(peak(way, overrides, network, method, torch.device(device)))
    else:
        run(__doc__, measure, add_options, repeats=3, short_repeats=1)
