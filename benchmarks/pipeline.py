"""The input pipeline: our batches of a set in memory against PIL transforms in a DataLoader.

    python benchmarks/pipeline.py [--images 20000] [--device cuda]

Both crop, mirror and normalise random images of 32x32 pixels anew in every epoch and bring them to
the device; an epoch is measured. The share of the step is the part of a training step of ResNet-32
with DKS that our batches take.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measure import Bound, Result, in_turn, run, seconds_of
from ours import Ours
from plain_loop import loader
from workload import USUAL, add_choices, configuration, in_precision, random_images


def measure(options: argparse.Namespace) -> list[Result]:
    device, batch = torch.device(options.device), options.batch
    config = configuration(
        "resnet32", "dks", f"recipe.batch_size={batch}", f"device={options.device}"
    )
    images = random_images(config, options.images or (4_000 if options.short else 20_000))
    trained = Ours(config, images, images.subset(torch.arange(batch)), device)
    plain_batches = loader(images, batch, True, device)

    def ours() -> None:
        for _ in trained.trainer.train_batches.epoch(1):
            pass
        wait(device)

    def plain() -> None:
        for images, labels in plain_batches:
            images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        wait(device)

    ways = {"plain": plain, "ours": ours}
    for work in ways.values():
        work()  # wakes everything up, processes of the loader among it
    seconds = in_turn(ways, options.repeats)
    rates = {way: [len(images) / each for each in found] for way, found in seconds.items()}
    figures = {}
    for precision in options.precision:
        share = 100 * step_rate(precision, images, device, batch) / statistics.median(rates["ours"])
        figures[f"% of the step in {precision}"] = share
    bounds = [Bound("ratio", at_least=3.0), *(Bound(name, at_most=3.0) for name in figures)]
    name = f"{len(images):,} images of 32x32, batch {batch}"
    return [Result(name, "images/s", rates, "plain", True, {"ours": figures}, {"ours": bounds})]


def step_rate(precision: str, images: object, device: torch.device, batch: int) -> float:
    """Images a second of a training step."""
    config = configuration(
        "resnet32",
        "dks",
        f"recipe.batch_size={batch}",
        f"device={device}",
        *in_precision(precision),
    )
    trained = Ours(config, images, images.subset(torch.arange(batch)), device)
    trained.steps(2)
    return statistics.median(batch / seconds_of(lambda: trained.steps(1)) for _ in range(3))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="of the training set (default: 20000, with --short 4000)",
    )
    parser.add_argument(
        "--batch", type=int, default=64, metavar="N", help="images a step (default: 64)"
    )
    add_choices(parser, precision=USUAL)


if __name__ == "__main__":
    run(__doc__, measure, add_options)
