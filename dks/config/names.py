"""Short names of groups and the long ones they stand for."""

from __future__ import annotations

import re

# Short name -> the group it stands for.
SHORT_NAMES = {
    "aux": "aux_design",
    "noise": "label_noise",
    "positions": "aux_positions",
    "strategy": "matching_strategy",
    "teacher": "kd_teacher",
}
# Groups that a method preset sets.
METHOD_GROUPS = ("aux_design", "matching_strategy", "kd_teacher")


def is_sweep_name(name: str) -> bool:
    """Can a sweep have it? It names a folder, and stands in commands."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", name) is not None


def is_cell_id(name: str) -> bool:
    """Can a cell have it? It names a folder, so it must not lead out of the one that it is in."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is not None


def long_name(key: str) -> str:
    """The key that is meant, however it is spelled.

    `aux`, `~aux` and `++aux_design` are `aux_design`.
    """
    bare = key.lstrip("+~")
    return SHORT_NAMES.get(bare, bare)
