"""`dks evaluate` and `dks export`.

What becomes of the weights of a finished run, or of released ones.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dks.cli.exit_status import DONE
from dks.cli.options import (
    Commands,
    add_command,
    add_json,
    add_loudness,
    add_runs_dir,
    at_least,
    device,
    file_to_write,
)
from dks.config.errors import RequestError

if TYPE_CHECKING:
    from dks.runs.record import Record


def add(commands: Commands) -> None:
    evaluate = add_command(
        commands,
        "evaluate",
        "test a finished run again, or a checkpoint on the data of a run or on a folder of images",
        [
            "dks evaluate 0123456789ab --json",
            "dks evaluate --weights resnet32.pt backbone=resnet32 data=cifar100 data.root=data",
            "dks evaluate --weights resnet18.pth --backbone resnet18 --images imagenet",
        ],
        _evaluate,
        usage="dks evaluate CELL_ID [--runs-dir DIR] [options]\n       "
        "dks evaluate --weights FILE backbone=NAME data=NAME [KEY=VALUE ...] [options]\n       "
        "dks evaluate --weights FILE --backbone NAME --images FOLDER\n                    "
        "[--protocol NAME] [options]",
    )
    evaluate.add_argument(
        "cell_id", nargs="?", metavar="CELL_ID", help="a finished run, tested on its own test set"
    )
    evaluate.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="network, data and normalisation of a checkpoint, as for dks train: backbone, data, "
        "recipe and compute",
    )
    add_runs_dir(evaluate)
    evaluate.add_argument(
        "--weights", metavar="FILE", help="a checkpoint, as torch.save or safetensors wrote it"
    )
    evaluate.add_argument(
        "--backbone",
        metavar="NAME",
        help="the network that the weights belong to, for example resnet18",
    )
    evaluate.add_argument(
        "--images",
        metavar="FOLDER",
        help="one subfolder for each class, in FOLDER/val or in FOLDER itself",
    )
    evaluate.add_argument(
        "--protocol",
        choices=("paper", "torchvision"),
        help="paper (default): the whole image becomes 256x256 pixels; torchvision: its shorter "
        "side 256; both take the centre",
    )
    evaluate.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="processes that decode image files (default: all cores)",
    )
    evaluate.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help="images a step (default: the run's, or 128 with --images)",
    )
    evaluate.add_argument(
        "--device",
        type=device,
        metavar="NAME",
        help="auto, cpu, cuda or cuda:N (default: the run's, or auto)",
    )
    add_json(evaluate)
    add_loudness(evaluate)
    export = add_command(
        commands,
        "export",
        "write the network of a finished run, without its branches, to a file",
        [
            "dks export 0123456789ab --format onnx",
            "dks export 0123456789ab --format safetensors --output net.safetensors",
        ],
        _export,
    )
    export.add_argument("cell_id", metavar="CELL_ID", help="a finished run")
    export.add_argument(
        "--format",
        choices=("safetensors", "onnx", "program"),
        required=True,
        help="program: for torch.export.load",
    )
    export.add_argument(
        "--output",
        type=file_to_write,
        metavar="FILE",
        help="default: CELL_ID.safetensors, .onnx or .pt2, in this folder",
    )
    export.add_argument("--force", action="store_true", help="replace the file if there is one")
    add_runs_dir(export)
    add_loudness(export)


def _evaluate(options: argparse.Namespace) -> int:
    from dks.runs.states import finished_run

    words = [*([options.cell_id] if options.cell_id is not None else []), *options.overrides]
    is_run = bool(words) and "=" not in words[0]
    files = {
        "--weights": options.weights,
        "--backbone": options.backbone,
        "--images": options.images,
    }
    given = [
        name
        for name, value in {**files, "--protocol": options.protocol}.items()
        if value is not None
    ]
    if is_run and (more := [*given, *words[1:]]):
        raise RequestError(
            f"a run is tested on its own test set; drop {', '.join(more)}, or CELL_ID"
        )
    lacking = [
        name
        for name, value in files.items()
        if value is None and (name == "--weights" or not words)
    ]
    if not is_run and lacking:
        ways = (
            "CELL_ID, --weights with backbone=NAME and data=NAME, or --weights, --backbone "
            "and --images"
        )
        raise RequestError(f"give {ways} ({', '.join(lacking)} not given)")
    if not is_run and words and (more := [name for name in given if name != "--weights"]):
        raise RequestError(
            f"{', '.join(more)} and {' '.join(words)}: name network and images in one way or "
            f"the other"
        )
    if is_run:
        # torch takes seconds to import, and this is known without it
        _, record = finished_run(options.runs_dir, words[0])
        _tell_code(record)
    from dks.tools.evaluate import Protocol, evaluate_configured, evaluate_file, evaluate_run

    if is_run:
        found = evaluate_run(
            options.runs_dir, words[0], options.device, options.batch_size, options.workers
        )
    elif words:
        found = evaluate_configured(
            options.weights, words, options.device or "auto", options.batch_size, options.workers
        )
    else:
        found = evaluate_file(
            options.weights,
            options.backbone,
            options.images,
            Protocol(options.protocol or "paper"),
            options.device or "auto",
            options.batch_size or 128,
            options.workers,
        )
    print(found.to_json() if options.json else found)
    return DONE


def _tell_code(record: Record) -> None:
    """The test is one of today's code; where the training was not, a line says so."""
    from dks.machine.code import current, short
    from dks.runs.attempts import other_codes
    from dks.runs.terminal import say

    if others := other_codes(record.attempts):
        say(
            f"trained by another code ({', '.join(map(short, others))}) than today's "
            f"{short(current())}, which tests it"
        )


def _export(options: argparse.Namespace) -> int:
    from dks.runs.states import finished_run

    finished_run(options.runs_dir, options.cell_id)
    from dks.tools.export import Format, export

    path = export(
        options.runs_dir, options.cell_id, Format(options.format), options.output, options.force
    )
    print(f"written to {path}")
    return DONE
