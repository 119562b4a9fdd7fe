"""Python and its packages, against what dks needs and the versions that it was tested with."""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dks.config.errors import one_line
from dks.config.files import declarations
from dks.tools.doctor.check import Finding, green, grey, red, yellow

# Extra -> what it is for.
EXTRAS = {
    "export": "dks export --format onnx",
    "notebooks": "the notebooks in analysis/",
    "postgres": "MLflow in PostgreSQL",
}
NAMED = 4  # packages named in a line; all of them are in the details
PIP = f"{sys.executable} -m pip install"
_NEW_VENV = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e ."


def interpreter() -> Iterator[Finding]:
    """Which Python, whether it is new enough, and whether it has packages of its own."""
    version, needed = platform.python_version(), ""
    if _version("dks"):
        needed = str(metadata.metadata("dks")["Requires-Python"] or "")
    if SpecifierSet(needed).contains(version, prereleases=True):
        yield green("Python", f"{version} {sys.executable}")
    else:
        advice = f"with another interpreter: {_NEW_VENV}"
        yield red("Python", f"{version}, dks needs {needed}", advice)
    if sys.prefix != sys.base_prefix:
        yield green("environment", f"virtual environment {sys.prefix}")
    elif Path(sys.prefix, "conda-meta").is_dir():
        yield green("environment", f"Conda environment {sys.prefix}")
    elif Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
        text = "none of its own: packages belong to the operating system"
        yield yellow("environment", text, _NEW_VENV)
    else:
        yield green("environment", f"no virtual environment; packages are in {sys.prefix}")


def dependencies() -> Iterator[Finding]:
    """Whether everything that dks needs is there, and new enough."""
    if not _version("dks"):
        yield yellow(
            "dependencies",
            "not checked: dks runs from its source and is not installed",
            f"in the folder of the source: {PIP} -c constraints.txt -e .",
        )
        return
    wanted = _required("")
    if problems := [problem for each in wanted if (problem := _problem(each))]:
        yield red(
            "dependencies",
            f"{len(problems)} of {len(wanted)} missing or too old: {_few(problems)}",
            f'{PIP} --upgrade -c constraints.txt "dks", or the same with "." in a checkout',
            tuple(problems),
        )
    else:
        yield green("dependencies", f"all {len(wanted)} are installed and new enough")


def tested_versions() -> Iterator[Finding]:
    """Whether the versions are those of constraints.txt.

    What it names and nobody installed does not count.
    """
    name, file = "tested versions", declarations("constraints.txt")
    if not file.is_file():
        yield grey(name, "not checked: this copy of dks has no constraints.txt")
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    there = [pin for pin in pins if _version(pin.name)]
    others = [
        f"{pin.name} {_version(pin.name)} (tested: {str(pin.specifier).removeprefix('==')})"
        for pin in there  # 2.11.0+cpu is 2.11.0, built otherwise
        if not pin.specifier.contains(_version(pin.name), prereleases=True)
    ]
    if others:
        yield yellow(
            name,
            f"{len(others)} of {len(there)} packages have another version than the tested one: "
            f"{_few(others)}",
            f"nothing, unless something fails; then: {PIP} -c {file} dks",
            tuple(others),
        )
    else:
        yield green(name, f"all {len(there)} packages have the versions of constraints.txt")


def extras() -> Iterator[Finding]:
    """The optional parts."""
    if not _version("dks"):
        return
    always = _required("")
    for extra, purpose in EXTRAS.items():
        name = f"extra {extra}"
        wanted = [each for each in _required(extra) if each not in always]
        problems = [problem for each in wanted if (problem := _problem(each))]
        if not all(_version(each.name) for each in wanted):
            text = f'not installed, for {purpose}; pip install "dks[{extra}]" adds it'
            yield grey(name, text)
        elif problems:
            text, advice = f"for {purpose}; too old: {_few(problems)}", f'"dks[{extra}]"'
            yield yellow(name, text, f"{PIP} --upgrade {advice}", tuple(problems))
        else:
            yield green(name, f"installed, for {purpose}")


def torchvision() -> Iterator[Finding]:
    """It holds compiled code that fits one version of torch only."""
    again = f"{PIP} --force-reinstall -c constraints.txt torch torchvision"
    advice = f"install the two together: {again}"
    try:
        import torch
        import torchvision
        from torchvision.ops import nms

        boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 5, 5]])
        kept = nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
    except Exception as error:
        # ImportError, OSError of a library, RuntimeError: operator torchvision::nms does not exist
        text = f"does not work: {one_line(str(error)) or type(error).__name__}"
        yield red("torchvision", text, advice)
        return
    if kept == [1, 2]:
        yield green("torchvision", f"{torchvision.__version__} fits torch {torch.__version__}")
    else:
        yield red("torchvision", f"{torchvision.__version__} gives wrong results", advice)


def _required(extra: str) -> list[Requirement]:
    """What dks needs here, with that extra."""
    required = map(Requirement, metadata.requires("dks") or ())
    here = {"extra": extra}
    return [each for each in required if each.marker is None or each.marker.evaluate(here)]


def _problem(requirement: Requirement) -> str:
    """What is wrong with it; empty if nothing."""
    version = _version(requirement.name)
    if version and requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version or 'missing'} (needs {requirement.specifier})"


def _version(name: str) -> str:
    """That is installed; empty if none is."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _few(items: Sequence[str]) -> str:
    more = len(items) - NAMED
    return ", ".join(items[:NAMED]) + (f" and {more} more" if more > 0 else "")
