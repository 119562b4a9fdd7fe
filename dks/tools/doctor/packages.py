"""The installed packages.

Against what dks needs, and against the versions that it was tested with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from dks.config.errors import one_line
from dks.config.files import declarations
from dks.tools.doctor.check import Finding, green, grey, red, yellow

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# Extra -> what it is for.
EXTRAS = {
    "export": "dks export --format onnx",
    "notebooks": "the notebooks in analysis/",
    "postgres": "MLflow in PostgreSQL",
}
NAMED = 4  # packages named in a line; all of them are in the details


def dependencies() -> Iterator[Finding]:
    """Whether everything that dks needs is there, and new enough."""
    required = _requirements()
    if required is None:
        yield _not_installed()
        return
    here = _environment()
    wanted = [each for each in required if each.marker is None or each.marker.evaluate(here)]
    problems = [problem for each in wanted if (problem := _problem(each))]
    if problems:
        advice = (
            f'{sys.executable} -m pip install --upgrade -c constraints.txt "dks", or the '
            f'same with "." in a checkout'
        )
        yield red(
            "dependencies",
            f"{len(problems)} of {len(wanted)} missing or too old: {_few(problems)}",
            advice,
            problems,
        )
    else:
        yield green("dependencies", f"all {len(wanted)} are installed and new enough")


def tested_versions() -> Iterator[Finding]:
    """Whether the versions are those of constraints.txt.

    What it names and nobody installed does not count.
    """
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

    file = declarations("constraints.txt")
    if not file.is_file():
        yield grey("tested versions", "not checked: this copy of dks has no constraints.txt")
        return
    pins = dict(
        line.split("==", 1)
        for line in file.read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    installed = _installed()
    others: list[str] = []
    there = 0
    for name, tested in pins.items():
        version = installed.get(canonicalize_name(name))
        if version is None:
            continue
        there += 1
        try:
            # 2.11.0+cpu is 2.11.0, built otherwise
            same = Version(version).public == Version(tested).public
        except InvalidVersion:
            same = version == tested
        if not same:
            others.append(f"{name} {version} (tested: {tested})")
    if others:
        yield yellow(
            "tested versions",
            f"{len(others)} of {there} packages have another version than the tested one: "
            f"{_few(others)}",
            f"nothing, unless something fails; then: {sys.executable} -m pip install -c {file} dks",
            others,
        )
    else:
        yield green("tested versions", f"all {there} packages have the versions of constraints.txt")


def extras() -> Iterator[Finding]:
    """The optional parts."""
    required = _requirements()
    if required is None:
        return
    for extra, purpose in EXTRAS.items():
        plain, here = _environment(), _environment(extra)
        wanted = [
            each
            for each in required
            if each.marker and each.marker.evaluate(here) and not each.marker.evaluate(plain)
        ]
        missing = [each.name for each in wanted if _version(each.name) is None]
        old = [
            problem for each in wanted if each.name not in missing and (problem := _problem(each))
        ]
        install = f'{sys.executable} -m pip install --upgrade "dks[{extra}]"'
        if missing:
            yield grey(
                f"extra {extra}",
                f'not installed, for {purpose}; pip install "dks[{extra}]" adds it',
            )
        elif old:
            yield yellow(f"extra {extra}", f"for {purpose}; too old: {_few(old)}", install, old)
        else:
            yield green(f"extra {extra}", f"installed, for {purpose}")


def torchvision() -> Iterator[Finding]:
    """It holds compiled code that fits one version of torch only."""
    advice = (
        f"install the two together: {sys.executable} -m pip install --force-reinstall -c "
        f"constraints.txt torch torchvision"
    )
    try:
        import torch
        import torchvision
        from torchvision.ops import nms

        kept = nms(
            torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 5, 5]]),
            torch.tensor([0.5, 0.9, 0.1]),
            0.5,
        ).tolist()
    except Exception as error:
        # ImportError, OSError of a library, RuntimeError: operator torchvision::nms does not exist
        yield red(
            "torchvision", f"does not work: {one_line(str(error)) or type(error).__name__}", advice
        )
        return
    if kept != [1, 2]:
        yield red("torchvision", f"{torchvision.__version__} gives wrong results", advice)
    else:
        yield green("torchvision", f"{torchvision.__version__} fits torch {torch.__version__}")


def _requirements() -> list[Requirement] | None:
    """What the installed dks says that it needs; None where it is not installed."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires("dks") or ()]
    except metadata.PackageNotFoundError:
        return None


def _environment(extra: str = "") -> dict[str, str]:
    """What the conditions of requirements are about."""
    from packaging.markers import default_environment

    return {**{key: str(value) for key, value in default_environment().items()}, "extra": extra}


def _not_installed() -> Finding:
    return yellow(
        "dependencies",
        "not checked: dks runs from its source and is not installed",
        f"in the folder of the source: {sys.executable} -m pip install -c constraints.txt -e .",
    )


def _problem(requirement: Requirement) -> str:
    """What is wrong with it; empty if nothing."""
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} missing (needs {requirement.specifier})"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} (needs {requirement.specifier})"
    return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _installed() -> dict[str, str]:
    """Normalised name -> version, of what comes first on the path."""
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    for each in metadata.distributions():
        if name := each.metadata["Name"]:
            found.setdefault(canonicalize_name(name), each.version)
    return found


def _few(items: list[str]) -> str:
    more = len(items) - NAMED
    return ", ".join(items[:NAMED]) + (f" and {more} more" if more > 0 else "")
