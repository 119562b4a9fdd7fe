"""In what a configuration differs from the paper's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from dks.config.identity import canonical, canonical_json, is_execution_only
from dks.config.schema import Config

_IMAGES = "data.fingerprint"  # none where it is the data that the source is called after


def differences(
    config: Config,
    choices: Mapping[str, str | None],
    reference: Config,
    reference_choices: Mapping[str, str | None],
) -> list[str]:
    """One line for each group with another choice, and for each key that differs within the same
    choice; in the order of the schema. The seed is left out, and how a configuration computes, for
    the paper does not say it; tables tell it of every cell.

    Args:
        choices: group -> name, of `config`; `reference_choices` those of `reference`.
    """
    lines = []
    ours, theirs = _leaves(config), _leaves(reference)
    recipe = dataclasses.replace(reference.recipe, epochs=config.recipe.epochs)
    # Milestones that lie beyond the last epoch are no difference of their own.
    as_long = _leaves(canonical(dataclasses.replace(reference, recipe=recipe))) | {
        "recipe.epochs": reference.recipe.epochs
    }
    left = [
        key
        for key in ours
        if key != "seed" and not key.startswith("compute.") and not is_execution_only(key)
    ]
    for key in left:
        if ours.get(key) in (theirs.get(key), as_long.get(key)):
            continue
        group = key.partition(".")[0]
        choice, other = choices.get(group), reference_choices.get(group)
        if choice is not None and other is not None and choice != other:
            lines.append(f"{group}={choice} (paper: {other})")
        else:
            other = f"all of {config.data.source}" if key == _IMAGES else _text(theirs[key])
            lines.append(f"{key}={_text(ours[key])} (paper: {other})")
    return list(dict.fromkeys(lines))


def _leaves(config: Config) -> dict[str, Any]:
    return dict(_flat(config, ""))


def _flat(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{key}.")
        elif key == "backbone.branches":
            # which of them there are follows from where branches are and what they are made of
            yield from (
                (f"{key}.{place}", branch) for place, branch in value.items() if branch.stages
            )
        else:
            yield key, value


def _text(value: Any) -> str:
    """A value as one writes it in an override."""
    if isinstance(value, Enum):
        return str(value.value)
    return value if isinstance(value, str) else canonical_json(value)
