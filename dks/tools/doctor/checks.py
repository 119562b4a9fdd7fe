"""All checks, by group, in the order in which they are made."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.errors import RequestError, one_line
from dks.config.files import cache_folder
from dks.tools.doctor import extensions, machine, packages, slurm
from dks.tools.doctor.check import Check, Finding, grey, red

if TYPE_CHECKING:
    from dks.config.compose import Composed

LONG = 600.0  # seconds for reading all files of the data
IMPORTS = 120.0  # seconds for importing torch from a slow disk


def groups(overrides: Sequence[str]) -> list[tuple[str, list[Check]]]:
    """Title -> its checks, for the configuration that these overrides choose.

    Raises:
        RequestError: an override is wrong.
    """
    try:
        from dks.config.compose import checked, compose_here

        composed = compose_here(checked(overrides))
    except ImportError as error:  # a package is missing, and that is what is to be said
        missing = red(
            "configuration", f"cannot be read: {one_line(str(error))}", "install the dependencies"
        )
        return [*_installed(), ("Configuration", [Check("configuration", lambda: [missing])])]
    config = composed.config
    return [*_installed(config.device, config.threads), *_of_configuration(composed)]


def _installed(device: str = "auto", threads: int | None = None) -> list[tuple[str, list[Check]]]:
    return [
        (
            "Python",
            [
                Check("Python", machine.interpreter),
                Check("dependencies", packages.dependencies),
                Check("tested versions", packages.tested_versions),
                Check("extras", packages.extras),
            ],
        ),
        (
            "Computing",
            [
                Check("torch", machine.torch_works, IMPORTS),
                Check("torchvision", packages.torchvision, IMPORTS),
                Check("CUDA", lambda: machine.cuda(device), IMPORTS),
                Check("threads", lambda: machine.threads(threads)),
            ],
        ),
        ("Extensions", [Check("extensions", extensions.extensions, IMPORTS)]),
    ]


def _of_configuration(composed: Composed) -> list[tuple[str, list[Check]]]:
    from dks.tools.doctor import images, storage, tracking

    config = composed.config
    uri = config.tracking.uri or ""
    store = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else None
    disks = [
        Check("runs", lambda: storage.folder("runs", Path(config.runs_dir)), 60),
        Check("versions", lambda: _versions(config.runs_dir), 60),
        Check("results", lambda: storage.folder("results", Path(config.results_dir)), 60),
        *(
            []
            if store is None
            else [Check("store", lambda: storage.folder("store", store, store=True), 60)]
        ),
        Check("cache", lambda: storage.folder("cache", cache_folder(), needed=False), 60),
        Check(
            "temporary",
            lambda: storage.folder("temporary", Path(tempfile.gettempdir()), needed=False),
            60,
        ),
    ]
    track = [
        Check("client", lambda: tracking.client(config.tracking), IMPORTS),
        Check(
            "tracking",
            lambda: tracking.tracking(config.tracking),
            14 if uri.startswith("http") else IMPORTS,
        ),
    ]
    return [
        ("Configuration", [Check("configuration", lambda: _configuration(composed), IMPORTS)]),
        ("Data", [Check(config.data.source, lambda: images.images(config.data), LONG)]),
        ("Disks", disks),
        ("Tracking", track),
        ("SLURM", [Check("SLURM", slurm.slurm, 40)]),
        (
            "Clock and code",
            [
                Check("clock", lambda: machine.clock(Path(config.runs_dir)), 60),
                Check("code", machine.code),
            ],
        ),
    ]


def _versions(runs_dir: str) -> Iterator[Finding]:
    from dks.runs.earlier import HOW, earlier_runs
    from dks.tools.doctor.check import yellow

    if found := earlier_runs(runs_dir):
        yield yellow("versions", f"{runs_dir}: {len(found)} with ids of an earlier version", HOW)


def _configuration(composed: Composed) -> Iterator[Finding]:
    """Whether it would be accepted; what is wrong with the data is said of the data."""
    from dks.config.identity import cell_id
    from dks.data import describe
    from dks.tools.doctor.check import green
    from dks.training.resolver import Resolver

    chosen = copy.deepcopy(composed)  # resolving fills in what the data says
    resolver, of_data = Resolver(absent_ok=True), tuple[str, ...]()
    try:
        describe(chosen.config.data, [])
    except RequestError as error:
        of_data = error.problems
    try:
        config = resolver(chosen)
    except RequestError as error:
        for problem in error.problems:
            if problem not in of_data:
                yield red("configuration", one_line(problem), "correct it; the line says how")
        if set(error.problems) <= set(of_data):
            yield grey("configuration", "not checked without the data")
        return
    yield green(
        "configuration",
        f"{composed.choices['backbone']} on {config.data.name}: accepted, cell {cell_id(config)}",
    )
