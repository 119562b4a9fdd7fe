"""What a run takes of its machine: processor, memory, GPU."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch

from dks.machine.memory import MIB

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two samples
# Samples between two looks for new children: it takes some 20 microseconds for each process of the
#     machine.
CHILDREN_EVERY = 10


class SystemSampler:
    """Samples this process and its children from a thread of its own, from the beginning of the
    context to its end.

    Nothing here can stop a run: what cannot be measured is left out.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: list[dict[str, float]] = []
        self._processes: list[Any] = []  # of psutil
        self._cpu: dict[Any, float] = {}  # process -> seconds of processor time, at the last sample
        self._time = time.perf_counter()  # of the last sample
        self._has_gpu_percent, self._failed = device.type == "cuda", False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="system", daemon=True)

    def __enter__(self) -> SystemSampler:
        self._take(look=True)  # where processor time is counted from
        self._samples.clear()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(EVERY)

    def means(self) -> dict[str, float]:
        """The means since this was last asked, by the names of the journal.

        Where there is no sample since, one is taken.
        """
        if not self._samples:
            self._take()
        with self._lock:
            samples, self._samples = self._samples, []
        names = dict.fromkeys(name for sample in samples for name in sample)
        found = {name: [sample[name] for sample in samples if name in sample] for name in names}
        return {
            f"system/{name}": round(sum(values) / len(values), 1) for name, values in found.items()
        }

    def _work(self) -> None:
        count = 0
        while not self._over.wait(EVERY):
            self._take(look=count % CHILDREN_EVERY == 0)
            count += 1

    def _take(self, look: bool = False) -> None:
        """One sample; `look`: for new children, before."""
        try:
            if look:
                self._processes = _family()
            with self._lock:
                self._samples.append({**self._of_processes(), **self._of_gpu()})
        except Exception:
            if not self._failed:
                log.warning(
                    "what the run takes of its machine could not be measured", exc_info=True
                )
            self._failed = True

    def _of_processes(self) -> dict[str, float]:
        import psutil

        now, cpu, memory = time.perf_counter(), dict[Any, float](), 0
        for process in self._processes:
            with suppress(psutil.Error):  # a child has ended
                if process.pid == os.getpid():
                    cpu[process] = time.process_time()  # finer than the system's own ticks
                else:
                    times = process.cpu_times()
                    cpu[process] = times.user + times.system
                memory += process.memory_info().rss
        spent = sum(
            seconds - self._cpu[process] for process, seconds in cpu.items() if process in self._cpu
        )
        passed, self._cpu, self._time = now - self._time, cpu, now
        return {"cpu_percent": 100 * spent / max(passed, 1e-9), "memory_mib": memory / MIB}

    def _of_gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        found = {"gpu_memory_mib": torch.cuda.memory_reserved(self._device) / MIB}
        if self._has_gpu_percent:
            try:
                found["gpu_percent"] = float(torch.cuda.utilization(self._device))
            except Exception:  # it needs NVIDIA's Python package, and a driver that tells
                self._has_gpu_percent = False
        return found


def _family() -> list[Any]:
    """This process and its children, and theirs.

    Without the sender, which has a session of its own.
    """
    import psutil

    this, session = psutil.Process(), os.getsid(0)
    return [
        this,
        *(each for each in this.children(recursive=True) if _session(each.pid) == session),
    ]


def _session(pid: int) -> int | None:
    with suppress(OSError):  # it has ended
        return os.getsid(pid)
    return None
