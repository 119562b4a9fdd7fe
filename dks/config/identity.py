"""The identity of a cell: what makes two runs the same experiment.

`cell_id` is the first 12 hex digits of the SHA-256 of a configuration's canonical JSON: the whole resolved configuration less
the keys that cannot change a result, plus a schema version. Nothing here reads a file, a clock or the environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from enum import Enum
from typing import Any

from dks.config.schema import Config

# Raise it when the same configuration starts to compute something else: old results are then never taken for new ones.
SCHEMA_VERSION = 1

# Keys that cannot change a result. `device` and `threads` change its last bits and are recorded with every run instead;
# what files under `data.root` hold is in `data.fingerprint`.
EXECUTION_ONLY = frozenset(
    {
        "backbone.activation_checkpointing",
        "data.download",
        "data.name",
        "data.root",
        "data.workers",
        "device",
        "eval_batch_size",
        "kd_teacher.path",
        "results_dir",
        "runs_dir",
        "sweep",
        "threads",
        "tracking",
    }
)


def cell_id(config: Config) -> str:
    """12 hex digits that name the cell of a resolved configuration."""
    return _digest(_identity(config))


def config_id(config: Config) -> str:
    """As `cell_id`, the same for every seed: what repetitions of one experiment share."""
    return _digest(_without(_identity(config), frozenset({"seed"})))


def canonical_json(value: Any) -> str:
    """JSON in one spelling: sorted keys, no spaces, a whole number always as an integer (1.0 and 1 are the same).

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _identity(config: Config) -> dict[str, Any]:
    whole = _without(dataclasses.asdict(config), EXECUTION_ONLY)
    whole["schema_version"] = SCHEMA_VERSION
    return whole


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def _without(tree: dict[str, Any], dropped: frozenset[str], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path not in dropped:
            kept[key] = _without(value, dropped, f"{path}.") if isinstance(value, dict) else value
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
