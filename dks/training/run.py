"""One execution of a cell: claim it, train it, and leave a record that tells the truth whatever happens."""

from __future__ import annotations

import logging
import os
import statistics
import time
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import save_file

from dks import data
from dks.config.schema import Config
from dks.data.images import ImageSet
from dks.data.label_noise import corrupt
from dks.models import build_network
from dks.terminal import Display
from dks.tracking.journal import Entry, now
from dks.tracking.mlflow_sink import open_sink
from dks.tracking.record import Attempt, Record, RunFolder, Status
from dks.training import checkpoint
from dks.training.environment import available_threads, device_name, git_commit, host, pick_device, versions
from dks.training.interruption import Interruption
from dks.training.trainer import Trainer

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


def _execute(folder: RunFolder, config: Config, record: Record, interruption: Interruption) -> Outcome:
    device = pick_device(config.device)
    # Threads change the last bits of a result, so a run goes on with the number it began with.
    torch.set_num_threads(record.attempts[0].threads if record.attempts else config.threads or available_threads())
    attempt = Attempt(
        started=now(),
        host=host(),
        pid=os.getpid(),
        device=device_name(device),
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
        train, test = _data(config, record)
        torch.manual_seed(config.seed)
        network = build_network(config).to(device).to(memory_format=torch.channels_last)
        trainer = Trainer(config, network, train, test, device, folder, [display, sink], interruption)
        attempt.first_epoch = trainer.progress.epoch + 1
        entries = trainer.fit()
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder.weights_file)
        _summarise(record, entries, network)
        record.status = Status.done
    except KeyboardInterrupt as error:
        record.status, record.error = Status.killed, {"type": "Interrupted", "message": str(error) or "SIGINT"}
        raise
    except Exception as error:
        log.exception("the run failed")
        details = getattr(error, "details", {})
        record.status, record.error = Status.failed, {"type": type(error).__name__, "message": str(error), **details}
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


def _data(config: Config, record: Record) -> tuple[ImageSet, ImageSet]:
    """The training set, its labels corrupted as asked for, and the test set, never touched."""
    train, test = data.load(config.data)
    assert config.data.num_classes is not None
    labels, changed = corrupt(train.labels, config.label_noise, config.data.num_classes, config.seed)
    if len(changed):
        record.changed_labels = changed.tolist()
    return ImageSet(train.images, labels), test


def _summarise(record: Record, entries: list[Entry], network: torch.nn.Module) -> None:
    best = min(entries, key=lambda entry: entry.metrics["test/top1_error"])
    record.final = {"epoch": entries[-1].epoch, **entries[-1].metrics}
    record.best = {"epoch": best.epoch, **best.metrics}
    speeds = [entry.metrics["train/images_per_second"] for entry in entries]
    record.cost["images_per_second"] = round(statistics.median(speeds), 1)
    record.cost["parameters"] = sum(parameter.numel() for parameter in network.parameters())
