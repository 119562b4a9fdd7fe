"""Writes the git commit into what is built, for there it cannot be asked for any more."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):
    """`dks/share/commit.txt`, unless there is no repository.

    An unpacked source distribution has the file already.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by Hatchling; an editable installation goes on asking its repository."""
        commit = None if version == "editable" else _commit(Path(self.root))
        if commit is not None:
            with NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
                file.write(f"{commit}\n")
            self._file = Path(file.name)
            build_data["force_include"][file.name] = "dks/share/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by Hatchling."""
        if hasattr(self, "_file"):
            self._file.unlink()


def _commit(root: Path) -> str | None:
    """As `dks.machine.commit` has it, which needs the package to be installed."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=True, text=True
        ).stdout.strip()

    try:
        if not git("ls-files", "--", "pyproject.toml"):  # somebody else's repository
            return None
        new = git(
            "ls-files",
            "--others",
            "--exclude-standard",
            "--",
            "conf",
            "dks",
            "hydra_plugins",
            "sweeps",
        )
        changed = git("status", "--porcelain", "--untracked-files=no") or new
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
