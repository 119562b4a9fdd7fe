"""Extensions that are asked for.

Registered by their authors, loaded, and told apart by their versions.

Only what a configuration asks for is imported, so that a broken extension disturbs nobody else.
`dks/config/catalogue.py` lists what there is; `dks/extend.py` is what authors call.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dks.config.catalogue import KINDS, NAME, OURS, VARIABLE, Catalogue, Offer, catalogue, twins
from dks.config.errors import RequestError
from dks.config.names import SHORT_NAMES
from dks.config.schema import Config

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_registered: list[Component] = []


@dataclass(frozen=True)
class Component:
    """What its author has registered."""

    kind: str
    name: str
    version: str | None  # None: the package's, or the content of the file
    module: str  # in which that was done
    options: Mapping[str, Any]  # and their defaults
    # backbone: a `Family`; aux_design: Place -> module; matching_strategy: see `extend.py`; data: a
    #     source
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
            f"or name its file in {VARIABLE}{_seen()}"
        )
    if not offers:
        known = sorted({*ours, *(other for found, other in catalogue().offers if found == kind)})
        noun = key.rpartition(".")[2]
        raise RequestError(f"{key}={name}: no such {noun}; choose from {', '.join(known)}{_seen()}")
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
    """Kind and name of everything that is offered, sorted, and what it is when loaded or why it
    cannot be used.
    """
    listed = catalogue()
    for kind, name in sorted(listed.offers):
        try:
            extension = find(kind, name)
            listed.refuse_twins(kind, name)
        except RequestError as error:
            yield kind, name, error
        else:
            yield kind, name, extension


def _seen() -> str:
    """What could not be listed, for it may be what is missed."""
    return "".join(f" ({problem})" for problem in catalogue().problems)


@lru_cache(maxsize=64)
def _load(offer: Offer) -> Extension:
    origin = offer.origin
    content = None if origin.sha256 is None else origin.sha256[:12]  # before it is imported
    try:
        module = (
            _import_file(origin.file)
            if origin.file is not None
            else import_module(str(offer.module))
        )
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, RequestError) else f"{type(error).__name__}: {error}"
        raise RequestError(
            f"{offer}: {origin} cannot be imported: {' '.join(said.split())}"
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


def generated(group: str, name: str) -> dict[str, Any] | None:
    """The content of a choice that no file holds: of an extension without one, or its short name.

    None: there is none.
    """
    if name not in _generated(catalogue(), group):
        return None
    if (long := SHORT_NAMES.get(group)) is not None:
        return {"defaults": [{f"override /{long}": name}]}
    return find(group, name).component.choice()


def generated_names(group: str) -> list[str]:
    """The choices of a group that no file holds."""
    return sorted(_generated(catalogue(), group))


def _generated(found: Catalogue, group: str) -> set[str]:
    long = SHORT_NAMES.get(group, group)
    return {
        name
        for name in found.names(group)
        if (group, name) not in found.files and OURS not in found.choices.get((long, name), [])
    }


def used(config: Config) -> list[dict[str, str]]:
    """For a record: the extensions of a resolved configuration.

    Those that cannot be loaded are left out.
    """
    described = []
    for kind, reference in references(config):
        try:
            described.append(find(kind, reference).described())
        except RequestError:  # whoever needs it says so
            continue
    return described


def cited(recorded: Iterable[object]) -> list[dict[str, str]]:
    """What records say of the extensions of runs, each once, with the name of a file in place of
    its path on some machine.

    Args:
        recorded: as `Extension.described` has it; what is not is left out.
    """
    found: list[dict[str, str]] = []
    for each in recorded:
        if not isinstance(each, Mapping):
            continue
        one = {
            key: str(each[key])
            for key in ("kind", "name", "version", "package", "package_version", "sha256")
            if key in each
        }
        if "file" in each:
            one["file"] = re.split(r"[/\\]", str(each["file"]))[-1]
        if one and one not in found:
            found.append(one)
    return found


def references(config: Config) -> list[tuple[str, str]]:
    """(kind, NAME@VERSION) of every extension that a resolved configuration names."""
    found = []
    for kind, key in KINDS.items():
        part, name = key.split(".")
        reference = str(getattr(getattr(config, part), name))
        if "@" in reference:
            found.append((kind, reference))
    return found


def require(config: Config, recorded: Sequence[Mapping[str, str]]) -> list[Path]:
    """See that the extensions of a run are here, in its versions.

    Args:
        recorded: what the run's record says of them, the latest last.

    Returns:
        The files whose content is not what it was, though their versions are.

    Raises:
        RequestError: one is not here; the message says where the run had it from.
    """
    latest = {(each["kind"], f"{each['name']}@{each['version']}"): each for each in recorded}
    changed = []
    for kind, reference in references(config):
        known = latest.get((kind, reference))
        try:
            origin = find(kind, reference).offer.origin
        except RequestError as error:
            raise RequestError(
                *(line + (_hint(known) if known else "") for line in error.problems)
            ) from error
        if (
            known is not None
            and origin.file is not None
            and known.get("sha256", origin.sha256) != origin.sha256
        ):
            changed.append(origin.file)
    return changed


def _hint(recorded: Mapping[str, str]) -> str:
    if "file" in recorded:
        return (
            f"; the run had it from {VARIABLE}={recorded['file']} (sha256 "
            f"{recorded['sha256'][:12]})"
        )
    return (
        f"; the run had it from: pip install {recorded['package']}=={recorded['package_version']}"
    )
