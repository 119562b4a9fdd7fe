"""The trained network without its branches against the bare backbone, written with torch alone.

Latency of a forward pass.

    python benchmarks/stripped.py [--device cuda]

The backbones are ResNet-32 for images of 32x32 pixels, written below, and torchvision's ResNet-18
for 224x224. Both ways hold the same weights, give the same logits (this is checked) and compute in
fp32.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from measure import Bound, Result, in_turn, run, seconds_of
from torch import Tensor, nn

import dks

SECONDS = 0.05  # that the passes of a round take, about


class BareBlock(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = 2 if width != before else 1
        self.conv1 = nn.Conv2d(before, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.stride == 2:
            x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        out += x
        return F.relu(out, inplace=True)


def bare_resnet32(num_classes: int) -> nn.Module:
    """(N, 3, 32, 32) -> (N, num_classes)."""
    widths = [16] * 6 + [32] * 5 + [64] * 5
    blocks = [BareBlock(before, width) for before, width in itertools.pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)
    )


def bare_resnet18(num_classes: int) -> nn.Module:
    """(N, 3, 224, 224) -> (N, num_classes)."""
    return torchvision.models.resnet18(weights=None, num_classes=num_classes)


# name -> the plain one, the side of its images, classes, and the batches that are measured
BACKBONES = {
    "resnet32": (bare_resnet32, 32, 100, (1, 64)),
    "resnet18": (bare_resnet18, 224, 1000, (1, 8)),
}


def pair(backbone: str, device: torch.device) -> dict[str, nn.Module]:
    """Both networks, with the same weights."""
    make, _, classes, _ = BACKBONES[backbone]
    stripped = dks.build(backbone, classes, "ours", ("c2", "c3")).strip()
    plain = make(classes)
    weights = list(stripped.state_dict().values())
    plain.load_state_dict(dict(zip(plain.state_dict(), weights, strict=True)))
    return {"plain": plain.eval().to(device), "stripped": stripped.eval().to(device)}


def keep_memory() -> None:
    """Let the C library keep what is freed.

    When it gives pages back, and takes them again at great cost, depends on what was allocated
    before, and that is not to be measured.
    """
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h has them
    with suppress(OSError, AttributeError):  # no other C library than glibc has it
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 2**30)


def passes(network: nn.Module, images: Tensor, count: int) -> None:
    for _ in range(count):
        network(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


@torch.inference_mode()
def measure(options: argparse.Namespace) -> list[Result]:
    keep_memory()
    device = torch.device(options.device)
    found = []
    for backbone, (_, side, _, batches) in BACKBONES.items():
        networks = pair(backbone, device)
        for batch in batches[: 1 if options.short and side > 32 else None]:
            images = torch.randn(batch, 3, side, side, device=device)
            logits = [network(images) for network in networks.values()]
            torch.testing.assert_close(*logits)
            count = max(
                1, round(SECONDS / seconds_of(partial(passes, networks["plain"], images, 1)))
            )
            ways: dict[str, Callable[[], None]] = {
                way: partial(passes, network, images, count) for way, network in networks.items()
            }
            seconds = in_turn(ways, options.repeats)
            latencies = {
                way: [1000 * each / count for each in taken] for way, taken in seconds.items()
            }
            bounds = {"stripped": [Bound("ratio", at_least=0.98, at_most=1.02)]}
            found.append(
                Result(f"{backbone}, batch {batch}", "ms", latencies, "plain", wanted=bounds)
            )
    return found


if __name__ == "__main__":
    run(__doc__, measure, repeats=41, short_repeats=11)
