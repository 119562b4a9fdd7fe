"""The folders that are written to.

Free space, whether writing, renaming and locking work there, and how long a disk takes.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock

from dks.config.errors import one_line
from dks.tools.doctor.check import Finding, green, red, yellow

NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|lustre|gpfs|beegfs|ceph|glusterfs|afs|orangefs|panfs|9p|wekafs"
    r"|fuse\.(sshfs|glusterfs|ceph|beegfs|juicefs|s3fs|gcsfuse)"
)
MIB, GIB = 2**20, 2**30
# Free space and inodes below which there is a warning, and below which the next run will not fit.
SPACE, LEAST_SPACE = 2 * GIB, 200 * MIB
INODES, LEAST_INODES = 10_000, 200
SLOW = 0.1  # seconds for bringing a small file to disk; a run does it several times an epoch
PATIENCE = 20  # seconds for the process that tries the lock
_TRY_LOCK = """
import sys
from filelock import FileLock, Timeout
try:
    with FileLock(sys.argv[1]).acquire(blocking=False):
        print("free")
except Timeout:
    print("held")
"""
# Check -> what chooses another place.
KEYS = {
    "runs": "runs_dir=FOLDER",
    "results": "results_dir=FOLDER",
    "store": "tracking.uri=sqlite:////FOLDER/mlflow.db",
    "cache": "XDG_CACHE_HOME=FOLDER",
    "temporary": "TMPDIR=FOLDER",
}


def folder(name: str, path: Path, store: bool = False, needed: bool = True) -> Iterator[Finding]:
    """One folder. It is not made where it is not there: what it will be made in is tried.

    Args:
        name: one of `KEYS`.
        store: an SQLite store of MLflow lies there.
        needed: without it runs fail.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    shown = str(place) if path.exists() else f"{path} (not there yet)"
    bad, elsewhere = red if needed else yellow, f"or choose another place: {KEYS[name]}"
    try:
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is not a folder")
        latency = _try_out(place)
        free, counts = shutil.disk_usage(place).free, os.statvfs(place)
    except OSError as error:
        text = f"{shown} cannot be written: {error.strerror or error}"
        yield bad(name, text, f"get the right to write there; {elsewhere}")
        return
    kind = filesystem(place)
    text = (
        f"{shown}: {free / GIB:,.1f} GiB free, {kind or 'unknown file system'}, "
        f"{1000 * latency:,.1f} ms to disk"
    )
    # some file systems do not count files
    inodes = counts.f_favail if counts.f_files else INODES
    room = text if inodes >= INODES else f"{text}, {inodes:,} more files"
    if free < LEAST_SPACE or inodes < LEAST_INODES:
        yield bad(name, room, f"make room; {elsewhere}")
    elif free < SPACE or inodes < INODES:
        yield yellow(name, room, f"make room; {elsewhere}")
    elif latency > SLOW:
        yield yellow(name, text, f"every epoch waits for this disk; {elsewhere}")
    elif store and NETWORK.fullmatch(kind):
        yield yellow(
            name,
            f"{text}; SQLite is not safe on a network file system",
            "tracking=server tracking.uri=http://..., or "
            "tracking.uri=sqlite:////FOLDER/ON/A/LOCAL/DISK/mlflow.db",
        )
    else:
        yield green(name, text)
    if needed and (problem := _lock_problem(place)):
        advice = "mount it with locks (NFS: without nolock; Lustre: with -o flock)"
        text = f"file locks do not work there ({kind or 'unknown file system'}): {problem}"
        yield red(name, text, f"{advice}; {elsewhere}")


def filesystem(path: Path) -> str:
    """The type of the file system that holds a path: ext4, nfs4, ....

    Empty where it cannot be told.
    """
    mounts = [(Path(each.mountpoint), each.fstype) for each in psutil.disk_partitions(all=True)]
    over = [(point, kind) for point, kind in mounts if point == path or point in path.parents]
    # of several on one folder, the last mounted lies on top
    return str(max(reversed(over), key=lambda each: len(each[0].parts), default=("", ""))[1])


def _try_out(place: Path) -> float:
    """Write, bring to disk and rename as records are written.

    The median of the seconds it takes.
    """
    took = []
    with tempfile.TemporaryDirectory(prefix=".dks-doctor-", dir=place) as own:
        draft, target = Path(own, "draft"), Path(own, "record.json")
        for number in range(5):
            began = time.perf_counter()
            with draft.open("w", encoding="ascii") as file:
                file.write(f"{number}\n" * 500)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
            took.append(time.perf_counter() - began)
            if target.read_text(encoding="ascii") != f"{number}\n" * 500:
                raise OSError(f"{target} does not hold what was written")
    return statistics.median(took)


def _lock_problem(place: Path) -> str:
    """Another process must see the lock that this one holds: by it one process only runs a cell.

    Empty if it does.
    """
    with tempfile.TemporaryDirectory(prefix=".dks-doctor-", dir=place) as own:
        lock = Path(own, "lock")

        def other() -> str:
            command = [sys.executable, "-c", _TRY_LOCK, str(lock)]
            tried = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            return tried.stdout.strip() or one_line(tried.stderr) or "no answer"

        try:
            with FileLock(lock).acquire(timeout=PATIENCE):
                held = other()
            free = other()
        except (OSError, subprocess.TimeoutExpired) as error:
            return one_line(str(error))
    if held == "free":
        return "two processes would run the same cell"
    return "" if (held, free) == ("held", "free") else f"{held}, {free}"
