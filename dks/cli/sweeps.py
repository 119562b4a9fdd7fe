"""`dks sweep`: named sweeps planned, run, watched and stopped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dks.cli.exit_status import DONE
from dks.cli.hydra_main import hydra_main
from dks.cli.options import (
    Commands,
    add_command,
    add_json,
    add_loudness,
    add_results_dir,
    at_least,
    seconds,
)
from dks.config.errors import RequestError, visible
from dks.machine import output

if TYPE_CHECKING:
    from dks.sweeps.manifest import Manifest


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "sweep",
        "named sweeps: list, plan, run, status, wait, retry, cancel",
        [
            "dks sweep list",
            "dks sweep plan table3",
            "dks sweep run methods",
            "dks sweep status methods --json",
        ],
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = add_command(
        actions,
        "list",
        "the sweeps there are, how many cells each has, and how many are done",
        ["dks sweep list", "dks sweep list --json"],
        _list,
    )
    planning = add_command(
        actions,
        "plan",
        "what would run, how long it would take, and what exists already; nothing is launched",
        [
            "dks sweep plan table3",
            "dks sweep plan paper --json",
            "dks sweep plan table3 data=digits backbone=resnet8 recipe.epochs=2 seed=1,2",
        ],
        _plan,
    )
    running = add_command(
        actions,
        "run",
        "run what is missing, then show the table",
        [
            "dks sweep run table3 data.root=data data.download=true",
            "dks sweep run table3 hydra.launcher.slots=2",
            "dks sweep run table3 --code same",
            "dks sweep run table3 --launcher slurm hydra.launcher.partition=gpu "
            "hydra.launcher.gpus_per_node=1",
            "dks sweep run table3 data=digits backbone=resnet8 recipe.epochs=2 seed=1,2",
        ],
        _run,
    )
    retrying = add_command(
        actions,
        "retry",
        "run again what failed, was killed or got lost, and nothing new",
        ["dks sweep retry table3", "dks sweep retry table3 --retries 2"],
        _retry,
    )
    states = add_command(
        actions,
        "status",
        "where every cell stands",
        ["dks sweep status table3", "dks sweep status table3 --json"],
        _status,
    )
    waiting = add_command(
        actions,
        "wait",
        "wait until no cell is queued or running, then show the table",
        ["dks sweep wait table3 --every 60"],
        _wait,
    )
    cancelling = add_command(
        actions,
        "cancel",
        "stop the running cells and withdraw the queued ones; they can go on later",
        ["dks sweep cancel table3", "dks sweep cancel table3 --json"],
        _cancel,
    )
    for added in (planning, running):
        added.add_argument(
            "name", help="one of those that `dks sweep list` shows, or of a sweep begun in results/"
        )
        added.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="reach every cell")
    for added in (retrying, states, waiting, cancelling):
        added.add_argument("name", help="the sweep")
        added.add_argument(
            "overrides",
            nargs="*",
            metavar="KEY=VALUE",
            help="those that the sweep was run with, if there were any",
        )
    for added in (states, waiting, cancelling, retrying, listing):
        add_results_dir(added)
    for added in (planning, running, retrying, waiting):
        add_loudness(added)
    for added in (planning, states, waiting, cancelling, listing):
        add_json(added)
    planning.add_argument(
        "--probe",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="time for measuring networks that no earlier run tells of (default: 5; 0: estimate "
        "from FLOPs alone)",
    )
    running.add_argument("--dry-run", action="store_true", help="the same as plan")
    for added in (planning, running):
        added.add_argument(
            "--code",
            choices=("same",),
            help="train again what another code than today's has computed (default: it is left "
            "as it is, and told)",
        )
    for added in (running, retrying):
        added.add_argument(
            "--launcher", choices=("local", "slurm"), help="where cells run (default: local)"
        )
        added.add_argument(
            "--retries",
            type=at_least(0),
            default=0,
            metavar="N",
            help="try a cell that fails up to N times again (default: 0)",
        )
        failures = added.add_mutually_exclusive_group()
        failures.add_argument(
            "--fail-fast", action="store_true", help="begin no further cell once one has failed"
        )
        failures.add_argument(
            "--max-failures",
            type=at_least(1),
            metavar="N",
            help="... once N have failed (default: go on)",
        )
    waiting.add_argument(
        "--every",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="between two looks (default: 5)",
    )


def _list(options: argparse.Namespace) -> int:
    from dks.sweeps.listing import listed

    print(visible(listed(options.results_dir, options.json)))
    return DONE


def _plan(options: argparse.Namespace) -> int:
    show = "json" if options.json else "text"
    return _named_sweep(
        options,
        f"hydra.sweeper.show={show}",
        f"hydra.sweeper.probe={options.probe}",
        *_code(options),
    )


def _run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _named_sweep(options, "hydra.sweeper.show=text", *_code(options))
    return _named_sweep(options, *_policy(options), *_code(options))


def _code(options: argparse.Namespace) -> list[str]:
    return [] if options.code is None else [f"hydra.sweeper.code={options.code}"]


def _retry(options: argparse.Namespace) -> int:
    launcher = [item for item in options.overrides if item.startswith("hydra.launcher.")]
    options.overrides = [item for item in options.overrides if item not in launcher]
    begun = _begun(options)
    _distrust_unless_typed(begun.request, options.overrides)
    return _ask_for(
        begun.named,
        [*begun.request, *launcher],
        "hydra.sweeper.only_unsuccessful=true",
        *_policy(options),
    )


def _distrust_unless_typed(request: Sequence[str], typed: Sequence[str]) -> None:
    """A sweep that is asked for again says where it was tracked to.

    That is no word of this command line.
    """
    from dks.tracking.addresses import distrust

    if not {line for line in request if line.lstrip("+~").startswith("tracking")} <= set(typed):
        distrust()


def _policy(options: argparse.Namespace) -> list[str]:
    failures = 1 if options.fail_fast else options.max_failures
    launcher = [] if options.launcher is None else [f"hydra/launcher={options.launcher}"]
    limit = [] if failures is None else [f"hydra.sweeper.max_failures={failures}"]
    return [*launcher, *limit, f"hydra.sweeper.retries={options.retries}"]


def _named_sweep(options: argparse.Namespace, *more: str) -> int:
    from dks.sweeps.files import names, read

    name, overrides = options.name, options.overrides
    if name not in names():
        from dks.sweeps import manifest

        results_dir = getattr(options, "results_dir", "results")
        # An ad-hoc sweep, or a named one with overrides, asked for again.
        if name in manifest.known(results_dir) or manifest.variants_of(results_dir, name):
            begun = manifest.read(results_dir, name)
            if not any(line.startswith("tracking.uri=") for line in overrides):
                _distrust_unless_typed(begun.request, overrides)
            name, overrides = begun.named, [*begun.request, *overrides]
        else:
            read(name)  # says which names there are
    return _ask_for(name, overrides, *more)


def _ask_for(name: str | None, overrides: Sequence[str], *more: str) -> int:
    """Through Hydra's command line, with `more` for Hydra; name.

    Of the sweep's file, None for an ad-hoc one.
    """
    named = [] if name is None else [f"hydra.sweeper.named={name}"]
    sys.argv = ["dks sweep", "-m", *named, *more, *overrides]
    return hydra_main()


def _begun(options: argparse.Namespace) -> Manifest:
    """The manifest of the sweep that the options mean."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dks.sweeps import manifest
    from dks.sweeps.files import names, read
    from dks.sweeps.spec import grid_of

    name = options.name
    if options.overrides:
        if name not in names():
            raise RequestError(
                f"{name} is no named sweep, so it takes no overrides; choose from "
                f"{', '.join(names())}"
            )
        name = grid_of(read(name), options.overrides, OverridesParser.create()).name
    return manifest.read(options.results_dir, name)


def _status(options: argparse.Namespace) -> int:
    from dks.runs.terminal import console
    from dks.sweeps.changes import Changes
    from dks.sweeps.status import status
    from dks.tracking.sync import tell_dead

    seen = status(begun := _begun(options))
    seen = replace(seen, changed=Changes().of(begun))
    if options.json:
        print(seen.to_json())
    else:
        console().print(visible(str(seen)), soft_wrap=True)
    for line in tell_dead(seen.standings):
        print(visible(line), file=sys.stderr)
    return DONE


def _wait(options: argparse.Namespace) -> int:
    from dks.results.render import as_json
    from dks.results.results import show, write_results
    from dks.results.study import Study
    from dks.runs.terminal import say
    from dks.sweeps.status import status, wait
    from dks.tracking.sender import sending
    from dks.tracking.sync import tell_dead

    study = Study.begun(options.results_dir, _begun(options))
    seen = wait(lambda: status(study.sweep), options.every, say)
    begun = next((each.folder for each in seen.standings.values() if each.record is not None), None)
    if begun is not None:
        tracking = begun.read_config().tracking
        with sending(tracking, partial(say, urgent=True)) as sender:
            sender.sweep(seen.sweep.name, "FAILED" if seen.exit_status else "FINISHED", tracking)
    for line in tell_dead(seen.standings):
        print(visible(line), file=sys.stderr)
    tables = write_results(options.results_dir, study)
    with output.kept_elsewhere():
        if options.json:
            print(as_json(tables), end="")
        for table in () if options.json else tables:
            show(table)
    if seen.sweep.undecided:
        print(
            f"dks sweep run {study.name} goes on: {'; '.join(seen.sweep.undecided)}",
            file=sys.stderr,
        )
    return seen.exit_status


def _cancel(options: argparse.Namespace) -> int:
    from dks.runs.scheduler import Scheduler
    from dks.sweeps.status import cancel, status

    found = cancel(status(_begun(options)), Scheduler())
    print(found.to_json() if options.json else visible(str(found)))
    return DONE
