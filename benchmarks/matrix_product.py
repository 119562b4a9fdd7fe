"""The limit of this machine: floating-point operations a second of large matrix products.

    python benchmarks/matrix_product.py [--device cuda]

No network is faster, since nearly all of its operations are matrix products, and smaller ones. An
addition and a multiplication are two operations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import Result, in_turn, run, seconds_of

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SECONDS = 0.2  # that a measured call takes at least


def product(
    precision: str, device: torch.device, side: int | None = None
) -> tuple[Callable[[], None], float]:
    """A call that multiplies square matrices, and how many GFLOP it computes.

    "tf32" is fp32 with CUDA's shorter numbers.

    Args:
        side: rows and columns; None: as large as it takes to be fast.
    """
    side = side or (8192 if device.type == "cuda" else 2048)
    given, other = torch.randn(
        2, side, side, device=device, dtype=TYPES.get(precision, torch.float32)
    )
    count = 1

    def multiply() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for _ in range(count):
            given @ other
        torch.backends.cuda.matmul.allow_tf32 = before
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()  # wakes everything up
    count = max(1, round(SECONDS / seconds_of(multiply)))
    return multiply, count * 2 * side**3 / 1e9


_best: dict[tuple[str, torch.device], float] = {}


def limit(precision: str, device: torch.device) -> float:
    """GFLOP/s, the best of five now and of all that this process has measured before.

    A busy machine shows less than it can.
    """
    multiply, operations = product(precision, device)
    reached = operations / min(seconds_of(multiply) for _ in range(5))
    _best[precision, device] = max(reached, _best.get((precision, device), 0.0))
    return _best[precision, device]


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those that the device computes in.

    Half of it in hardware on any GPU, and in bf16 alone on CPUs.
    """
    return ("fp32", "tf32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")


def measure(options: argparse.Namespace) -> list[Result]:
    device = torch.device(options.device)
    products = {
        precision: product(precision, device, options.side) for precision in precisions(device)
    }
    seconds = in_turn(
        {precision: multiply for precision, (multiply, _) in products.items()}, options.repeats
    )
    rates = {
        precision: [products[precision][1] / each for each in seconds[precision]]
        for precision in products
    }
    best = {precision: {"best": max(found)} for precision, found in rates.items()}
    return [
        Result("large matrix product", "GFLOP/s", rates, "fp32", more_is_better=True, figures=best)
    ]


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        lambda parser: parser.add_argument(
            "--side", type=int, metavar="N", help="rows and columns (default: 2048, CUDA 8192)"
        ),
    )
