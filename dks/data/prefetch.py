"""Batches brought to the device that computes with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

AHEAD = 2  # steps that this process may be ahead of a GPU: each keeps a batch in its memory


def on_device(
    batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, on the device.

    Those in the computer's own memory are copied to a GPU by a stream of its own: while one is
    computed with, the next one is copied, and nobody waits but the stream that computes, on the GPU
    itself, for the copy that it needs. They are best pinned.
    """
    streams: _Streams | None = None
    for images, labels in batches:
        if images.device.type == device.type:
            yield images, labels
            continue
        streams = streams or _Streams(device)
        yield streams.copied(images), streams.copied(labels)
        streams.begun()


class _Streams:
    """One that copies to a GPU, and the one that computes there."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._copying = device, torch.cuda.Stream(device)
        self._begun: deque[torch.cuda.Event] = deque()

    def copied(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, for what is computed from now on."""
        with torch.cuda.stream(self._copying):
            moved = (tensor if tensor.is_pinned() else tensor.pin_memory()).to(
                self._device, non_blocking=True
            )
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        moved.record_stream(computing)  # its memory is taken again only when that is over
        return moved

    def begun(self) -> None:
        """What computes with the last batch has been handed to the device.

        Wait if the device is far behind.
        """
        self._begun.append(torch.cuda.current_stream(self._device).record_event())
        if len(self._begun) > AHEAD:
            self._begun.popleft().synchronize()
