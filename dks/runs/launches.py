"""A launch.

One command that set cells going, and what has to be known of it later, by whoever asks.

`results/<sweep>/launches/<id>/` holds `launch.json`, the file `lock` (held by the launching process
as long as it waits for its cells), a marker for every cell that failed for good, and the logs of
workers and jobs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import secrets
import socket
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from itertools import chain
from pathlib import Path

from filelock import FileLock

from dks.config.errors import RequestError, one_line, short
from dks.config.reading import read_text
from dks.runs.journal import now
from dks.runs.lock import is_held
from dks.runs.record import check_types, write_atomically

log = logging.getLogger(__name__)


@dataclass
class Array:
    """One SLURM job array."""

    tasks: list[list[str]]  # number of the task -> cell folders, run one after another
    job: str | None = None  # SLURM's id of the array, once it is known


@dataclass
class Launch:
    """The content of `launch.json`."""

    id: str
    sweep: str
    launcher: str  # the choice of hydra/launcher: local, slurm, basic, ...
    cells: list[str]  # cell folders, in the order they are begun
    host: str
    pid: int
    started: str  # UTC, ISO 8601
    git_commit: str | None = None  # of the code that planned it
    retries: int = 0  # how often a cell that fails is tried again
    # begin no further cell when so many have failed; None: never stop
    max_failures: int | None = None
    arrays: list[Array] = field(default_factory=list)  # SLURM only

    def jobs(self) -> dict[str, str]:
        """Cell folder -> SLURM's id of the task that runs it, such as "12_3", as far as ids are
        known.
        """
        return {
            # A task alone is submitted as a plain job.
            cell: f"{array.job}_{number}" if len(array.tasks) > 1 else array.job
            for array in self.arrays
            if array.job is not None
            for number, cells in enumerate(array.tasks)
            for cell in cells
        }


class LaunchFolder:
    """The folder of one launch."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.file = self.path / "launch.json"
        self.jobs_folder = self.path / "jobs"
        self._failures = self.path / "failed"

    @cached_property
    def lock(self) -> FileLock:
        """Made when it is needed, as that of `RunFolder`."""
        return FileLock(self.path / "lock")

    @classmethod
    def create(
        cls,
        results_dir: str,
        sweep: str,
        launcher: str,
        cells: list[Path],
        git_commit: str | None,
        retries: int = 0,
        max_failures: int | None = None,
    ) -> LaunchFolder:
        """A new launch by this process, on disk and locked."""
        name = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        folder = cls(Path(results_dir) / sweep / "launches" / name)
        folder.path.mkdir(parents=True)
        folder.lock.acquire()
        paths = [str(cell.absolute()) for cell in cells]
        launch = Launch(
            name,
            sweep,
            launcher,
            paths,
            socket.gethostname(),
            os.getpid(),
            now(),
            git_commit,
            retries,
            max_failures,
        )
        folder.write(launch)
        return folder

    def write(self, launch: Launch) -> None:
        write_atomically(self.file, json.dumps(dataclasses.asdict(launch), indent=1) + "\n")

    def read(self) -> Launch:
        """What was launched.

        Raises:
            RequestError: the file is missing or damaged, or of a newer version than this program
                knows.
        """
        try:
            values = json.loads(read_text(self.file))
            if not isinstance(values, dict):
                raise ValueError(f"it holds a {type(values).__name__}")
            if more := values.keys() - {each.name for each in dataclasses.fields(Launch)}:
                raise ValueError(
                    f"it says {short(', '.join(sorted(more)))}, which a newer version of this "
                    f"program may know"
                )
            arrays = [check_types(Array(**array)) for array in values.pop("arrays")]
            for array in arrays:
                # it becomes a word of scancel's command line
                if not re.fullmatch(r"[0-9]{1,20}", array.job or "0"):
                    raise ValueError(f"{short(array.job)} is no id of a job")
            if any(
                not isinstance(each, str)
                for cells in (values["cells"], *chain(*(a.tasks for a in arrays)))
                for each in cells
            ):
                raise ValueError("its cells are not all names of folders")
            return check_types(Launch(**values, arrays=arrays))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(str(error))
            raise RequestError(
                f"{self.file} cannot be read: {reason}; type the sweep's command again"
            ) from error

    def is_alive(self) -> bool:
        """Does the launching process still live and wait for its cells?"""
        return (self.path / "lock").exists() and is_held(FileLock(self.path / "lock"))

    def note_failure(self, cell_id: str) -> None:
        """A cell failed, and will not be tried again."""
        try:
            self._failures.mkdir(exist_ok=True)
            (self._failures / cell_id).touch()
        except OSError:  # the failure itself is what must be told
            log.warning(
                "the failure of cell %s could not be noted in %s",
                cell_id,
                self._failures,
                exc_info=True,
            )

    def should_stop(self) -> bool:
        """Have so many cells failed that no other one is to be begun?"""
        limit = self.read().max_failures
        return (
            limit is not None
            and self._failures.is_dir()
            and len(list(self._failures.iterdir())) >= limit
        )
