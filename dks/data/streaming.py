"""Image files that are decoded and augmented anew in every epoch, by several processes.

What an image looks like is a pure function of (seed, epoch, its index), whoever decodes it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from dks.config.schema import Augmentation, Data
from dks.data.batches import Batch, Normalise
from dks.data.images import ImageFiles, decode
from dks.data.prefetch import on_device
from dks.data.seeds import generator
from dks.machine.interruption import SIGNALS
from dks.machine.world import ALONE, World

Key = tuple[int, int]  # epoch and index of an image


def training_transform(data: Data) -> v2.Transform:
    """A PIL image -> uint8 (3, image_size, image_size), varied at random by torch's global
    generator.
    """
    side, flip = data.image_size, [v2.RandomHorizontalFlip()] if data.flip else []
    if data.augmentation is Augmentation.squash_crop:
        crop: list[v2.Transform] = [_squash(data), v2.RandomCrop(side)]
    else:
        crop = [v2.RandomResizedCrop(side, antialias=True)]
    colours = [v2.ColorJitter(0.4, 0.4, 0.4)] if data.augmentation is Augmentation.inception else []
    return v2.Compose([*crop, *flip, *colours, v2.PILToTensor()])


def evaluation_transform(data: Data) -> v2.Transform:
    """A PIL image -> uint8 (3, image_size, image_size), its centre."""
    if data.augmentation is Augmentation.resized_crop:
        resize: v2.Transform = v2.Resize(data.resize, InterpolationMode.BILINEAR, antialias=True)
    else:
        resize = _squash(data)
    return v2.Compose([resize, v2.CenterCrop(data.image_size), v2.PILToTensor()])


def _squash(data: Data) -> v2.Transform:
    return v2.Resize((data.resize, data.resize), InterpolationMode.BICUBIC, antialias=True)


class StreamedTraining:
    """As `dks.data.batches.TrainingBatches`, for image files."""

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        seed: int,
        data: Data,
        normalise: Normalise,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.files, self.batch_size, self.seed, self.world = files, batch_size, seed, world
        self._plan = _Plan()
        self._loader = _loader(
            files, training_transform(data), seed, self._plan, data.workers, device
        )
        self.normalise, self.device = normalise, device

    def __len__(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.files) / self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of one epoch, on the device, without the `first` ones,
        which are not decoded.
        """
        order = torch.randperm(len(self.files), generator=generator(self.seed, "epoch", epoch))
        parts = [self.world.shard(batch) for batch in order.split(self.batch_size)[first:]]
        self._plan.batches = [[(epoch, index) for index in part.tolist()] for part, _ in parts]
        for (pixels, labels), (_, weight) in zip(
            _named(on_device(self._loader, self.device)), parts, strict=True
        ):
            yield Batch(self.normalise(pixels), labels, weight)


class StreamedTest:
    """As `dks.data.batches.TestBatches`, for image files."""

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        data: Data,
        normalise: Normalise,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        mine = torch.arange(world.rank, len(files), world.size)
        plan = _Plan([[(0, index) for index in part.tolist()] for part in mine.split(batch_size)])
        self._loader = _loader(files, evaluation_transform(data), 0, plan, data.workers, device)
        self.normalise, self.device, self._steps = normalise, device, len(plan.batches)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in _named(on_device(self._loader, self.device)):
            yield self.normalise(pixels), labels


def _named(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches.

    What a worker process could not decode is said in a line, in place of its whole traceback.
    """
    try:
        yield from batches
    except ValueError as error:
        raise ValueError(str(error).rstrip().rpartition("\nValueError: ")[2]) from error


class _Plan:
    """The batches of the coming epoch.

    The loader asks for them when it begins one, so that its processes can live on.
    """

    def __init__(self, batches: list[list[Key]] | None = None) -> None:
        self.batches = batches or []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Decoded(Dataset[tuple[Tensor, int]]):
    def __init__(self, files: ImageFiles, transform: v2.Transform, seed: int) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        image = decode(self.files.paths[index], self.files.paths[index])
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator only: that of a GPU belongs to the network.
            torch.default_generator.manual_seed(
                generator(self.seed, "image", epoch, index).initial_seed()
            )
            return self.transform(image), int(self.files.labels[index])


def _loader(
    files: ImageFiles,
    transform: v2.Transform,
    seed: int,
    plan: _Plan,
    workers: int | None,
    device: torch.device,
) -> DataLoader[Any]:
    from dks.machine.environment import available_threads

    count = available_threads() if workers is None else workers
    if count:
        _start_fork_server()
    lifeline, held = multiprocessing.Pipe(duplex=False)
    loader = DataLoader(
        _Decoded(files, transform, seed),
        batch_sampler=plan,
        num_workers=count,
        pin_memory=device.type == "cuda",
        persistent_workers=count > 0,
        # A fork would inherit the threads of torch and of the tracker in whatever state they are.
        multiprocessing_context="forkserver" if count else None,
        worker_init_fn=partial(_serve, lifeline),
        # A loader draws a seed for its processes whenever it begins; from the global generator,
        # that would move dropout.
        generator=torch.Generator(),
    )
    # Before Python, as it ends, asks its processes to end by a signal, which these ignore, and
    # waits for them.
    Finalize(loader, held.close, exitpriority=1)
    return loader


def _start_fork_server() -> None:
    """Start the process that forks workers with signals blocked.

    Schedulers signal all processes of a job, and without it the main one could not finish its step.
    """
    resource_tracker.ensure_running()  # first, for it unblocks signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(lifeline: Connection, worker: int) -> None:
    """What a worker process does first.

    It leaves signals to the main process, and goes when that one is gone.

    Torch would look whether its parent lives, which is the process that forks; that one lives as
    long as its children do.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_at_the_end_of, args=(lifeline,), daemon=True).start()


def _leave_at_the_end_of(lifeline: Connection) -> None:
    """Nothing is ever said: it ends when the main process does, or closes it."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(0)
