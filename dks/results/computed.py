"""What is said beneath a table, and beside its numbers, of how they were computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dks.machine.code import canonical, short
from dks.runs.attempts import ComputedBy, codes

if TYPE_CHECKING:
    from dks.results.model import Place, Table

MARK = "†"  # at a number that mixes codes
COMMIT = 10  # digits that are shown
_COMMITS = 3  # that are named with a code


def computed_by(run: Mapping[Any, Any]) -> tuple[ComputedBy, ...]:
    """Of a row as a `dks.tracking.source.Source` gives it.

    Nothing is known of a run whose record was lost.
    """
    return tuple(ComputedBy(**each) for each in run.get("computed_by", ())) or (ComputedBy(),)


def notes(table: Table) -> Iterator[str]:
    """Beneath the table: what is not as usual, and what differs between its runs."""
    yield from _arithmetic(table)
    runs = list(table.computed_by.values())
    yield from _codes(runs)
    yield from _differing(
        "processes that trained a network together", runs, lambda each: each.processes, usual=1
    )
    yield from _differing(
        "CPU threads", runs, lambda each: each.threads if each.device == "cpu" else None
    )
    yield from _differing(
        "device", runs, lambda each: "CPU" if each.device == "cpu" else each.device
    )
    yield from _differing("torch", runs, lambda each: each.torch)
    yield from _differing("NVIDIA driver", runs, lambda each: each.driver)


def _arithmetic(table: Table) -> Iterator[str]:
    """How the numbers were computed, where that is not the standard way."""
    ways: dict[str, list[Place]] = {}
    for place, cell in table.cells.items():
        ways.setdefault(cell.computed, []).append(place)
    for way, places in ways.items():
        if way and len(ways) == 1:
            yield f"computed with {way}"
        elif way:
            where = ", ".join(" ".join((*row, *column)) for row, column in places)
            yield f"computed with {way}: {where}"
    if "" in ways and len(ways) > 1:
        yield "computed in the standard way, float32: the others"


def _codes(runs: Sequence[Sequence[ComputedBy]]) -> Iterator[str]:
    if len({code for run in runs for code in codes(run)}) > 1:
        told = "; ".join(
            f"{' and '.join(names)} {_runs(count)}" for names, count in counted(runs).items()
        )
        yield f"computed by several codes, {MARK} where a number mixes them: {told}"


def counted(runs: Iterable[Sequence[ComputedBy]]) -> dict[tuple[str, ...], int]:
    """The codes of a run as a person reads them, each with its commits -> runs.

    The most frequent first.
    """
    runs = list(runs)
    commits: dict[str, set[str]] = {}
    for each in (each for run in runs for each in run):
        commits.setdefault(canonical(each.code), set()).add(_short_commit(each.git_commit))

    def name(code: str) -> str:
        known = sorted(filter(None, commits[code]))
        more = f" and {len(known) - _COMMITS} more" if len(known) > _COMMITS else ""
        return short(code) + (f" (commit {', '.join(known[:_COMMITS])}{more})" if known else "")

    counts = Counter(tuple(map(name, codes(run))) for run in runs)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _short_commit(commit: str | None) -> str:
    digits, _, rest = (commit or "").partition("-")
    return digits[:COMMIT] + (f"-{rest}" if rest else "")


def _differing(
    what: str,
    runs: Sequence[Sequence[ComputedBy]],
    value_of: Callable[[ComputedBy], Any],
    usual: object = None,
) -> Iterator[str]:
    """A line where the runs differ in a value that is known, or share one that is not the usual
    one.
    """
    known = [
        tuple(dict.fromkeys(value for each in run if (value := value_of(each)) is not None))
        for run in runs
    ]
    counts = Counter(values for values in known if values)
    different = {value for values in counts for value in values}
    if len(different) > 1:
        yield f"{what}: " + ", ".join(
            f"{' and '.join(map(str, values))} in {_runs(count)}"
            for values, count in sorted(counts.items(), key=str)
        )
    elif usual is not None and different - {usual}:
        yield f"{what}: {different.pop()}"


def _runs(count: int) -> str:
    return f"{count} {'run' if count == 1 else 'runs'}"
