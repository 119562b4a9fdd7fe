"""The registry of components: backbones, branch designs, matching strategies and data sources.

Components of this package are modules of a folder, found by their text (`own_modules`). Others come
from installed packages, by entry points KIND.NAME, and from the files that an environment variable
names, as `path` or `KIND.NAME=path`. All names are known without an import, and only what a
configuration asks for is imported, so a broken extension disturbs nobody else.
`dks/extend.py` has the decorators that authors call.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from dks.config.errors import RequestError
from dks.config.folders import PACKAGE, declarations
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
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_ANY_KIND = "|".join(KINDS)
# An entry of the variable that says what is in its file.
_ENTRY = re.compile(rf"(?:({_ANY_KIND})\.({NAME.pattern})=)?(.+)", re.DOTALL)
# A decorator of `dks.extend` in the text of a file, or its call, and the name that it begins with.
_DECORATOR = re.compile(
    rf"""^(?:[^#\n]*?(?:@(?:\w+\.)*|\bextend\.)|(?=\w+\(\s*["']))({_ANY_KIND})\("""
    rf"""(?:\s*(["'])({NAME.pattern})\2\s*[,)])?""",
    re.MULTILINE,
)


def own_modules(folder: str, marker: str) -> dict[str, str]:
    """Name -> module of the modules in a folder of this package whose text has a line that begins
    with `marker`; none is imported.
    """
    return {
        path.stem: f"{PACKAGE.name}.{folder}.{path.stem}"
        for path in sorted((PACKAGE / folder).glob("*.py"))
        if f"\n{marker}" in path.read_text()
    }


# --- what is offered, none of it imported


@dataclass(frozen=True)
class Origin:
    """An installed package or a file that has extensions."""

    package: str | None = None
    version: str | None = None  # of the package
    file: Path | None = None
    folder: Path | None = None  # that was named, with this file in it
    conf: Path | None = None  # of the package or the folder: Hydra's config files

    def __str__(self) -> str:
        package = f"the package {self.package} {self.version}"
        return package if self.package else f"the file {self.file}"

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

    def folders(self) -> dict[Path, str]:
        """The `conf/` of extensions, and who has each."""
        return {origin.conf: origin.owner for origin in self.origins if origin.conf}

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


def origins_named(value: str) -> list[str]:
    """The entries of a value of the variable, with absolute paths."""
    return [
        f"{kind}.{name}={path}" if kind else str(path)
        for kind, name, path in _entries(value, Path.cwd())
    ]


def _entries(value: str, folder: Path) -> list[tuple[str, str, Path]]:
    """Kind, name ("" where the file says them) and absolute path of each entry."""
    found = [_ENTRY.fullmatch(part) for part in value.split(os.pathsep)]
    return [
        (each[1] or "", each[2] or "", (folder / Path(each[3]).expanduser()).resolve())
        for each in found
        if each
    ]


@lru_cache(maxsize=8)
def _catalogue(value: str, folder: str) -> Catalogue:
    found = Catalogue()
    for offer in (*_of_packages(found), *_of_files(found, _entries(value, Path(folder)))):
        found.offers.setdefault((offer.kind, offer.name), []).append(offer)
    for (kind, name), offers in found.offers.items():
        found.choices[kind, name] = list(dict.fromkeys(offer.origin.owner for offer in offers))
    for conf, owner in found.folders().items():
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


def _of_files(found: Catalogue, entries: list[tuple[str, str, Path]]) -> Iterator[Offer]:
    for kind, name, path in dict.fromkeys(entries):
        if not path.exists():
            found.problems.append(f"{VARIABLE}: there is no {path}")
            continue
        folder = path if path.is_dir() else None
        conf = path / "conf" if (path / "conf").is_dir() else None
        for file in sorted(path.glob("[!_]*.py")) if folder else [path]:
            origin = Origin(file=file, folder=folder, conf=conf)
            found.origins.append(origin)
            yield from [Offer(kind, name, origin)] if kind else _of_text(found, origin)


def _of_text(found: Catalogue, origin: Origin) -> Iterator[Offer]:
    """What a file registers, each by a decorator of `dks.extend` with its name written out."""
    assert origin.file is not None
    try:
        text = read_text(origin.file)
        compile(text, origin.file.name, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        found.problems.append(f"{origin} cannot be read: {' '.join(str(error).split())}")
        return
    for call in _DECORATOR.finditer(text):
        kind, _, name = call.groups()
        if name is not None:
            yield Offer(kind, name, origin)
            continue
        line = text.count("\n", 0, call.start(1)) + 1
        found.problems.append(
            f"{origin}: line {line}: the first argument of {kind} must be a name in quotes"
        )


def twins(choice: str, owners: Sequence[str]) -> RequestError:
    """A choice is there in all these places."""
    places = f"{', '.join(owners[:-1])} and {owners[-1]}"
    return RequestError(
        f"{choice} is there more than once, in {places}; rename or remove all but one"
    )


# --- what is loaded

_registered: list[Component] = []


@dataclass(frozen=True)
class Component:
    """What its author has registered."""

    kind: str
    name: str
    version: str | None  # None: the package's, or the content of the file
    module: str  # in which that was done
    options: Mapping[str, Any]  # and their defaults
    # a `Family`, Place -> module, (classifiers, options) -> pairs, or a data source
    value: Any
    # what a file of the group `kind` would hold, for the choice of the same name
    choice: Callable[[], dict[str, Any]]

    def filled_in(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those that are not given with their defaults.

        Raises:
            RequestError: one is unknown, or of another type than its default.
        """
        where = f"{KINDS[self.kind].partition('.')[0]}.options"
        found = dict(self.options)
        for name, value in given.items():
            if name not in found:
                known = ", ".join(found) or "none"
                raise RequestError(
                    f"{where}.{name}: {self.kind} {self.name} has no such option; it has {known}"
                )
            default = found[name]
            if isinstance(default, float) and type(value) is int:
                value = float(value)
            if default is not None and type(value) is not type(default):
                raise RequestError(
                    f"{where}.{name}={value}: it must be of type {type(default).__name__}, as "
                    f"{default} is"
                )
            found[name] = value
        return found


@dataclass(frozen=True)
class Extension:
    """An extension that is loaded."""

    offer: Offer
    component: Component
    version: str

    @property
    def reference(self) -> str:
        """What a resolved configuration calls it: NAME@VERSION."""
        return f"{self.offer.name}@{self.version}"

    def described(self) -> dict[str, str]:
        """For a record: what it is and where it came from."""
        origin = self.offer.origin
        found = {"kind": self.offer.kind, "name": self.offer.name, "version": self.version}
        if origin.file is not None:
            return {**found, "file": str(origin.file), "sha256": str(origin.sha256)}
        return {**found, "package": str(origin.package), "package_version": str(origin.version)}


def register(component: Component) -> None:
    """Called while the module of an extension is imported.

    Raises:
        RequestError: its name or version has characters that a configuration could not hold.
    """
    if not NAME.fullmatch(component.name):
        raise RequestError(
            f"{component.kind} {component.name!r}: a name is of letters, digits and underscores"
        )
    if component.version is not None and not _VERSION.fullmatch(component.version):
        raise RequestError(
            f"{component.kind} {component.name}: version={component.version!r} must be such as 1 "
            f"or 2.1"
        )
    _registered.append(component)


def is_offered(kind: str, reference: str) -> bool:
    return (kind, reference.partition("@")[0]) in catalogue().offers


def refuse_own(kind: str, name: str) -> None:
    """Raises a RequestError if an extension has taken a name of our own."""
    if offers := catalogue().offers.get((kind, name)):
        raise twins(f"{KINDS[kind]}={name}", [OURS, *(str(offer.origin) for offer in offers)])


def find(kind: str, reference: str, ours: Iterable[str] = ()) -> Extension:
    """The extension of that kind, loaded.

    Args:
        reference: its name, or NAME@VERSION if no other version will do.
        ours: the names of that kind that are not extensions, for the message.

    Raises:
        RequestError: there is none, there are two, it cannot be imported, or it is of another
            version.
    """
    name, _, wanted = reference.partition("@")
    offers = catalogue().offers.get((kind, name), [])
    key = KINDS[kind]
    if not offers and wanted:
        raise RequestError(
            f"{key}={name} is an extension, wanted in version {wanted}, and is not here; install "
            f"the package that has it, "
            f"or name its file in {VARIABLE}{_unlisted()}"
        )
    if not offers:
        known = sorted({*ours, *(other for found, other in catalogue().offers if found == kind)})
        noun = key.rpartition(".")[2]
        raise RequestError(
            f"{key}={name}: no such {noun}; choose from {', '.join(known)}{_unlisted()}"
        )
    if len(offers) > 1:
        raise twins(f"{key}={name}", [str(offer.origin) for offer in offers])
    extension = _load(offers[0])
    if wanted and wanted != extension.version:
        raise RequestError(
            f"{key}={name} is wanted in version {wanted}, and {offers[0].origin} has version "
            f"{extension.version}; install the "
            "one that is wanted, or begin anew with the one that is here, which makes other cells"
        )
    return extension


def tried() -> Iterator[tuple[str, str, Extension | RequestError]]:
    """Kind and name of everything that is offered, sorted, loaded or with why it cannot be."""
    for kind, name in sorted(catalogue().offers):
        found: Extension | RequestError
        try:
            catalogue().refuse_twins(kind, name)
            found = find(kind, name)
        except RequestError as error:
            found = error
        yield kind, name, found


def _unlisted() -> str:
    """Files and entry points that could not be listed; one may have the missing name."""
    return "".join(f" ({problem})" for problem in catalogue().problems)


@lru_cache(maxsize=64)
def _load(offer: Offer) -> Extension:
    origin = offer.origin
    try:
        content = origin.sha256 and origin.sha256[:12]  # of what is about to be imported
        module = (
            _import_file(origin.file)
            if origin.file is not None
            else import_module(str(offer.module))
        )
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, RequestError) else f"{type(error).__name__}: {error}"
        raise RequestError(
            f"{offer}: {origin} cannot be imported: {' '.join(said.split())}{_place_of(error)}"
        ) from error
    top = module.__name__.partition(".")[0]
    own = [each for each in _registered if each.module.partition(".")[0] == top]
    for component in reversed(own):
        if (component.kind, component.name) == (offer.kind, offer.name):
            return Extension(offer, component, str(component.version or content or origin.version))
    known = ", ".join(f"{each.kind} {each.name}" for each in own) or "nothing"
    raise RequestError(
        f"{offer}: {origin}, module {module.__name__}, registers no such {offer.kind}; it "
        f"registers {known}"
    )


def _place_of(error: BaseException) -> str:
    """The last line outside of this package and of Python's import system that led to an error."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_absolute() and PACKAGE not in Path(frame.filename).parents
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _import_file(path: Path) -> ModuleType:
    """A file as a module, which is imported once in a process."""
    name = f"dks_extension_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
