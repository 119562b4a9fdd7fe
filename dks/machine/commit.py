"""The code by its git commit, what of it was not committed, and whether another copy of it is
meant.

A wheel has no repository: `hatch_build.py` writes the commit into it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

from dks.config.secrets import without_password

DIFF_LIMIT = 2**20  # bytes
# Where new files belong to the code before they are added to the repository.
OURS = ("conf", "dks", "hydra_plugins", "sweeps")

_PACKAGE = Path(__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the code, with "-dirty" where files differ from it or are new.

    None where it is not known.
    """
    if _built().exists():
        return _built().read_text(encoding="utf-8").strip()
    if (root := _repository()) is None:
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no") or _new_files()
        return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.SubprocessError):
        return None


def code_diff(extensions: Mapping[str, Path]) -> str | None:
    """What the code has and its commit has not, as `git diff` shows it.

    Changes, new files, and the files of extensions that belong to no installed package; without
    passwords, and cut at DIFF_LIMIT. None: there is nothing.

    Args:
        extensions: their modules by the names under which they are shown, unless they lie in the
            same repository.
    """
    diff = _changes(tuple(sorted(extensions.items())))
    if not diff:
        return None
    diff = without_password(diff)  # before it is cut, which could leave half of one
    content = diff.encode()
    if len(content) <= DIFF_LIMIT:
        return diff
    return (
        f"{content[:DIFF_LIMIT].decode(errors='ignore')}\n# cut here: the whole diff has "
        f"{len(content):,} bytes\n"
    )


@lru_cache(maxsize=8)
def _changes(extensions: tuple[tuple[str, Path], ...]) -> str:
    root, diff, new = _repository(), "", dict[str, Path]()
    try:
        if root is not None:
            diff = _git(root, "diff", "--no-ext-diff", "--no-color", "--no-relative", "HEAD")
            new = {name: root / name for name in _new_files()}
        for name, path in extensions:
            inside = root if root is not None and path.resolve().is_relative_to(root) else None
            if inside is not None and _git(inside, "ls-files", "--", str(path.resolve())):
                continue
            if not {"site-packages", "dist-packages"} & set(path.parts):
                new[name if inside is None else path.resolve().relative_to(inside).as_posix()] = (
                    path
                )
        return diff + "".join(
            _as_new(name, path) for name, path in sorted(new.items()) if path.is_file()
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def _as_new(name: str, path: Path) -> str:
    """A file as `git diff` shows one that was not there before."""
    content = path.read_bytes()
    if b"\0" in content or len(content) > DIFF_LIMIT or any(char in name for char in '"\\\n\t'):
        return f"# left out: {name!a} of {len(content):,} bytes\n"
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    lines = content.decode(errors="replace").split("\n")
    whole = lines.pop() if lines[-1] == "" else None
    if not lines:
        return head
    body = "".join(f"+{line}\n" for line in lines) + (
        "\\ No newline at end of file\n" if whole is None else ""
    )
    return f"{head}--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n{body}"


def _built() -> Path:
    """What a wheel has instead of a repository."""
    return _PACKAGE / "share" / "commit.txt"


def _repository() -> Path | None:
    """The repository of the code.

    An installed package may lie inside somebody else's, which says nothing about this code.
    """
    try:
        if _built().exists() or not _git(_PACKAGE, "ls-files", "--", "__init__.py"):
            return None
        return Path(_git(_PACKAGE, "rev-parse", "--show-toplevel").strip())
    except (OSError, subprocess.SubprocessError):
        return None


def _new_files() -> list[str]:
    """Those of the code that its repository does not know and is not told to ignore."""
    found = _git(
        _PACKAGE.parent,
        "ls-files",
        "-z",
        "--others",
        "--exclude-standard",
        "--full-name",
        "--",
        *OURS,
    )
    return [name for name in found.split("\0") if name]


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return done.stdout.decode(errors="replace")


def other_copies(here: Path) -> Iterator[str]:
    """A line where another copy of the code may be meant than the one that runs.

    Args:
        here: the current folder.
    """
    runs, advice = _PACKAGE.parent, "pip install -e . in the one that is meant"
    if (
        (here / "dks" / "__init__.py").exists()
        and (here / "train.py").exists()
        and here.resolve() != runs
    ):
        yield (
            f"the code that runs is that of {runs}, not that of this folder, which is another "
            f"copy; {advice}"
        )
    elif (installed := _installed_beside(runs)) not in (None, runs):
        yield (
            f"the code that runs is that of {runs}, while the command dks runs that of "
            f"{installed}; {advice}"
        )


def _installed_beside(script_folder: Path) -> Path | None:
    """Where the package would be imported from if the script's folder had none."""
    if sys.flags.safe_path or Path(sys.path[0]).resolve() != script_folder:
        return None
    spec = PathFinder.find_spec("dks", sys.path[1:])
    return (
        None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent.parent
    )
