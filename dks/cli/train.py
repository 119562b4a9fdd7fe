"""`dks train`, which is `train.py`, and what starts Hydra for it and for `dks sweep`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from dks.cli import completion
from dks.cli.command import Command
from dks.cli.exit_status import DONE, FAILED, WRONG_REQUEST
from dks.cli.options import verbosity

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra's options that have a use here, for the Tab key; Hydra itself takes too long to import.
FLAGS = ("--multirun", "-m", "--cfg", "-c", "--package", "-p", "--help", "-h", "--hydra-help")
VALUES = {"--cfg": ("job", "hydra", "all"), "--package": ()}


class TrainCommand(Command):
    """A command whose options are Hydra's, beside its own."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Its own options, and Hydra's."""
        hydras = [CompletionItem(flag) for flag in FLAGS if flag.startswith(incomplete)]
        return [*super().shell_complete(ctx, incomplete), *hydras]


def _complete(
    context: click.Context, parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    """Complete an override, or the value of an option of Hydra's."""
    before = context.params.get("words") or ("",)
    if before[-1] in VALUES:
        return [CompletionItem(each) for each in VALUES[before[-1]] if each.startswith(word)]
    return completion.overrides(context, parameter, word)


@click.command(
    cls=TrainCommand,
    add_help_option=False,  # Hydra's help is shown
    context_settings={"ignore_unknown_options": True},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete)
@verbosity
@click.pass_context
def train(context: click.Context, words: Sequence[str]) -> int:
    """One run, or with -m a sweep and its table (as python train.py)."""
    if context.parent is not None:
        sys.argv = ["dks train"]
    return hydra_main(words)


def hydra_main(arguments: Sequence[str]) -> int:
    """Hydra's command line. In `sys.argv`, which Hydra reads, it leaves what it made of it.

    Returns:
        The exit status.

    Raises:
        RequestError: an option or an override is wrong.
    """
    import hydra

    from dks.config.catalogue import catalogue
    from dks.config.compose import register_schema
    from dks.config.files import declarations

    register_schema()
    # under torchrun rank 0 plans and records, the others train along
    if int(os.environ.get("RANK", "0")):
        from dks.training.run import follow

        follow()
        return DONE
    known, overrides = _parsed(arguments)
    if not known.shell_completion:
        for problem in catalogue().problems:
            print(f"warning: {problem}", file=sys.stderr)
    with _leading():
        if known.help or known.hydra_help or known.cfg or known.info or known.shell_completion:
            try:
                hydra.main(
                    config_path=str(declarations("conf")), config_name="config", version_base="1.3"
                )(_run)()
            except SystemExit as left:  # with 1 where there is no such part of the configuration
                raise SystemExit(WRONG_REQUEST if left.code == FAILED else left.code) from left
        else:
            _multirun(overrides)
    return DONE


def _multirun(overrides: list[str]) -> None:
    """What `hydra.main` does for a sweep, which here is every run, once its command line is read.

    Less one composition, whose errors it would take for the wish to have another mode.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    from dks.config.compose import check_hydra
    from dks.config.files import declarations

    class Checked(Hydra):
        def compose_config(self, *arguments: Any, **options: Any) -> DictConfig:
            composed = super().compose_config(*arguments, **options)
            check_hydra(composed.hydra)  # before a sweeper is made of it
            return composed

    version.setbase("1.3")
    search_path = create_config_search_path(str(declarations("conf")))
    try:
        Checked.create_main_hydra2("train", search_path).multirun("config", _run, overrides)
    finally:
        GlobalHydra.instance().clear()


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's options and the overrides, and `sys.argv` with the overrides first.

    Hydra takes no more overrides once an option stood between them.

    Raises:
        RequestError: an option is unknown, has no value or means nothing here, something is no
            override, or a sweep needs -m.
    """
    from hydra._internal.utils import get_args_parser

    from dks.config.compose import checked
    from dks.config.errors import RequestError, short

    def refuse(message: str) -> NoReturn:
        raise RequestError(
            f"{message.removeprefix('argument ')}; dks train --help shows the options"
        )

    parser = get_args_parser()
    vars(parser)["error"] = refuse
    known, rest = parser.parse_known_args(list(arguments))
    if unknown := [each for each in rest if each.startswith("-")]:
        refuse(f"no such option {', '.join(map(short, unknown))}")
    if known.run or known.experimental_rerun is not None:
        refuse(
            "--run and --experimental-rerun mean nothing here; a run is named by its choices alone"
        )
    if known.package is not None and known.cfg is None:
        refuse("--package names a part of what --cfg shows; add --cfg job, or drop it")
    typed, options = [*known.overrides, *rest], list(arguments)
    for override in reversed(typed):
        options.reverse()
        options.remove(override)
        options.reverse()
    _refuse_other_files(known, typed)
    # What is being typed, for its completion, is not whole yet.
    overrides = typed if known.shell_completion else checked(typed, several=known.multirun)
    sys.argv = [sys.argv[0], *overrides, *options]
    return known, overrides


def _refuse_other_files(known: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Hydra would compose from other files, or go on with its defaults where it finds none in them.

    Raises:
        RequestError: that is asked for; it says what does what was meant.
    """
    from dks.config.compose import OWN_CHOICES
    from dks.config.errors import RequestError, short
    from dks.runs.record import RunFolder

    for option, value in (("--config-dir", known.config_dir), ("--config-path", known.config_path)):
        if value is None:
            continue
        record = (
            RunFolder(Path(value)).read_record()
            if (Path(value) / "record.json").is_file()
            else None
        )
        if record is not None:
            sweep = ["-m"] if known.multirun else []
            command = shlex.join(["python", "train.py", *sweep, *record.overrides, *overrides])
            raise RequestError(
                f"{option} {short(value)}: a run does not begin with the files of another one; "
                f"type what made that: {command}"
            )
        raise RequestError(f"{option} {short(value)}: {OWN_CHOICES}")
    if known.config_name is not None:
        raise RequestError(
            f"--config-name {short(known.config_name)}: there is one primary configuration; "
            f"write what you want to set into "
            "conf/experiment/NAME.yaml, and choose it with +experiment=NAME"
        )


def _leading() -> AbstractContextManager[None]:
    """Under torchrun, rank 0 tells the others when there is no more to do."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return nullcontext()
    from dks.machine.world import leading

    return leading()


def _run(config: object) -> None:
    """What Hydra's launchers call for every cell, here or on another machine."""
    from hydra.core.hydra_config import HydraConfig

    from dks.sweeps.launchers.worker import run_cells

    # The frozen configuration in the run's folder counts, not what Hydra composed again.
    run_cells([Path(HydraConfig.get().runtime.output_dir)])
