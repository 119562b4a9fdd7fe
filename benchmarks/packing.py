"""Two cells side by side in bf16, a part of the cores each, against the plain loop alone with all
cores.

    python benchmarks/packing.py [--slots 2] [--images 512] [--device cuda]

The cells are run by the worker processes of a sweep, `dks train -m seed=1,2
hydra.launcher.slots=2`. Counted are the images that they have trained on together while all of them
were at work, evaluation included.
"""

from __future__ import annotations

import argparse
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from measure import Bound, Result, in_turn, run
from runs import epoch_ends, plain_epochs, train
from workload import PRECISIONS, as_typed, in_precision

from dks.config.files import choices


def trained_until(when: float, ends: Sequence[float]) -> float:
    """Epochs that were over, the part of the one under way included.

    Args:
        ends: of each epoch; `when` lies between the first and the last.
    """
    over = min(bisect_right(ends, when), len(ends) - 1)
    return over + (when - ends[over - 1]) / (ends[over] - ends[over - 1])


def together(runs: Sequence[Sequence[float]]) -> float:
    """Epochs a second of runs, given by the ends of their epochs, while all of them were between
    their first and their last.

    Raises:
        ValueError: they never were.
    """
    begun, ended = max(ends[0] for ends in runs), min(ends[-1] for ends in runs)
    if begun >= ended:
        raise ValueError("the runs were not at work at the same time; give them more epochs")
    return sum(trained_until(ended, ends) - trained_until(begun, ends) for ends in runs) / (
        ended - begun
    )


def measure(options: argparse.Namespace) -> list[Result]:
    network, images = options.network, options.images or (128 if options.short else 512)
    epochs = options.epochs or (3 if options.short else 6)
    sizes = {"images": images, "test-images": images // 4, "epochs": epochs}
    typed = [
        *as_typed(network, "dks", sizes),
        *in_precision(options.precision),
        f"device={options.device}",
    ]
    seeds = ",".join(str(seed) for seed in range(1, options.slots + 1))

    def plain() -> float:
        few = {**sizes, "epochs": 1 + epochs // 2}
        return (
            images
            * (few["epochs"] - 1)
            / sum(plain_epochs(network, "dks", options.device, few)[1:])
        )

    def packed() -> float:
        with tempfile.TemporaryDirectory() as place:
            sweep = ["-m", f"seed={seeds}", f"hydra.launcher.slots={options.slots}", *typed]
            return images * together([epoch_ends(folder) for folder in train(Path(place), *sweep)])

    way = f"{options.slots} cells in {options.precision}"
    rates = in_turn({"plain": plain, way: packed}, options.repeats, value=lambda work: work())
    wanted = (
        {way: [Bound("ratio", at_least=2.7)]} if (network, options.slots) == ("resnet32", 2) else {}
    )
    return [
        Result(
            f"{network} dks, {images:,} and {images // 4:,} images",
            "images/s",
            rates,
            "plain",
            True,
            wanted=wanted,
        )
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        choices=choices("backbone"),
        default="resnet32",
        metavar="NAME",
        help="(default: resnet32)",
    )
    parser.add_argument(
        "--slots", type=int, default=2, metavar="N", help="cells at a time (default: 2)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="bf16", help="of the cells (default: bf16)"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="of an epoch (default: 512, with --short 128)"
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="of a cell (default: 6, with --short 3)"
    )


if __name__ == "__main__":
    run(__doc__, measure, add_options, short_repeats=2)
