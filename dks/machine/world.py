"""The processes that train one network together, under torchrun or SLURM.

One process alone is a world of size 1.

Rank 0 plans, claims, records and shows; the others follow it from run to run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dks.machine.interruption import STATUS


class Broken(SystemExit):
    """One process failed in the middle of a step, and the others wait for it.

    Torchrun ends them when it has left.
    """


@dataclass(frozen=True)
class World:
    """Who this process is among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU

    @classmethod
    def join(cls) -> World:
        """The world that torchrun described in the environment (RANK, WORLD_SIZE, LOCAL_RANK).

        Joined when first asked for.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    def leave(self) -> None:
        """Take leave of the others.

        Without it a process may end in the middle of their last words.
        """
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Is this the process that writes?"""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        if self.size > 1:
            import torch.distributed as dist

            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Is it true in some process?"""
        return bool(self.sum(torch.tensor(int(flag)))) if self.size > 1 else flag

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, by rank, on each of them."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def synchronise(self, module: nn.Module) -> None:
        """Give every process rank 0's buffers.

        Each has seen other images, so batch normalisation's statistics differ.
        """
        if self.size > 1:
            import torch.distributed as dist

            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes; rank 0's weights begin."""
        return nn.parallel.DistributedDataParallel(module) if self.size > 1 else module

    def share(self, value: Any = None) -> Any:
        """What rank 0 gives, on every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def shard(self, batch: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch's indices (N,), and its weight.

        The loss of the whole batch is the mean over processes of weight times the loss of a part. A
        process for which nothing is left takes an image with weight 0.
        """
        if self.size == 1:
            return batch, 1.0
        part = batch.tensor_split(self.size)[self.rank]
        return (part, len(part) * self.size / len(batch)) if len(part) else (batch[:1], 0.0)


ALONE = World()


@contextmanager
def leading() -> Iterator[None]:
    """What rank 0 does inside this context the others follow.

    At its end, unless it has stopped them or they hang already, they are told that there is no
    more.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    stopped = False
    try:
        yield
    except (Broken, KeyboardInterrupt):
        stopped = True
        raise
    except SystemExit as left:
        stopped = left.code == STATUS
        raise
    finally:
        if not stopped:
            world = World.join()
            world.share(None)
            world.leave()
