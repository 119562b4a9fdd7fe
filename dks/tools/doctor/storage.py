"""The folders that are written to.

Free space, whether writing, renaming and locking work there, and how long a disk takes.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from dks.config.errors import one_line
from dks.tools.doctor.check import Finding, green, red, yellow

NETWORK = {
    *(
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "glusterfs",
        "afs",
        "orangefs",
        "panfs",
        "9p",
    ),
    *(
        "wekafs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.beegfs",
        "fuse.juicefs",
        "fuse.s3fs",
        "fuse.gcsfuse",
    ),
}
MIB, GIB = 2**20, 2**30
# Free space and inodes below which there is a warning, and below which the next run will not fit.
SPACE, LEAST_SPACE = 2 * GIB, 200 * MIB
INODES, LEAST_INODES = 10_000, 200
SLOW = 0.1  # seconds for bringing a small file to disk; a run does it several times an epoch
PATIENCE = 20  # seconds for the process that tries the lock
_TRY_LOCK = """
import sys
from filelock import FileLock, Timeout
for _ in sys.stdin:
    try:
        with FileLock(sys.argv[1]).acquire(blocking=False):
            print("free", flush=True)
    except Timeout:
        print("held", flush=True)
"""


def folder(name: str, path: Path, store: bool = False, needed: bool = True) -> Iterator[Finding]:
    """One folder. It is not made where it is not there: what it will be made in is tried.

    Args:
        store: an SQLite store of MLflow lies there.
        needed: without it runs fail.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    shown = (
        f"{path} (not there yet)"
        if place != path.absolute()
        else str(place if path == Path() else path)
    )
    bad = red if needed else yellow
    try:
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is not a folder")
        latency = _try_out(place)
        disk, counts = shutil.disk_usage(place), os.statvfs(place)
    except OSError as error:
        reason = error.strerror or str(error)
        yield bad(
            name,
            f"{shown} cannot be written: {reason}",
            _advice(name, "get the right to write there"),
        )
        return
    kind = filesystem(place)
    text = (
        f"{shown}: {disk.free / GIB:,.1f} GiB free, {kind or 'unknown file system'}, "
        f"{1000 * latency:,.1f} ms to disk"
    )
    inodes = counts.f_favail if counts.f_files else None  # some file systems do not count them
    if disk.free < LEAST_SPACE or (inodes is not None and inodes < LEAST_INODES):
        yield bad(name, text + _inodes(inodes), _advice(name, "make room"))
    elif disk.free < SPACE or (inodes is not None and inodes < INODES):
        yield yellow(name, text + _inodes(inodes), _advice(name, "make room"))
    elif latency > SLOW:
        yield yellow(name, text, _advice(name, "every epoch waits for this disk"))
    elif store and kind in NETWORK:
        yield yellow(
            name,
            f"{text}; SQLite is not safe on a network file system",
            "tracking=server tracking.uri=http://..., or "
            "tracking.uri=sqlite:////FOLDER/ON/A/LOCAL/DISK/mlflow.db",
        )
    else:
        yield green(name, text)
    if needed:
        yield from _lock(name, place, kind)


def filesystem(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds a path: ext4, nfs4, ....

    Empty where it cannot be told.
    """
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))  # a blank is \\040
        # of several, the last mounted lies on top
        if (point == path or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


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


def _lock(name: str, place: Path, kind: str) -> Iterator[Finding]:
    """Another process must see the lock that this one holds.

    By it a cell is run by one process only.
    """
    with tempfile.TemporaryDirectory(prefix=".dks-doctor-", dir=place) as own:
        lock = FileLock(Path(own, "lock"))
        command = [sys.executable, "-c", _TRY_LOCK, str(Path(own, "lock"))]
        try:
            with subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as other:
                assert other.stdin and other.stdout
                killer = threading.Timer(PATIENCE, other.kill)
                killer.daemon = True
                killer.start()
                with lock.acquire(timeout=PATIENCE):
                    other.stdin.write("\n")
                    other.stdin.flush()
                    held = other.stdout.readline().strip()
                other.stdin.write("\n")
                other.stdin.flush()
                free = other.stdout.readline().strip()
                other.stdin.close()
                killer.cancel()
        except OSError as error:
            held = free = one_line(error.strerror or str(error))
    if (held, free) != ("held", "free"):
        yield red(
            name,
            f"file locks do not work there ({kind or 'unknown file system'}): two processes "
            f"would run the same cell"
            if held == "free"
            else f"file locks do not work there: {held or 'no answer'}",
            _advice(name, "mount it with locks (NFS: without nolock; Lustre: with -o flock)"),
        )


def _inodes(free: int | None) -> str:
    return "" if free is None or free >= INODES else f", {free:,} more files"


def _advice(name: str, what: str) -> str:
    variable = {
        "runs": "runs_dir=FOLDER",
        "results": "results_dir=FOLDER",
        "cache": "XDG_CACHE_HOME=FOLDER",
        "temporary": "TMPDIR=FOLDER",
    }
    return (
        f"{what}; or choose another place: "
        f"{variable.get(name, 'tracking.uri=sqlite:////FOLDER/mlflow.db')}"
    )
