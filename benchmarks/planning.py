"""How long 10,000 cells take from overrides to identities: `python benchmarks/planning.py [--data digits] [--json]`.

The cells are branch designs x matching strategies x learning rates x seeds. "Hydra for every cell" is `compose` and `resolve`
called afresh for each, measured on a sample spread over all cells and scaled up. "One plan" is what `dks sweep plan` does: one
`Composer` and one `Resolver` for all cells, both new, and all cells are measured. Importing is not measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout that this file is part of

from dks.config.compose import Composed, from_hydra, register_schema
from dks.config.composer import Composer
from dks.config.files import declarations
from dks.config.identity import cell_id, config_id
from dks.config.methods import baseline_of
from dks.config.schema import Config
from dks.config.validation import Resolver, resolve

DESIGNS = ("ours", "shallow", "narrow", "ap_2fc", "ap_conv_2fc")
STRATEGIES = ("none", "topdown", "bottomup", "bidir")
RATES = tuple(f"{0.01 * step:.2f}" for step in range(1, 11))
CHOICES = len(DESIGNS) * len(STRATEGIES)


def grid(count: int, data: str) -> list[tuple[str, ...]]:
    """The overrides of that many cells; seeds vary fastest, as in a sweep."""
    seeds = range(-(-count // (CHOICES * len(RATES))))
    product = itertools.product(DESIGNS, STRATEGIES, RATES, seeds)
    cells = [(f"data={data}", f"aux={a}", f"strategy={s}", f"recipe.lr={r}", f"seed={n}") for a, s, r, n in product]
    return cells[:count]


def through_hydra(overrides: Sequence[str]) -> Composed:
    """One composition; needs Hydra to be initialised."""
    return from_hydra(compose("config", list(overrides), return_hydra_config=True))


def identities(config: Config) -> tuple[str, str, str]:
    """The three that a plan needs of every cell."""
    return cell_id(config), config_id(config), config_id(baseline_of(config))


def timed(work: Callable[[Any], Any], items: Iterable[Any]) -> tuple[float, list[Any]]:
    """Seconds for all items, and what came out."""
    started = time.perf_counter()
    results = [work(item) for item in items]
    return time.perf_counter() - started, results


def measure(cells: list[tuple[str, ...]], sample: int) -> dict[str, dict[str, float]]:
    """Way -> part -> seconds for all cells.

    Raises:
        AssertionError: both ways disagree about a cell of the sample.
    """
    through_hydra(cells[0])  # imports
    identities(resolve(through_hydra(cells[0])))
    few = cells[:: max(1, len(cells) // sample)]
    factor = len(cells) / len(few)
    plain, ours = {}, {}
    plain["compose"], composed = timed(through_hydra, few)
    plain["resolve"], resolved = timed(resolve, composed)
    plain["identities"], expected = timed(identities, resolved)
    plain = {part: seconds * factor for part, seconds in plain.items()}
    ours["compose"], composed = timed(Composer(through_hydra), cells)
    ours["resolve"], resolved = timed(Resolver(), composed)
    ours["identities"], found = timed(identities, resolved)
    assert [found[cells.index(cell)] for cell in few] == expected, "both ways must name the same cells"
    ours["look up, none begun"] = look_up_missing([first for first, _, _ in found])
    return {"hydra for every cell": plain, "one plan": ours}


def look_up_missing(cell_ids: list[str]) -> float:
    """Seconds to find that none of these cells has been begun."""
    from dks.sweeps.ledger import survey

    with tempfile.TemporaryDirectory() as folder:
        return timed(lambda cells: survey(folder, cells), [cell_ids])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the planning of a sweep.")
    parser.add_argument("--data", default="synthetic", choices=("synthetic", "digits"))
    parser.add_argument("--cells", type=int, default=10_000, metavar="N")
    parser.add_argument("--sample", type=int, default=40, metavar="N", help="cells that Hydra composes one by one")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    register_schema()
    with initialize_config_dir(str(declarations("conf")), version_base="1.3"):
        cells = grid(options.cells, options.data)
        seconds = measure(cells, options.sample)
    if options.json:
        about = {"data": options.data, "cells": len(cells), "choices": CHOICES, "sample": options.sample}
        about["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        print(json.dumps({**about, "seconds": seconds}, indent=1))
        return
    print(f"{len(cells)} cells, data={options.data}, {CHOICES} combinations of choices; seconds")
    for way, parts in seconds.items():
        scaled = f" (scaled from {options.sample} cells)" if way.startswith("hydra") else ""
        print(f"{way}{scaled}: {sum(parts.values()):.1f}")
        for part, each in parts.items():
            print(f"  {part:<20} {each:8.2f}")


if __name__ == "__main__":
    main()
