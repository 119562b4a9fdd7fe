"""What starts Hydra, for `train.py`, `dks train` and the sweeps that go through its command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from dks.commands.exit_status import DONE


def hydra_main() -> int:
    """Hydra's command line, as `sys.argv` has it. Returns the exit status.

    Raises:
        RequestError: an option or an override is wrong.
    """
    import hydra

    from dks.config.catalogue import catalogue
    from dks.config.compose import register_schema
    from dks.config.files import declarations
    from dks.machine.commit import other_copies

    register_schema()
    if int(os.environ.get("RANK", "0")):  # under torchrun rank 0 plans and records, the others train along
        from dks.training.run import follow

        follow()
        return DONE
    if "--shell-completion" not in sys.argv and "-sc" not in sys.argv:
        for problem in (*catalogue().problems, *other_copies(Path.cwd())):
            print(f"warning: {problem}", file=sys.stderr)
    sys.argv[1:] = _in_order(sys.argv[1:])
    with _leading():
        hydra.main(config_path=str(declarations("conf")), config_name="config", version_base="1.3")(_run)()
    return DONE


def _in_order(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options last: Hydra takes no more overrides once an option stood between them.

    Raises:
        RequestError: an option is unknown or without a value, or something is no override.
    """
    from hydra._internal.utils import get_args_parser

    from dks.config.compose import check_overrides
    from dks.config.errors import RequestError, short

    def refuse(message: str) -> NoReturn:
        raise RequestError(f"{message.removeprefix('argument ')}; dks train --help shows the options")

    parser = get_args_parser()
    vars(parser)["error"] = refuse
    known, rest = parser.parse_known_args(list(arguments))
    if unknown := [each for each in rest if each.startswith("-")]:
        refuse(f"no such option {', '.join(map(short, unknown))}")
    if known.run or known.experimental_rerun is not None:
        refuse("--run and --experimental-rerun mean nothing here; a run is named by its choices alone")
    overrides, options = [*known.overrides, *rest], list(arguments)
    for override in reversed(overrides):
        options.reverse()
        options.remove(override)
        options.reverse()
    if not known.shell_completion:  # what is being typed is not whole yet
        check_overrides(overrides)
    if not (known.cfg or known.info or known.shell_completion):
        options.append("--multirun")  # as the configuration says; if Hydra fails to read that, it must not do something else
    return [*overrides, *options]


def _leading() -> AbstractContextManager[None]:
    """Under torchrun, rank 0 tells the others when there is no more to do."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return nullcontext()
    from dks.machine.world import leading

    return leading()


def _run(config: object) -> None:
    """What Hydra's launchers call for every cell, here or on another machine."""
    from hydra.core.hydra_config import HydraConfig

    from dks.sweeps.worker import run_cells

    # The frozen configuration in the run's folder counts, not what Hydra composed again.
    run_cells([Path(HydraConfig.get().runtime.output_dir)])
