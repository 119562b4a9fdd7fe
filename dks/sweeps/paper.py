"""The paper's own numbers, from `analysis/paper/<table>.csv`, each with the setting that it is of,
and in what a configuration differs from one of the paper's.

A configuration is known to be the paper's by its id, never by the name of a sweep or of an axis:
the ids are in the files, so that a change to `conf/` makes other configurations, not other settings
of the paper's.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config.files import declarations
from dks.config.identity import canonical, canonical_json, config_id, is_execution_only
from dks.config.names import long_name
from dks.config.schema import Compute, Config
from dks.sweeps.points import plain
from dks.sweeps.spec import expand
from dks.training.resolver import Resolver

if TYPE_CHECKING:
    from dks.config.compose import Compose, Composed

# What the gains of a table are over, where that is not the baseline.
_OVER = {"table3": "ds", "table5": "alone"}


class Key(NamedTuple):
    """What a number is of.

    A configuration, as `setting_id` names it, and one of the classifiers of its network.
    """

    setting: str
    classifier: str = "c1"


@dataclass(frozen=True)
class PaperNumber:
    """One error, as text so that digits stay as they are."""

    mean: str  # percent
    sd: str | None  # None: not given
    gain: str | None  # as the paper gives it; None: not given
    gain_over: str | None = None  # "baseline", "ds" or "alone", as tables have it
    where: str = ""  # the place in the paper


@dataclass(frozen=True)
class PaperRow:
    """What the paper says of one setting."""

    labels: dict[str, str]  # long name of an axis -> value
    numbers: dict[str, PaperNumber]  # "top1", "top5" -> its figures
    setting: str = ""  # as overrides; several values: the paper does not say which of them it chose
    keys: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class PaperTable:
    """One file."""

    name: str
    rows: tuple[PaperRow, ...] = field(default_factory=tuple)

    def find(self, keys: Sequence[Key]) -> PaperRow | None:
        """The row of this setting.

        Of one that is still to be chosen, `keys` has all candidates, and they must be one row's.
        """
        row = self._by_key.get(keys[0]) if keys else None
        return row if row is not None and row.keys.issuperset(keys) else None

    def labelled(self, labels: dict[str, str]) -> PaperRow | None:
        """The row in this place; `labels` may hold more axes than the paper's table has.

        It is of another setting, perhaps.
        """
        known = {long_name(axis): plain(value) for axis, value in labels.items()}
        return next((row for row in self.rows if row.labels.items() <= known.items()), None)

    def position(self, labels: dict[str, str]) -> int:
        """Where the paper has the first of its rows with these labels.

        Behind them all where it has none.
        """
        known = {(long_name(axis), plain(value)) for axis, value in labels.items()}
        return next(
            (number for number, row in enumerate(self.rows) if known <= row.labels.items()),
            len(self.rows),
        )

    @cached_property
    def _by_key(self) -> dict[Key, PaperRow]:
        return {key: row for row in self.rows for key in row.keys}


def setting_id(config: Config) -> str:
    """The id of a configuration without its seed and without how it computes, of which the paper
    says nothing.
    """
    return config_id(dataclasses.replace(config, compute=Compute()))


def printed(
    keys: Sequence[Key], own: PaperTable | None = None, over: Collection[str | None] = ()
) -> PaperRow | None:
    """What the paper says of a setting, if it has it.

    Args:
        own: the table in which it is looked up first.
        over: of the others, those whose gains are over one of these come first.
    """
    if own is not None and (row := own.find(keys)) is not None:
        return row
    found = [row for table in paper_tables() if (row := table.find(keys)) is not None]
    return min(found, key=lambda row: row.numbers["top1"].gain_over not in over, default=None)


def settings(row: PaperRow, compose: Compose) -> list[Composed]:
    """The configurations of a row, resolved; the data need not be here.

    Raises:
        RequestError: `conf/` has been changed so that one is none any more.
    """
    points = expand(OverridesParser.create().parse_overrides(row.setting.split())).points
    resolve = Resolver(absent_ok=True)
    found = map(compose, (point.overrides for point in points))
    return [dataclasses.replace(composed, config=resolve(composed)) for composed in found]


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """All of them: its tables, then what it says in its text."""
    names = (path.stem for path in (declarations("analysis") / "paper").glob("*.csv"))
    ordered = sorted(names, key=lambda name: (not name.startswith("table"), name))
    return tuple(table for name in ordered if (table := paper_table(name)) is not None)


@cache
def paper_table(name: str | None) -> PaperTable | None:
    """The table after which a sweep of this name is called; None where there is none."""
    path = declarations("analysis") / "paper" / f"{name}.csv"
    if name is None or not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        return PaperTable(
            name, tuple(_row(row, _OVER.get(name, "baseline")) for row in csv.DictReader(file))
        )


# Columns that are not axes.
_FIGURES = (
    "top1_error",
    "top1_sd",
    "top1_gain",
    "top5_error",
    "top5_gain",
    "printed",
    "where",
    "setting",
    "config_ids",
)


def _row(row: dict[str, str], over: str) -> PaperRow:
    labels = {long_name(key): plain(value) for key, value in row.items() if key not in _FIGURES}
    numbers = {}
    for metric in ("top1", "top5"):
        if error := row.get(f"{metric}_error"):
            gain = row.get(f"{metric}_gain") or None
            numbers[metric] = PaperNumber(
                error, row.get(f"{metric}_sd") or None, gain, gain and over, row["where"]
            )
    keys = frozenset(Key(each, row.get("classifier", "c1")) for each in row["config_ids"].split())
    return PaperRow(labels, numbers, row["setting"], keys)


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
    for each in dataclasses.fields(part):
        value, key = getattr(part, each.name), f"{prefix}{each.name}"
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
