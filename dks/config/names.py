"""Short names of groups and the long ones they stand for."""

from __future__ import annotations

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


def long_name(key: str) -> str:
    """The key that is meant, however it is spelled: `aux` and `++aux_design` are `aux_design`."""
    bare = key.lstrip("+")
    return SHORT_NAMES.get(bare, bare)
