"""What is read of runs in an MLflow store, whatever its kind.

What MLflow does to numbers is undone: NaN, which it stores as 0 and a mark, and infinity, which it
stores as the largest number there is.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from dks.config.errors import RequestError
from dks.runs.states import State

# and all others: running
STATES = {"FINISHED": State.done, "FAILED": State.failed, "KILLED": State.killed}
TAGS = tuple(
    f"dks.{name}"
    for name in (
        *(
            "cell_id",
            "config_id",
            "seed",
            "method",
            "git_commit",
            "device",
            "attempts",
            "extensions",
            "computed_by",
        ),
        "schema_version",
    )
)  # those that a row is made of
PARAMS = ("recipe.epochs", "data.fingerprint")

Point = tuple[str, str, int, int, float]  # run, metric, step, time in milliseconds, value


@dataclass(frozen=True)
class StoredRun:
    """One run in the store, of those that are a cell."""

    run_id: str
    cell_id: str
    experiment_id: str
    status: str
    start: int  # milliseconds since 1970
    end: int | None

    @property
    def ended(self) -> bool:
        return self.status in STATES and self.end is not None

    @property
    def stamp(self) -> str:
        """What changes when an ended run goes on, and ends again, or gets another id."""
        return f"{self.status} {self.end} {self.cell_id}"


@dataclass
class StoredData:
    """What the store knows of one run."""

    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    latest: dict[str, tuple[int, float]] = dataclasses.field(
        default_factory=dict
    )  # metric -> its last step, and its value then


class Store(Protocol):
    """How a kind of store is read. All methods raise RequestError where it cannot be."""

    def runs(self) -> list[StoredRun]:
        """All runs of the experiment that are a cell.

        Without deleted ones, and those whose place another one has taken.
        """

    def data(self, run_ids: Sequence[str]) -> dict[str, StoredData]:
        """Of these runs: the tags `TAGS`, the params `PARAMS`, all metrics."""

    def points(
        self, run_ids: Sequence[str], metrics: Sequence[str], step: int | None = None
    ) -> Iterator[Point]:
        """What was logged of these metrics, at one step or at all, in any order, repeated ones
        included.
        """

    def params(self, run_id: str) -> dict[str, str]:
        """All params of a run."""

    def place(self, run: StoredRun) -> str:
        """The URI of a run."""


def restored(value: float, is_nan: bool = False) -> float:
    """The number that was logged."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def no_experiment(name: str, experiment: str, known: Iterable[str]) -> RequestError:
    there = ", ".join(sorted(known)) or "none"
    return RequestError(f"{name} has no experiment {experiment!r}; there are: {there}")
