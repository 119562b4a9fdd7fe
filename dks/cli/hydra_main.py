"""What starts Hydra: for `train.py`, `dks train` and the sweeps that go through its door."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dks.cli.exit_status import DONE, FAILED, WRONG_REQUEST

if TYPE_CHECKING:
    from omegaconf import DictConfig


def hydra_main() -> int:
    """Hydra's command line, as `sys.argv` has it. Returns the exit status.

    Raises:
        RequestError: an option or an override is wrong.
    """
    import hydra

    from dks.config.compose import register_schema
    from dks.config.files import declarations
    from dks.config.registry import catalogue

    register_schema()
    # under torchrun rank 0 plans and records, the others train along
    if int(os.environ.get("RANK", "0")):
        from dks.training.run import follow

        follow()
        return DONE
    known, overrides = _parsed(sys.argv[1:])
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
    """Hydra's options and the overrides. In `sys.argv` the options come last from now on.

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
    sys.argv[1:] = [*overrides, *options]
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
