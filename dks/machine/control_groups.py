"""What Linux control groups, those of a container or a scheduler, leave to this process of a
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

ROOT, GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

T = TypeVar("T", int, float)


def cpu_quota(root: Path = ROOT, groups: Path = GROUPS) -> float | None:
    """The cores' worth of time that they allow; None: no limit, or nothing is known."""
    return min(_of_all_groups("cpu", _quota_2, _quota_1, root, groups), default=None)


def free_memory(root: Path = ROOT, groups: Path = GROUPS) -> int | None:
    """Bytes that they still allow, counting what was only read from files as free.

    None: no limit, or nothing is known.
    """
    return min(_of_all_groups("memory", _memory_2, _memory_1, root, groups), default=None)


def _of_all_groups(
    controller: str,
    version2: Callable[[Path], T | None],
    version1: Callable[[Path], T | None],
    root: Path,
    groups: Path,
) -> list[T]:
    """What the group of this process and all groups around it say."""
    found: list[T] = []
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            found += _along(root, group, version2)
        elif controller in controllers.split(","):
            found += _along(root / controllers, group, version1) or _along(
                root / controller, group, version1
            )
    return found


def _along(root: Path, group: str, look: Callable[[Path], T | None]) -> list[T]:
    """Inside a container the group's own path may not be there."""
    folder: Path = root / group.strip("/")
    places = [
        place for place in (folder, *folder.parents) if place == root or root in place.parents
    ]
    return [value for place in places if (value := look(place)) is not None]


def _quota_2(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        most, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if most == "max" else int(most) / int(period)
    return None


def _quota_1(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        most, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii"))
            for name in ("quota", "period")
        )
        return most / period if most > 0 else None
    return None


def _memory_2(folder: Path) -> int | None:
    return _left(folder, "memory.max", "memory.current", "inactive_file")


def _memory_1(folder: Path) -> int | None:
    return _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, most: str, used: str, reclaimable: str) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no number
        limit, taken = (int((folder / name).read_text(encoding="ascii")) for name in (most, used))
        lines = (
            line.split()
            for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        )
        return max(
            0, limit - taken + sum(int(value) for name, value in lines if name == reclaimable)
        )
    return None
