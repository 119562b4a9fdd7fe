"""One execution of a cell: claim it, train it, and leave a record that tells the truth whatever happens."""

from __future__ import annotations

import dataclasses
import logging
import os
import statistics
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dks import data
from dks.config.errors import RequestError
from dks.config.schema import Config
from dks.data.images import Images
from dks.data.label_noise import corrupt
from dks.data.seeds import generator
from dks.models import build_network
from dks.models.teacher import load_teacher
from dks.terminal import Display
from dks.tracking.journal import Entry, now
from dks.tracking.mlflow_sink import open_sink
from dks.tracking.record import Attempt, Record, RunFolder, Status
from dks.training import checkpoint
from dks.training.environment import available_threads, device_name, git_commit, host, pick_device, versions
from dks.training.finite import NonFiniteLoss
from dks.training.interruption import Interruption
from dks.training.trainer import Observer, Trainer
from dks.world import Broken, World

log = logging.getLogger(__name__)


class Outcome(str, Enum):
    """What came of the attempt to run a cell."""

    done = "done"
    failed = "failed"
    busy = "busy"  # another process is working on it
    already_done = "already done"  # another process finished it since it was planned


def run_cell(path: Path | str) -> Outcome:
    """Run the cell whose frozen configuration lies in this folder.

    Raises:
        Interrupted: a signal came. The record says killed; the same call goes on from the last whole epoch.
    """
    folder = RunFolder(path)
    if not folder.claim():
        Display.current().say(f"another process is working on cell {folder.cell_id}; it is left to that one")
        return Outcome.busy
    try:
        record = folder.read_record()
        assert record is not None, "a cell is queued before it is launched"
        if record.status is Status.done:
            return Outcome.already_done
        with Interruption() as interruption:
            outcome = _execute(folder, folder.read_config(), record, interruption)
            interruption.check()  # a signal that came after the last step still stops the sweep
        return outcome
    finally:
        folder.release()


def follow() -> None:
    """What every process but rank 0 does: train along, run by run, until rank 0 has no more.

    Raises:
        Interrupted: a signal came to one of the processes.
    """
    world = World.join()
    while (order := world.share()) is not None:
        path, threads = order
        torch.set_num_threads(threads)
        folder = RunFolder(path)
        with Interruption() as interruption, suppress(NonFiniteLoss):  # rank 0 records it
            _trainer(folder, folder.read_config(), world, [], interruption).fit()
    world.leave()


def _execute(folder: RunFolder, config: Config, record: Record, interruption: Interruption) -> Outcome:
    world = World.join()
    device = pick_device(config.device, world.local_rank)
    # Threads change the last bits of a result, so a run goes on with the number it began with.
    threads = record.attempts[0].threads if record.attempts else config.threads or max(1, available_threads() // world.size)
    torch.set_num_threads(threads)
    attempt = Attempt(
        started=now(),
        host=host(),
        pid=os.getpid(),
        device=device_name(device),
        processes=world.size,
        threads=torch.get_num_threads(),
        git_commit=git_commit(),
        versions=versions(),
    )
    record.attempts.append(attempt)
    record.status, record.error = Status.running, None
    folder.write_record(record)
    sink, display = open_sink(folder, config, record), Display.current().run(record)
    started = time.perf_counter()
    try:
        world.share((str(folder.path), threads))
        trainer = _trainer(folder, config, world, [display, sink], interruption)
        record.changed_labels = trainer.changed_labels.tolist() or None
        attempt.first_epoch = trainer.progress.epoch + 1
        entries = trainer.fit()
        save_file({name: value.contiguous() for name, value in trainer.network.state_dict().items()}, folder.weights_file)
        folder.weights_file.chmod(folder.config_file.stat().st_mode)  # safetensors gives it to its owner alone
        _summarise(record, entries, trainer.network)
        record.status = Status.done
    except KeyboardInterrupt as error:
        record.status, record.error = Status.killed, {"type": "Interrupted", "message": str(error) or "SIGINT"}
        raise
    except Exception as error:
        log.exception("the run failed")
        details = getattr(error, "details", {})
        record.status, record.error = Status.failed, {"type": type(error).__name__, "message": str(error), **details}
        if world.size > 1 and not isinstance(error, NonFiniteLoss):
            raise Broken(1) from error
    finally:
        attempt.ended, attempt.status = now(), record.status.value
        attempt.seconds = round(time.perf_counter() - started, 3)
        record.cost["seconds"] = round(sum(each.seconds for each in record.attempts), 3)
        folder.write_record(record)
        if record.status is Status.done:
            checkpoint.discard(folder.checkpoints)
        display.finished(record)
        sink.close(record)
    return Outcome(record.status.value)


def _trainer(folder: RunFolder, config: Config, world: World, observers: list[Observer], interruption: Interruption) -> Trainer:
    """Data, network and teacher of a configuration, ready to train; the same on every process."""
    device = pick_device(config.device, world.local_rank)
    train, test, changed = _data(config)
    if len(test) < world.size:
        raise RequestError(f"{world.size} processes have only {len(test)} test images to share; start fewer")
    torch.manual_seed(config.seed)
    network = build_network(config).to(device).to(memory_format=torch.channels_last)
    if world.rank:  # the weights are the same everywhere, dropout is not
        torch.manual_seed(generator(config.seed, "rank", world.rank).initial_seed())
    teacher = load_teacher(config)
    if teacher is not None:
        teacher = teacher.to(device).to(memory_format=torch.channels_last)
    return Trainer(config, network, train, test, changed, device, folder, observers, interruption, teacher, world)


def _data(config: Config) -> tuple[Images, Images, Tensor]:
    """The training set, its labels corrupted as asked for, the test set, never touched, and the changed indices."""
    train, test = data.load(config.data)
    assert config.data.num_classes is not None
    labels, changed = corrupt(train.labels, config.label_noise, config.data.num_classes, config.seed)
    return dataclasses.replace(train, labels=labels), test, changed


def _summarise(record: Record, entries: list[Entry], network: torch.nn.Module) -> None:
    best = min(entries, key=lambda entry: entry.metrics["test/top1_error"])
    record.final = {"epoch": entries[-1].epoch, **entries[-1].metrics}
    record.best = {"epoch": best.epoch, **best.metrics}
    speeds = [entry.metrics["train/images_per_second"] for entry in entries]
    record.cost["images_per_second"] = round(statistics.median(speeds), 1)
    record.cost["parameters"] = sum(parameter.numel() for parameter in network.parameters())
