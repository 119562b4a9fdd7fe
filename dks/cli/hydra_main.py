"""What starts Hydra, for `dks train` and for `dks sweep`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dks.cli.exit_status import DONE, FAILED, WRONG_REQUEST
from dks.config.compose import check_hydra, register_schema
from dks.config.errors import RequestError, short
from dks.config.explain import OWN_CHOICES
from dks.config.files import declarations
from dks.config.overrides import checked
from dks.config.registry import catalogue
from dks.runs.record import RunFolder


def hydra_main(arguments: Sequence[str]) -> int:
    """Hydra's command line. In `sys.argv`, which Hydra reads, it leaves what it made of it.

    Returns:
        The exit status.

    Raises:
        RequestError: an option or an override is wrong.
    """
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
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _answer(known, overrides)
    from dks.machine.world import leading  # imports torch

    with leading():
        return _answer(known, overrides)


def _answer(known: argparse.Namespace, overrides: list[str]) -> int:
    """Show what is asked for, or run."""
    if not (known.help or known.hydra_help or known.cfg or known.info or known.shell_completion):
        _multirun(overrides)
        return DONE
    show = hydra.main(str(declarations("conf")), "config", version_base="1.3")
    try:
        show(_run)()
    except SystemExit as left:  # with 1 where there is no such part of the configuration
        raise SystemExit(WRONG_REQUEST if left.code == FAILED else left.code) from left
    return DONE


class Checked(Hydra):
    """Hydra that refuses what it cannot do here before it makes a sweeper."""

    def compose_config(self, *arguments: Any, **options: Any) -> DictConfig:
        """Compose, and check the node `hydra`."""
        composed = super().compose_config(*arguments, **options)
        check_hydra(composed.hydra)
        return composed


def _multirun(overrides: list[str]) -> None:
    """What `hydra.main` does for a sweep, which here is every run, once its command line is read.

    Less one composition, whose errors it would take for the wish to have another mode.
    """
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
    typed, options = [*known.overrides, *rest], list(arguments)[::-1]
    for override in reversed(typed):
        options.remove(override)
    _refuse_other_files(known, typed)
    # What is being typed, for its completion, is not whole yet.
    overrides = typed if known.shell_completion else checked(typed, several=known.multirun)
    sys.argv = [sys.argv[0], *overrides, *reversed(options)]
    return known, overrides


def _refuse_other_files(known: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Hydra would compose from other files, or go on with its defaults where it finds none in them.

    Raises:
        RequestError: that is asked for; it says what does what was meant.
    """
    for option, value in (("--config-dir", known.config_dir), ("--config-path", known.config_path)):
        if value is None:
            continue
        is_run = (Path(value) / "record.json").is_file()
        if is_run and (record := RunFolder(Path(value)).read_record()) is not None:
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
            "write what you want to set into conf/experiment/NAME.yaml, and choose it with "
            "+experiment=NAME"
        )


def _run(config: object) -> None:
    """What Hydra's launchers call for every cell, here or on another machine."""
    from dks.sweeps.launchers.worker import run_cells

    # The frozen configuration in the run's folder counts, not what Hydra composed again.
    run_cells([Path(HydraConfig.get().runtime.output_dir)])
