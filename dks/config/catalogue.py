"""What extensions there are.

Backbones, branch designs, matching strategies and data sets that are not in this package.

They come from installed packages, by entry points, and from the files that an environment variable
names. All of it is listed without importing any: an entry point says its kind and name, and a file
is read as text. `dks/config/extensions.py` loads what a configuration asks for.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.files import declarations
from dks.config.names import SHORT_NAMES
from dks.config.reading import read_bytes, read_text

ENTRY_POINTS = "dks.extensions"  # their names are KIND.NAME, for example backbone.pebble
VARIABLE = "DKS_EXTENSIONS"  # files, and folders of files with a `conf/` beside them
# Kind -> the key of a configuration that names one. The kinds are also groups of `conf/`.
KINDS = {
    "backbone": "backbone.family",
    "aux_design": "aux_design.kind",
    "matching_strategy": "matching_strategy.name",
    "data": "data.source",
}
OURS = "dks itself"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Origin:
    """An installed package or a file that has extensions."""

    package: str | None = None
    version: str | None = None  # of the package
    file: Path | None = None
    folder: Path | None = None  # that was named, with this file in it
    conf: Path | None = None  # of the package or the folder: Hydra's config files

    def __str__(self) -> str:
        return (
            f"the package {self.package} {self.version}"
            if self.package
            else f"the file {self.file}"
        )

    @property
    def owner(self) -> str:
        """Who has the config files that come with it."""
        return str(self) if self.folder is None else f"the folder {self.folder}"

    @cached_property
    def sha256(self) -> str | None:
        """Of the file's content; None for a package."""
        return None if self.file is None else hashlib.sha256(read_bytes(self.file)).hexdigest()


@dataclass(frozen=True)
class Offer:
    """An extension that exists, as far as that can be told without importing it."""

    kind: str
    name: str
    origin: Origin
    module: str | None = None  # of a package

    def __str__(self) -> str:
        return f"{KINDS[self.kind]}={self.name}"


@dataclass
class Catalogue:
    """All that is offered."""

    # (kind, name) -> more than one is a mistake
    offers: dict[tuple[str, str], list[Offer]] = field(default_factory=dict)
    origins: list[Origin] = field(default_factory=list)
    # (group, name) -> who has it; not ours alone
    choices: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    # (group, name) -> in a `conf/` of an extension
    files: dict[tuple[str, str], Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # what cannot even be listed, a line each

    def names(self, group: str) -> list[str]:
        """The choices that extensions add to a group, by its long or its short name."""
        long = SHORT_NAMES.get(group, group)
        return sorted({name for found, name in self.choices if found in (group, long)})

    def refuse_twins(self, group: str, name: str) -> None:
        """Raises a RequestError if this choice is there twice."""
        owners = self.choices.get((SHORT_NAMES.get(group, group), name), [])
        if len(owners) > 1:
            raise twins(f"{group}={name}", owners)


def catalogue() -> Catalogue:
    """What is offered here; looked up once in a process."""
    return _catalogue(os.environ.get(VARIABLE, ""), os.getcwd())  # noqa: PTH109 (asked for every cell of a plan)


def origins_named(value: str, folder: Path | None = None) -> list[Path]:
    """The files and folders that a value of the variable names, absolute."""
    return [
        ((folder or Path.cwd()) / Path(part).expanduser()).resolve()
        for part in value.split(os.pathsep)
        if part
    ]


@lru_cache(maxsize=8)
def _catalogue(value: str, folder: str) -> Catalogue:
    found = Catalogue()
    for offer in (*_of_packages(found), *_of_files(found, origins_named(value, Path(folder)))):
        found.offers.setdefault((offer.kind, offer.name), []).append(offer)
    for (kind, name), offers in found.offers.items():
        found.choices[kind, name] = list(dict.fromkeys(offer.origin.owner for offer in offers))
    for conf, owner in {
        origin.conf: origin.owner for origin in found.origins if origin.conf
    }.items():
        for path in sorted(conf.glob("*/*.yaml")):
            key = path.parent.name, path.stem
            owners = found.choices.setdefault(key, [])
            if owner not in owners:
                owners.append(owner)
            found.files.setdefault(key, path)
    ours = declarations("conf")
    for (group, name), owners in found.choices.items():
        if (ours / group / f"{name}.yaml").exists():
            owners.insert(0, OURS)
    return found


def _of_packages(found: Catalogue) -> Iterator[Offer]:
    origins: dict[str, Origin] = {}
    for point in entry_points(group=ENTRY_POINTS):
        assert point.dist is not None, "an entry point that was found in a distribution"
        package = point.dist.name
        if package not in origins:
            origins[package] = Origin(package, point.dist.version, conf=_conf_of(point.module))
            found.origins.append(origins[package])
        kind, _, name = point.name.partition(".")
        if kind not in KINDS or not NAME.fullmatch(name):
            found.problems.append(
                f"{origins[package]}: the entry point {point.name} must be KIND.NAME, with a "
                f"kind of {', '.join(KINDS)}"
            )
            continue
        yield Offer(kind, name, origins[package], point.module)


def _conf_of(module: str) -> Path | None:
    """The folder `conf` of the package that a module belongs to, which is not imported."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "conf").is_dir():
            return Path(folder) / "conf"
    return None


def _of_files(found: Catalogue, paths: list[Path]) -> Iterator[Offer]:
    for path in dict.fromkeys(paths):
        if not path.exists():
            found.problems.append(f"{VARIABLE}: there is no {path}")
            continue
        folder = path if path.is_dir() else None
        conf = path / "conf" if folder and (path / "conf").is_dir() else None
        for file in sorted(path.glob("[!_]*.py")) if folder else [path]:
            origin = Origin(file=file, folder=folder, conf=conf)
            found.origins.append(origin)
            try:
                tree = ast.parse(read_text(file))
            except (OSError, SyntaxError, ValueError) as error:
                found.problems.append(f"{origin} cannot be read: {' '.join(str(error).split())}")
                continue
            yield from _of_text(found, tree, origin)


def _of_text(found: Catalogue, tree: ast.Module, origin: Origin) -> Iterator[Offer]:
    """The extensions that a file registers, each by a call of one of `dks.extend`'s functions with
    its name written out.
    """
    direct, through = set[str](), set[str]()  # names of the functions, and of the module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dks.extend":
            direct |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "dks":
            through |= {
                alias.asname or alias.name for alias in node.names if alias.name == "extend"
            }
        elif isinstance(node, ast.Import):
            through |= {
                alias.asname or alias.name for alias in node.names if alias.name == "dks.extend"
            }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, _, kind = ast.unparse(node.func).rpartition(".")
        if kind not in KINDS or (called not in through if called else kind not in direct):
            continue
        given = node.args[0] if node.args else None
        if (
            isinstance(given, ast.Constant)
            and isinstance(given.value, str)
            and NAME.fullmatch(given.value)
        ):
            yield Offer(kind, given.value, origin)
        else:
            found.problems.append(
                f"{origin}: line {node.lineno}: the first argument of {kind} must be a name in "
                f"quotes"
            )


def twins(choice: str, owners: Sequence[str]) -> RequestError:
    """A choice is there in all these places."""
    places = f"{', '.join(owners[:-1])} and {owners[-1]}"
    return RequestError(
        f"{choice} is there more than once, in {places}; rename or remove all but one"
    )
