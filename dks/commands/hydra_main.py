"""What starts Hydra, for `train.py`, `dks train` and the sweeps that go through its command line."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from dks.commands.exit_status import DONE


def hydra_main() -> int:
    """Hydra's command line, as `sys.argv` has it. Returns the exit status."""
    import hydra

    from dks.config.compose import register_schema
    from dks.config.extensions import catalogue
    from dks.config.files import declarations

    register_schema()
    if "--shell-completion" not in sys.argv and "-sc" not in sys.argv:
        for problem in catalogue().problems:
            print(f"warning: {problem}", file=sys.stderr)
    if int(os.environ.get("RANK", "0")):  # under torchrun rank 0 plans and records, the others train along
        from dks.training.run import follow

        follow()
        return DONE
    with _leading():
        hydra.main(config_path=str(declarations("conf")), config_name="config", version_base="1.3")(_run)()
    return DONE


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
