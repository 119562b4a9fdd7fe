"""One execution of a cell.

Claim it, train it, and leave a record that tells the truth whatever happens.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from dks import data
from dks.config.errors import RequestError
from dks.config.extensions import references, require, used
from dks.config.identity import cell_id
from dks.config.schema import Config
from dks.config.secrets import without_password
from dks.data.holdout import hold_out, kept_rows
from dks.data.images import Images, ImageSet
from dks.data.label_noise import corrupt
from dks.data.seeds import generator
from dks.machine import code
from dks.machine.commit import code_diff, git_commit
from dks.machine.environment import (
    available_threads,
    device_name,
    environment,
    host,
    pick_device,
    versions,
)
from dks.machine.interruption import Interruption
from dks.machine.memory import PeakMemory
from dks.machine.world import Broken, World
from dks.models import build_network
from dks.models.summary import parameters, summary
from dks.objectives.teacher import load_teacher
from dks.runs import damage
from dks.runs.attempts import Attempt
from dks.runs.disk import write_draft
from dks.runs.heartbeat import Pulse, slurm_job
from dks.runs.journal import Entry, now, sync_folder
from dks.runs.record import Record, RunFolder, Status, results_of, write_atomically
from dks.runs.terminal import Display, say
from dks.tracking.sender import NoSender, Sender, sending
from dks.training import checkpoint
from dks.training.arithmetic import choose_operations
from dks.training.confusion import to_csv
from dks.training.finite import NonFiniteLoss
from dks.training.last_batch import lone_image_problems
from dks.training.system import SystemSampler
from dks.training.trainer import Observer, Trainer

if TYPE_CHECKING:
    from dks.training.flops import Flops

log = logging.getLogger(__name__)

# cuBLAS reads it when it is first used in a process, and without it has no operations that give the
# same bits every time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class Outcome(str, Enum):
    """What came of the attempt to run a cell."""

    done = "done"
    failed = "failed"
    busy = "busy"  # another process is working on it
    already_done = "already done"  # another process finished it since it was planned


def run_cell(path: Path | str) -> Outcome:
    """Run the cell whose frozen configuration lies in this folder.

    Raises:
        Interrupted: a signal came. The record says killed; the same call goes on from the very
            step.
        RequestError: its configuration or its record cannot be read, or the configuration is that
            of another cell.
        DiskFull: not even the beginning of the attempt could be written down.
    """
    folder = RunFolder(path)
    if not folder.claim():
        Display.current().say(
            f"another process is working on cell {folder.cell_id}; it is left to that one"
        )
        return Outcome.busy
    try:
        record = folder.mend_record()
        assert record is not None, "a cell is queued before it is launched"
        if record.status is Status.done:
            # left where a process died right after the record was written
            checkpoint.discard(folder.checkpoints)
            return Outcome.already_done
        config = _own_config(folder)
        with (
            sending(config.tracking, partial(say, urgent=True)) as sender,
            Interruption() as interruption,
        ):
            outcome = _execute(folder, config, record, interruption, sender)
            interruption.check()  # a signal that came after the last step still stops the sweep
        return outcome
    finally:
        folder.release()


def _own_config(folder: RunFolder) -> Config:
    """The frozen configuration; one that was cut at the end of a line would be another one."""
    config = folder.read_config()
    if cell_id(config) != folder.cell_id:
        raise RequestError(
            f"{folder.config_file} is not that of cell {folder.cell_id}: it was damaged, or "
            f"another version of this program "
            "froze it; the command that began the run writes it again"
        )
    return config


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


def _execute(
    folder: RunFolder,
    config: Config,
    record: Record,
    interruption: Interruption,
    sender: Sender | NoSender,
) -> Outcome:
    world = World.join()
    device = pick_device(config.device, world.local_rank)
    # Threads change the last bits of a result, so a run goes on with the number it began with.
    threads = (
        record.attempts[0].threads
        if record.attempts
        else config.threads or max(1, available_threads() // world.size)
    )
    torch.set_num_threads(threads)
    uses = tuple((kind, reference.partition("@")[0]) for kind, reference in references(config))
    attempt = Attempt(
        started=now(),
        host=host(),
        pid=os.getpid(),
        device=device_name(device),
        processes=world.size,
        threads=torch.get_num_threads(),
        code=code.current(uses),
        git_commit=git_commit(),
        job=slurm_job(),
        versions=versions(),
        extensions=used(config),
    )
    earlier = [each for begun in record.attempts for each in begun.extensions]
    # where SLURM requeued the job of a node that was lost
    folder.end_attempt(record, Status.killed.value)
    record.attempts.append(attempt)
    record.status, record.error = Status.running, None
    folder.write_record(record)
    sender.begin(folder.path)
    display, memory = Display.current().run(record), PeakMemory(device)
    started = time.perf_counter()
    try:
        interruption.check()
        # nothing is lost until the first step, and reading data may take long
        interruption.patient = world.size > 1
        for file in require(config, earlier):
            damage.report(
                file, "is not what the run was begun with, though its version is the same"
            )
        _write_environment(folder, device, uses)
        with (
            Pulse(folder.path, attempt.host, config.recipe.epochs) as pulse,
            SystemSampler(device) as system,
        ):
            world.share((str(folder.path), threads))
            trainer = _trainer(folder, config, world, [display, pulse], interruption, system.means)
            _write_model(folder, config, trainer.side)
            record.changed_labels = trainer.changed_labels.tolist() or None
            attempt.first_epoch = len(trainer.entries) + 1
            attempt.first_step = trainer.progress.step
            folder.write_record(record)
            entries = trainer.fit()
        write_atomically(folder.confusion_file, to_csv(trainer.confusion))
        _save_weights(folder, trainer.network)
        _summarise(record, entries, trainer.network, memory.mib())
        if (operations := _operations(config)) is not None:
            record.cost["training_flops"] = (
                operations.step * trainer.train_images * config.recipe.epochs
            )
        record.status = Status.done
    except KeyboardInterrupt as error:
        record.status = Status.killed
        record.error = {"type": "Interrupted", "message": str(error) or "SIGINT"}
        raise
    except Exception as error:
        log.exception("the run failed")
        details = getattr(error, "details", {})
        record.status = Status.failed
        record.error = {
            "type": type(error).__name__,
            "message": without_password(str(error)),
            **details,
        }
        if world.size > 1 and not isinstance(error, NonFiniteLoss):
            raise Broken(1) from error
    finally:
        attempt.end(record.status.value, time.perf_counter() - started)
        record.cost["seconds"] = round(sum(each.seconds for each in record.attempts), 3)
        _write_last(folder, record)
        if record.status is Status.done:
            checkpoint.discard(folder.checkpoints)
        display.finished(record)
        sender.end(folder.path)
    return Outcome(record.status.value)


def _write_last(folder: RunFolder, record: Record) -> None:
    """Write how a run ended.

    Where that cannot be written it is a run that failed, and looks like one that was killed.
    """
    try:
        folder.write_record(record)
    except OSError as error:
        log.exception("the record could not be written")
        if record.status is not Status.failed:  # else that is what is to be told
            record.status = Status.failed
            record.error = {"type": type(error).__name__, "message": without_password(str(error))}


def _trainer(
    folder: RunFolder,
    config: Config,
    world: World,
    observers: list[Observer],
    interruption: Interruption,
    system: Callable[[], dict[str, float]] = dict,
) -> Trainer:
    """Data, network and teacher of a configuration, ready to train; the same on every process."""
    choose_operations(config.compute)
    device = pick_device(config.device, world.local_rank)
    if device.type == "cuda":
        # what names no device of its own, such as an event, is to be on this one
        torch.cuda.set_device(device)
    train, val, test, changed = _data(config)
    classes = data.require(config.data).classes
    if classes is not None and world.is_main:
        write_atomically(folder.classes_file, json.dumps(classes, indent=1) + "\n")
    for name, images in (("held-out", val), ("test", test)):
        if images is not None and len(images) < world.size:
            raise RequestError(
                f"{world.size} processes have only {len(images)} {name} images to share; "
                f"start fewer"
            )
    size = (
        train.stored.shape[-2:]
        if isinstance(train, ImageSet)
        else (config.data.image_size or 1,) * 2
    )
    for problem in lone_image_problems(config, len(train), world.size, size):
        raise RequestError(problem)
    torch.manual_seed(config.seed)
    network = build_network(config).to(device).to(memory_format=torch.channels_last)
    if world.rank:  # the weights are the same everywhere, dropout is not
        torch.manual_seed(generator(config.seed, "rank", world.rank).initial_seed())
    teacher = load_teacher(config, train)
    if teacher is not None:
        teacher = teacher.to(device).to(memory_format=torch.channels_last)
    return Trainer(
        config,
        network,
        train,
        test,
        changed,
        device,
        folder,
        observers,
        interruption,
        teacher,
        world,
        val,
        system,
    )


def _data(config: Config) -> tuple[Images, Images | None, Images, Tensor]:
    """The images to train on, their labels corrupted as asked for.

    Those held out, if any, and the test set, whose labels are never touched; and the indices in the
    whole training set of the labels that were changed.

    Raises:
        RequestError: all training images are to be held out, or files are missing.
        ValueError: an image or a file of images is damaged.
    """
    train, test = data.load(config.data)  # says which file is damaged
    assert config.data.num_classes is not None
    kept, val = hold_out(train, config.data.holdout, config.seed)
    labels, changed = corrupt(kept.labels, config.label_noise, config.data.num_classes, config.seed)
    if val is not None:
        changed = kept_rows(len(train), len(val), config.seed)[changed]
    return dataclasses.replace(kept, labels=labels), val, test, changed


def _save_weights(folder: RunFolder, network: torch.nn.Module) -> None:
    """Write the trained network as a whole or not at all; it is on disk when this returns.

    Raises:
        DiskFull: there is no room for it.
        OSError: it cannot be written.
    """
    content = save({name: value.contiguous() for name, value in network.state_dict().items()})
    draft = folder.weights_file.with_name(f".{folder.weights_file.name}")
    write_draft(draft, folder.weights_file, content)
    damage.make_way(folder.weights_file)
    draft.replace(folder.weights_file)
    sync_folder(folder.path)


def _summarise(
    record: Record, entries: list[Entry], network: torch.nn.Module, peak_mib: float | None
) -> None:
    record.final, record.best, cost = results_of(entries)
    record.cost |= cost
    record.cost["parameters"] = parameters(network)
    if peak_mib is not None:
        record.cost["peak_memory_mib"] = round(peak_mib, 1)


def _write_environment(
    folder: RunFolder, device: torch.device, extensions: tuple[tuple[str, str], ...]
) -> None:
    """What this attempt computes with, and with which code.

    Ours, and that of these extensions, each a kind and a name.
    """
    write_atomically(folder.environment_file, json.dumps(environment(device), indent=1) + "\n")
    diff = code_diff(code.extension_files(extensions))
    if diff is not None:
        write_atomically(folder.diff_file, diff)
    else:
        folder.diff_file.unlink(missing_ok=True)


def _write_model(folder: RunFolder, config: Config, size: Sequence[int]) -> None:
    """The summary of the network for images of this height and width."""
    try:
        text = summary(config, size)
    except Exception:  # no run is given up for a text about it
        log.warning("the network could not be summed up", exc_info=True)
        return
    if (operations := _operations(config)) is not None:
        plain, whole = operations.inference // 2, operations.forward // 2
        text += (
            f"multiply-adds an image: {plain:,} of the plain network, {whole:,} with its branches\n"
        )
    write_atomically(folder.model_file, text)


def _operations(config: Config) -> Flops | None:
    """Floating-point operations for each image; None where they are not known."""
    from dks.training.flops import flops

    try:
        return flops(config)
    except RequestError:  # the size of the images is not known
        return None
    except Exception:  # no trained network is given up for a figure about it
        log.warning("the operations of the training could not be counted", exc_info=True)
        return None
