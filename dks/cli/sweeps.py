"""`dks sweep`: named sweeps planned, run, watched and stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from dks.cli.command import Group, option, together
from dks.cli.exit_status import DONE
from dks.cli.options import (
    at_least,
    json_output,
    overrides,
    results_dir,
    seconds,
    sweep_name,
    verbosity,
)
from dks.config.errors import RequestError, visible
from dks.machine import output

if TYPE_CHECKING:
    from dks.sweeps.manifest import Manifest

# Parameters of `_launch`.
_launch_options = together(
    sweep_name("one of those that `dks sweep list` shows, or of a sweep begun in results/"),
    overrides("reach every cell"),
    option(
        "--code",
        "train again what another code than today's has computed (default: it is left as it is, "
        "and told)",
        choices="same",
    ),
)
# Parameters of `_begun`.
_begun_options = together(
    sweep_name("the sweep"),
    overrides("those that the sweep was run with, if there were any"),
    results_dir,
)
# Parameters of `_policy`.
_policy_options = together(
    option("--launcher", "where cells run (default: local)", choices="local slurm"),
    option(
        "--retries N",
        "try a cell that fails up to N times again (default: 0)",
        type=at_least(0),
        default="0",
    ),
    option("--fail-fast", "begin no further cell once one has failed"),
    option("--max-failures N", "... once N have failed (default: go on)", type=at_least(1)),
)


@click.group(cls=Group, no_args_is_help=False)
def sweep() -> None:
    """Named sweeps: list, plan, run, status, wait, retry, cancel.

    \b
    Examples:
      dks sweep list
      dks sweep plan table3
      dks sweep run methods
      dks sweep status methods --json
    """


@sweep.command("list")
@results_dir
@json_output
def list_(results_dir: str, as_json: bool) -> int:
    """The sweeps there are, how many cells each has, and how many are done.

    \b
    Examples:
      dks sweep list
      dks sweep list --json
    """
    from dks.sweeps.listing import listed

    print(visible(listed(results_dir, as_json)))
    return DONE


@sweep.command
@_launch_options
@option(
    "--probe SECONDS",
    "time for measuring networks that no earlier run tells of (default: 5; 0: none)",
    type=seconds,
    default=5.0,
)
@json_output
@verbosity
def plan(name: str, overrides: Sequence[str], code: str | None, probe: float, as_json: bool) -> int:
    """What would run, how long it would take, and what exists already; nothing is launched.

    \b
    Examples:
      dks sweep plan table3
      dks sweep plan paper --json
      dks sweep plan table3 data=digits backbone=resnet8 recipe.epochs=2 seed=1,2
    """
    show = "json" if as_json else "text"
    return _launch(name, overrides, code, f"show={show}", f"probe={probe}")


@sweep.command
@_launch_options
@option("--dry-run", "the same as plan")
@_policy_options
@verbosity
def run(dry_run: bool, name: str, overrides: Sequence[str], code: str | None, **policy: Any) -> int:
    """Run what is missing, then show the table.

    \b
    Examples:
      dks sweep run table3 data.root=data data.download=true
      dks sweep run table3 hydra.launcher.slots=2
      dks sweep run table3 --code same
      dks sweep run table3 --launcher slurm hydra.launcher.partition=gpu
      dks sweep run table3 data=digits backbone=resnet8 recipe.epochs=2 seed=1,2
    """
    settings = ["show=text"] if dry_run else _policy(**policy)
    return _launch(name, overrides, code, *settings)


@sweep.command
@_begun_options
@_policy_options
@verbosity
def retry(name: str, overrides: Sequence[str], results_dir: str, **policy: Any) -> int:
    """Run again what failed, was killed or got lost, and nothing new.

    \b
    Examples:
      dks sweep retry table3
      dks sweep retry table3 --retries 2
    """
    settings = ["only_unsuccessful=true", *_policy(**policy)]
    of_launcher = [item for item in overrides if item.startswith("hydra.launcher.")]
    others = [item for item in overrides if item not in of_launcher]
    begun = _begun(name, others, results_dir)
    _distrust_unless_typed(begun.request, others)
    return _through_hydra(begun.named, [*begun.request, *of_launcher], settings)


@sweep.command
@_begun_options
@json_output
def status(as_json: bool, **sweep: Any) -> int:
    """Where every cell stands.

    \b
    Examples:
      dks sweep status table3
      dks sweep status table3 --json
    """
    from dks.runs.terminal import console
    from dks.sweeps.changes import Changes
    from dks.sweeps.status import status
    from dks.tracking.sync import tell_dead

    begun = _begun(**sweep)
    seen = replace(status(begun), changed=Changes().of(begun))
    if as_json:
        print(seen.to_json())
    else:
        console().print(visible(str(seen)), soft_wrap=True)
    for line in tell_dead(seen.standings):
        print(visible(line), file=sys.stderr)
    return DONE


@sweep.command
@_begun_options
@option("--every SECONDS", "between two looks (default: 5)", type=seconds, default=5.0)
@json_output
@verbosity
def wait(every: float, as_json: bool, **sweep: Any) -> int:
    """Wait until no cell is queued or running, then show the table.

    \b
    Examples:
      dks sweep wait table3 --every 60
    """
    from dks.results.render import as_json as tables_as_json
    from dks.results.results import show, write_results
    from dks.results.study import Study
    from dks.runs.terminal import say
    from dks.sweeps.status import status, wait
    from dks.tracking.sender import sending
    from dks.tracking.sync import tell_dead

    study = Study.begun(sweep["results_dir"], _begun(**sweep))
    seen = wait(lambda: status(study.sweep), every, say)
    begun = next((each.folder for each in seen.standings.values() if each.record is not None), None)
    if begun is not None:
        tracking = begun.read_config().tracking
        with sending(tracking, partial(say, urgent=True)) as sender:
            sender.sweep(seen.sweep.name, "FAILED" if seen.exit_status else "FINISHED", tracking)
    for line in tell_dead(seen.standings):
        print(visible(line), file=sys.stderr)
    tables = write_results(sweep["results_dir"], study)
    with output.kept_elsewhere():
        if as_json:
            print(tables_as_json(tables), end="")
        for table in () if as_json else tables:
            show(table)
    if undecided := "; ".join(seen.sweep.undecided):
        print(f"dks sweep run {study.name} goes on: {undecided}", file=sys.stderr)
    return seen.exit_status


@sweep.command
@_begun_options
@json_output
def cancel(as_json: bool, **sweep: Any) -> int:
    """Stop the running cells and withdraw the queued ones; they can go on later.

    \b
    Examples:
      dks sweep cancel table3
      dks sweep cancel table3 --json
    """
    from dks.runs.scheduler import Scheduler
    from dks.sweeps.status import cancel, status

    found = cancel(status(_begun(**sweep)), Scheduler())
    print(found.to_json() if as_json else visible(str(found)))
    return DONE


def _policy(
    launcher: str | None, retries: int, fail_fast: bool, max_failures: int | None
) -> list[str]:
    """The launcher, and what the sweeper does about failures."""
    if fail_fast and max_failures is not None:
        raise RequestError("--fail-fast and --max-failures exclude each other; drop one")
    limit = 1 if fail_fast else max_failures
    return [
        f"retries={retries}",
        *([] if limit is None else [f"max_failures={limit}"]),
        *([] if launcher is None else [f"hydra/launcher={launcher}"]),
    ]


def _launch(name: str, overrides: Sequence[str], code: str | None, *settings: str) -> int:
    """Plan or run a named sweep, or one that was begun and is asked for again."""
    from dks.sweeps import manifest
    from dks.sweeps.files import names, read

    settings = (*settings, *([] if code is None else [f"code={code}"]))
    if name in names():
        return _through_hydra(name, overrides, settings)
    if name not in manifest.known("results") and not manifest.variants_of("results", name):
        read(name)  # says which names there are
    begun = manifest.read("results", name)
    if not any(line.startswith("tracking.uri=") for line in overrides):
        _distrust_unless_typed(begun.request, overrides)
    return _through_hydra(begun.named, [*begun.request, *overrides], settings)


def _through_hydra(name: str | None, overrides: Sequence[str], settings: Sequence[str]) -> int:
    """Run a sweep as `dks train -m` does.

    Args:
        name: of the sweep's file; None: an ad-hoc one.
        overrides: as typed.
        settings: of the sweeper, and the launcher.
    """
    from dks.cli.hydra_main import hydra_main  # imports Hydra

    named = [] if name is None else [f"named={name}"]
    whole = [
        each if each.startswith("hydra/") else f"hydra.sweeper.{each}"
        for each in (*named, *settings)
    ]
    return hydra_main(["-m", *whole, *overrides])


def _begun(name: str, overrides: Sequence[str], results_dir: str) -> Manifest:
    """The manifest of the sweep that was run with these overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dks.sweeps import manifest
    from dks.sweeps.files import names, read
    from dks.sweeps.spec import grid_of

    if overrides:
        if name not in names():
            raise RequestError(
                f"{name} is no named sweep, so it takes no overrides; choose from "
                f"{', '.join(names())}"
            )
        name = grid_of(read(name), overrides, OverridesParser.create()).name
    return manifest.read(results_dir, name)


def _distrust_unless_typed(request: Sequence[str], typed: Sequence[str]) -> None:
    """Send no password to a server that an earlier command line named, and not this one."""
    from dks.tracking.addresses import distrust

    if not {line for line in request if line.lstrip("+~").startswith("tracking")} <= set(typed):
        distrust()
