"""All checks, by group, in the order in which they are made."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.errors import RequestError, one_line
from dks.config.files import cache_folder
from dks.tools.doctor import extensions, machine, packages
from dks.tools.doctor.check import Check, Finding, green, grey, red, yellow

if TYPE_CHECKING:
    from dks.config.compose import Composed

LONG = 600.0  # seconds for reading all files of the data
IMPORTS = 120.0  # seconds for importing torch from a slow disk
DISK = 60.0  # seconds for what may wait for a slow disk


def groups(overrides: Sequence[str]) -> list[tuple[str, list[Check]]]:
    """Title -> its checks, for the configuration that these overrides choose.

    Raises:
        RequestError: an override is wrong.
    """
    try:
        from dks.config.compose import compose_here
        from dks.config.overrides import checked

        composed = compose_here(checked(overrides))
    except ImportError as error:  # a package is missing, and that is what is to be said
        text = f"cannot be read: {one_line(str(error))}"
        missing = red("configuration", text, "install the dependencies")
        return [*_installed(), ("Configuration", [Check("configuration", lambda: [missing])])]
    return [
        *_installed(composed.config.device, composed.config.threads),
        *_of_configuration(composed),
    ]


def _installed(device: str = "auto", threads: int | None = None) -> list[tuple[str, list[Check]]]:
    python = [
        Check("Python", packages.interpreter),
        Check("dependencies", packages.dependencies),
        Check("tested versions", packages.tested_versions),
        Check("extras", packages.extras),
    ]
    computing = [
        Check("torch", machine.torch_works, IMPORTS),
        Check("torchvision", packages.torchvision, IMPORTS),
        Check("CUDA", partial(machine.cuda, device), IMPORTS),
        Check("threads", partial(machine.threads, threads)),
    ]
    added = [Check("extensions", extensions.extensions, IMPORTS)]
    return [("Python", python), ("Computing", computing), ("Extensions", added)]


def _of_configuration(composed: Composed) -> list[tuple[str, list[Check]]]:
    # They import torch, which may be missing; that is a finding of its own.
    from dks.tools.doctor import images, slurm, storage, tracking

    config = composed.config
    runs, uri = Path(config.runs_dir), config.tracking.uri or ""

    def disk(name: str, path: Path, **options: bool) -> Check:
        return Check(name, partial(storage.folder, name, path, **options), DISK)

    disks = [
        disk("runs", runs),
        Check("versions", partial(_versions, config.runs_dir), DISK),
        disk("results", Path(config.results_dir)),
    ]
    if uri.startswith("sqlite:///"):
        disks.append(disk("store", Path(uri.removeprefix("sqlite:///")).parent, store=True))
    disks += [
        disk("cache", cache_folder(), needed=False),
        disk("temporary", Path(tempfile.gettempdir()), needed=False),
    ]
    tracked = [
        Check("client", partial(tracking.client, config.tracking), IMPORTS),
        Check(
            "tracking",
            partial(tracking.tracking, config.tracking),
            14 if uri.startswith("http") else IMPORTS,
        ),
    ]
    return [
        ("Configuration", [Check("configuration", partial(_accepted, composed), IMPORTS)]),
        ("Data", [Check(config.data.source, partial(images.images, config.data), LONG)]),
        ("Disks", disks),
        ("Tracking", tracked),
        ("SLURM", [Check("SLURM", slurm.slurm, 40)]),
        (
            "Clock and code",
            [Check("clock", partial(machine.clock, runs), DISK), Check("code", machine.code)],
        ),
    ]


def _versions(runs_dir: str) -> Iterator[Finding]:
    from dks.runs.earlier import HOW, earlier_runs

    if found := earlier_runs(runs_dir):
        yield yellow("versions", f"{runs_dir}: {len(found)} with ids of an earlier version", HOW)


def _accepted(composed: Composed) -> Iterator[Finding]:
    """Whether a run would be; what is wrong with the data is said of the data."""
    from dks.config.identity import cell_id
    from dks.data import describe
    from dks.training.resolver import Resolver

    name, chosen = "configuration", copy.deepcopy(composed)  # resolving fills in what data says
    of_data: tuple[str, ...] = ()
    try:
        describe(chosen.config.data, [])
    except RequestError as error:
        of_data = error.problems
    try:
        config = Resolver(absent_ok=True)(chosen)
    except RequestError as error:
        own = [problem for problem in error.problems if problem not in of_data]
        yield from (red(name, one_line(each), "correct it; the line says how") for each in own)
        if not own:
            yield grey(name, "not checked without the data")
        return
    text = f"{composed.choices['backbone']} on {config.data.name}: accepted, cell {cell_id(config)}"
    yield green(name, text)
