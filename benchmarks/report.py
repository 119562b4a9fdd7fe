"""The tables of docs/performance.md from the kept results.

`python benchmarks/report.py` writes them, `--check` only compares.

On the page, what a benchmark gave stands between `<!-- results NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from measure import FOLDER, RESULTS, Result, number

PAGE = FOLDER.parent / "docs" / "performance.md"
SECTION = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet.\n"


def page(text: str, results: Path = RESULTS) -> str:
    """The page with the tables that the results in this folder give."""
    return SECTION.sub(lambda found: f"{found[1]}{section(found[2], results)}{found[3]}", text)


def section(benchmark: str, results: Path) -> str:
    """All that is kept of one benchmark, machine by machine."""
    parts = []
    for path in sorted(results.glob(f"*/{benchmark}.json")):
        for kept in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            parts += [
                about(kept["machine"], kept["options"]),
                *tables([Result.from_json(each) for each in kept["results"]]),
            ]
    return "\n".join(parts) or NOTHING


def about(machine: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """One line: where and how it was measured."""
    memory = f"{machine['memory_mib'] / 1024:.0f} GiB"
    where = [
        *machine["gpus"][:1],
        f"{machine['cpu']}, {machine['usable_cores'] or machine['cores']} cores, {memory}",
    ]
    versions = f"Python {machine['python']}, torch {machine['torch']}"
    load = "" if machine["load_before"] is None else f", load before {machine['load_before']:.1f}"
    commit = (
        f", commit {machine['commit'][:12]}{'-dirty' * machine['commit'].endswith('-dirty')}"
        if machine["commit"]
        else ""
    )
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return (
        f"**{', '.join(where)}**: {options['repeats']} rounds, {threads}{load}; "
        f"{versions}{commit}\n"
    )


def tables(results: list[Result]) -> Iterator[str]:
    """A Markdown table for each group of results with the same ways."""
    for ways, group in groupby(results, key=lambda result: tuple(result.values)):
        same = list(group)
        lines = [["", *ways], ["---", *["---:"] * len(ways)]]
        lines += [
            [f"{result.name} ({result.unit})", *(cell(result, way) for way in ways)]
            for result in same
        ]
        yield "".join(f"| {' | '.join(line)} |\n" for line in lines)
        notes = dict.fromkeys(result.note for result in same if result.note)
        yield from (f"{note}\n" for note in notes)


def cell(result: Result, way: str) -> str:
    """Median and spread; beneath it the ratio, the figures, and whether it is as wanted."""
    ratio = result.ratio(way)
    parts = [] if ratio is None else [f"**{ratio.median:.2f}** times better"]
    parts += [f"{number(value)} {name}" for name, value in result.figures.get(way, {}).items()]
    for bound in result.wanted.get(way, ()):
        parts.append(
            f"wanted {bound}{'' if bound.met_by(result.reached(way, bound)) else ': **missed**'}"
        )
    return "<br>".join([str(result.spread(way)), *parts])


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Bring the tables of docs/performance.md up to date."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if they are not"
    )
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text)
    if not options.check:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        print(
            "docs/performance.md does not say what benchmarks/results/ does; run python "
            "benchmarks/report.py"
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
