"""The code that the numbers of a run depend on, as a hash of its syntax trees.

Docstrings, comments and formatting do not matter, nor does the version of Python: what a newer one
adds to a tree is empty in code that an older one reads. `dks/machine/commit.py` tells the same code
by its git commit and what was not committed.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

from dks.config.registry import catalogue

# All that computes: packages, with every module in them, and modules. What describes, checks,
#     records or shows is not here.
SOURCES = ("data", "extend.py", "machine/world.py", "models", "objectives", "training")
# Groups of codes that were proven to compute the same to the last bit; the file says how.
EQUAL = Path(__file__).with_name("equal_code.txt")
SHORT = 12  # hex digits that are shown
UNKNOWN = "unknown"  # how the code of runs is called that do not tell it

_PACKAGE = Path(__file__).resolve().parent.parent
# of a tree: what its place, its spelling or a comment says
_UNSEEN = frozenset({"ctx", "kind", "type_comment"})


def current(extensions: Collection[tuple[str, str]] = ()) -> str:
    """64 hex digits for the code that is here, the same in a process whatever happens to the files
    meanwhile.

    Args:
        extensions: kind and name of each that a run uses; theirs follow behind a "+".
    """
    if not extensions:
        return _own()
    listed = catalogue().offers
    missing = [(f"{kind} {name}", None) for kind, name in extensions if (kind, name) not in listed]
    return f"{_own()}+{_digest((*sorted(extension_files(extensions).items()), *missing))}"


def canonical(code: str | None) -> str:
    """The first of all codes that compute the same as this one; None: a run does not tell it."""
    return (
        UNKNOWN if code is None else "+".join(_equal().get(part, part) for part in code.split("+"))
    )


def short(code: str | None) -> str:
    """As a person reads it."""
    return UNKNOWN if code is None else "+".join(part[:SHORT] for part in code.split("+"))


def extension_files(extensions: Iterable[tuple[str, str]]) -> dict[str, Path]:
    """The modules of these extensions, by where they lie in their package, or beside the file that
    was named.
    """
    found: dict[str, Path] = {}
    for key in extensions:
        for offer in catalogue().offers.get(key, []):
            found |= (
                _of_package(str(offer.module))
                if offer.origin.file is None
                else _beside(offer.origin.file)
            )
    return found


@lru_cache(maxsize=1)
def _own() -> str:
    places = [_PACKAGE / name for name in SOURCES]
    paths = [path for place in places for path in ([place] if place.suffix else _modules(place))]
    return _digest(tuple(sorted((path.relative_to(_PACKAGE).as_posix(), path) for path in paths)))


def _modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@lru_cache(maxsize=64)
def _of_package(module: str) -> dict[str, Path]:
    """All modules of the package that this one belongs to."""
    import importlib.util

    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:
        return {}
    if spec.submodule_search_locations is None:
        return {Path(spec.origin).name: Path(spec.origin)}
    folders = [Path(each) for each in spec.submodule_search_locations]
    return {
        path.relative_to(folder.parent).as_posix(): path
        for folder in folders
        for path in _modules(folder)
    }


@lru_cache(maxsize=64)
def _beside(file: Path) -> dict[str, Path]:
    """A file, and the modules beside it that it imports, and those that they import."""
    folder, waiting, found = file.parent, [file], dict[str, Path]()
    while waiting:
        path = waiting.pop()
        found[path.relative_to(folder).as_posix()] = path
        for name in _imported(path) - {_PACKAGE.name}:
            near = [folder / f"{name}.py", *_modules(folder / name)]
            waiting += [
                each
                for each in near
                if each.is_file() and each.relative_to(folder).as_posix() not in found
            ]
    return found


def _imported(path: Path) -> set[str]:
    """The packages and modules that a module imports, by their first names."""
    tree = _tree(path)
    names = (
        [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        if tree
        else []
    )
    names += (
        [
            each.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for each in node.names
        ]
        if tree
        else []
    )
    return {name.partition(".")[0] for name in names if name}


@lru_cache(maxsize=64)
def _digest(modules: tuple[tuple[str, Path | None], ...]) -> str:
    """Of modules, each with its name; None: one that is missing."""
    digest = hashlib.sha256()
    for name, path in modules:
        tree = path and _tree(path)
        said = _text(tree).encode() if tree else path.read_bytes() if path else b""
        digest.update(f"{name}\0{hashlib.sha256(said).hexdigest()}\n".encode())
    return digest.hexdigest()


def _tree(path: Path) -> ast.Module | None:
    """None where it is no Python, such as a draft that nobody imports."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return None


def _text(tree: ast.AST) -> str:
    """A tree as text; in ASCII, for what is printed of others depends on the version of Python."""
    parts: list[str] = []

    def write(value: object) -> None:
        if not isinstance(value, ast.AST):
            parts.append(f"{value!a},")
            return
        parts.append(f"{type(value).__name__}(")
        for name in value._fields:
            held = getattr(value, name, None)
            kept = (
                [each for each in held if not _says_nothing(each, value)]
                if isinstance(held, list)
                else held
            )
            if kept is not None and kept != [] and name not in _UNSEEN:
                parts.append(f"{name}=")
                for each in kept if isinstance(kept, list) else (kept,):
                    write(each)
        parts.append(")")

    write(tree)
    return "".join(parts)


def _says_nothing(part: object, parent: ast.AST) -> bool:
    """Is it a text that stands for itself, as docstrings do, or an empty one in an f-string, where
    some versions put them?
    """
    if isinstance(part, ast.Constant):
        return part.value == "" and isinstance(parent, ast.JoinedStr)
    return (
        isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    )


@lru_cache(maxsize=1)
def _equal() -> dict[str, str]:
    """Code -> the first of its group."""
    lines = EQUAL.read_text(encoding="utf-8").splitlines()
    groups = [line.partition("#")[0].split() for line in lines]
    return {code: group[0] for group in groups for code in group}
