"""`dks evaluate` and `dks export`: the weights of a finished run, or released ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from dks.cli import completion
from dks.cli.command import Command, option
from dks.cli.exit_status import DONE
from dks.cli.options import FILE, at_least, device, json_output, runs_dir, verbosity
from dks.config.errors import RequestError

if TYPE_CHECKING:
    from dks.runs.record import Record


def _complete(
    context: click.Context, parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    """Complete a run, or with --weights an override."""
    complete = completion.overrides if context.params.get("weights") else completion.runs
    return complete(context, parameter, word)


@click.command(cls=Command)
@click.argument(
    "words",
    nargs=-1,
    metavar="[CELL_ID | KEY=VALUE...]",
    shell_complete=_complete,
    help="a finished run, tested on its own test set; or, with --weights, network, data and "
    "normalisation of the checkpoint, as for dks train: backbone, data, recipe and compute",
)
@runs_dir
@option("--weights FILE", "a checkpoint, as torch.save or safetensors wrote it", type=click.Path())
@option(
    "--backbone NAME",
    "the network that the weights belong to, for example resnet18",
    shell_complete=completion.backbones,
)
@option(
    "--images FOLDER",
    "one subfolder for each class, in FOLDER/val or in FOLDER itself",
    type=click.Path(),
)
@option(
    "--protocol",
    "paper (default): the whole image becomes 256x256 pixels; torchvision: its shorter side 256; "
    "both take the centre",
    choices="paper torchvision",
)
@option("--workers N", "processes that decode image files (default: all cores)", type=at_least(0))
@option(
    "--batch-size N", "images a step (default: the run's, or 128 with --images)", type=at_least(1)
)
@option("--device NAME", "auto, cpu, cuda or cuda:N (default: the run's, or auto)", type=device)
@json_output
@verbosity
def evaluate(
    words: Sequence[str],
    runs_dir: str,
    weights: str | None,
    backbone: str | None,
    images: str | None,
    protocol: str | None,
    workers: int | None,
    batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> int:
    """Test a finished run again, or a checkpoint on the data of a run or on a folder of images.

    \b
    Examples:
      dks evaluate 0123456789ab --json
      dks evaluate --weights resnet32.pt backbone=resnet32 data=cifar100 data.root=data
      dks evaluate --weights resnet18.pth --backbone resnet18 --images imagenet
    """
    options = {
        "--weights": weights,
        "--backbone": backbone,
        "--images": images,
        "--protocol": protocol,
    }
    given = [name for name, value in options.items() if value is not None]
    is_run = bool(words) and "=" not in words[0]
    _check(words, given, is_run)
    if is_run:
        from dks.runs.states import finished_run

        # torch takes seconds to import, and this is known without it
        _, record = finished_run(runs_dir, words[0])
        _warn_of_other_code(record)
    from dks.tools.evaluate import Protocol, evaluate_configured, evaluate_file, evaluate_run

    if is_run:
        found = evaluate_run(runs_dir, words[0], device, batch_size, workers)
    elif words:
        found = evaluate_configured(
            str(weights), list(words), device or "auto", batch_size, workers
        )
    else:
        found = evaluate_file(
            str(weights),
            str(backbone),
            str(images),
            Protocol(protocol or "paper"),
            device or "auto",
            batch_size or 128,
            workers,
        )
    print(found.to_json() if as_json else found)
    return DONE


def _check(words: Sequence[str], given: Sequence[str], is_run: bool) -> None:
    """Refuse what does not name network and images in one of the three ways."""
    if is_run:
        if more := [*given, *words[1:]]:
            raise RequestError(
                f"a run is tested on its own test set; drop {', '.join(more)}, or CELL_ID"
            )
        return
    needed = ["--weights"] if words else ["--weights", "--backbone", "--images"]
    if lacking := [name for name in needed if name not in given]:
        raise RequestError(
            "give CELL_ID, --weights with backbone=NAME and data=NAME, or --weights, --backbone "
            f"and --images ({', '.join(lacking)} not given)"
        )
    if words and (more := [name for name in given if name != "--weights"]):
        raise RequestError(
            f"{', '.join(more)} and {' '.join(words)}: name network and images in one way or the "
            "other"
        )


def _warn_of_other_code(record: Record) -> None:
    """Say so where another code than today's, which tests the run, has trained it."""
    from dks.machine.code import current, short
    from dks.runs.attempts import other_codes
    from dks.runs.terminal import say

    if others := other_codes(record.attempts):
        say(
            f"trained by another code ({', '.join(map(short, others))}) than today's "
            f"{short(current())}, which tests it"
        )


@click.command(cls=Command)
@click.argument("cell_id", metavar="CELL_ID", shell_complete=completion.runs, help="a finished run")
@option(
    "--format",
    "program: for torch.export.load",
    choices="safetensors onnx program",
    name="form",
    required=True,
)
@option("--output FILE", "default: CELL_ID.safetensors, .onnx or .pt2, in this folder", type=FILE)
@option("--force", "replace the file if there is one")
@runs_dir
@verbosity
def export(cell_id: str, form: str, output: str | None, force: bool, runs_dir: str) -> int:
    """Write the network of a finished run, without its branches, to a file.

    \b
    Examples:
      dks export 0123456789ab --format onnx
      dks export 0123456789ab --format safetensors --output net.safetensors
    """
    from dks.runs.states import finished_run

    finished_run(runs_dir, cell_id)  # known without torch, which takes seconds to import
    from dks.tools.export import Format, export

    print(f"written to {export(runs_dir, cell_id, Format(form), output, force)}")
    return DONE
