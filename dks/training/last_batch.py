"""A last batch that leaves a process with one image, on which batch normalisation fails where
feature maps have one pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dks.config.schema import Config


def lone_image_problems(
    config: Config, images: int, processes: int, size: Sequence[int]
) -> Iterator[str]:
    """A line if a run would fail on the last batch of its first epoch.

    Args:
        config: resolved.
        images: that are trained on.
        processes: that share each batch, see `dks.machine.world.World.shard`.
        size: height and width of an image.
    """
    batch = config.recipe.batch_size
    if _fewest(images, batch, processes) > 1 or not _fails_on_one(config, size):
        return
    near = (
        each
        for step in range(1, max(images, batch))
        for each in (batch + step, batch - step)
        if 0 < each <= images
    )
    works = next((each for each in near if _fewest(images, each, processes) > 1), None)
    whose = (
        "the last batch" if processes == 1 else f"one of {processes} processes in the last batch"
    )
    advice = (
        f"take recipe.batch_size={works}" if works else f"train on {2 * processes} images or more"
    )
    yield (
        f"recipe.batch_size={batch} leaves {whose} with one of {images:,} training images, and "
        f"batch normalisation "
        f"fails on one image of {size[0]}x{size[1]} pixels in this network; {advice}"
    )


def _fewest(images: int, batch: int, processes: int) -> int:
    """The smallest part of a batch that a process has in an epoch.

    One for which nothing is left takes an image as well.
    """
    return max(1, ((images - 1) % batch + 1) // processes)


# Networks and sizes of images -> does the network fail?
_seen: dict[str, bool] = {}


def _fails_on_one(config: Config, size: Sequence[int]) -> bool:
    """Tried on the meta device, which computes nothing."""
    import torch

    from dks.models import build_network

    key = repr((config.backbone, config.aux_design, config.aux_positions, *size))
    if key not in _seen:
        _seen[key] = False
        with torch.device("meta"), torch.no_grad():
            network = build_network(config, initialise=False)
            try:
                network(torch.empty(1, 3, *size))
            except ValueError as error:
                _seen[key] = str(error).startswith("Expected more than 1 value per channel")
    return _seen[key]
