"""Planning a large sweep.

10,000 cells from overrides to identities, in one plan and with Hydra for every cell.

    python benchmarks/planning.py [--cells 10000] [--data digits]

The cells are branch designs x matching strategies x learning rates x seeds. "Hydra for every cell"
is `compose` and `resolve` called afresh for each, measured on a sample spread over all cells and
scaled up. "One plan" is what `dks sweep plan` does: one `Composer` and one `Resolver` for all
cells, both new, and all cells are measured. Importing is not measured.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hydra import compose, initialize_config_dir
from measure import Result, in_turn, run

from dks.config.compose import Composed, Composer, from_hydra, register_schema
from dks.config.files import declarations
from dks.config.identity import cell_id, config_id
from dks.config.methods import baseline_of
from dks.config.schema import Config
from dks.training.resolver import Resolver, resolve

DESIGNS = ("ours", "shallow", "narrow", "ap_2fc", "ap_conv_2fc")
STRATEGIES = ("none", "topdown", "bottomup", "bidir")
RATES = tuple(f"{0.01 * step:.2f}" for step in range(1, 11))
CHOICES = len(DESIGNS) * len(STRATEGIES)


def grid(count: int, data: str) -> list[tuple[str, ...]]:
    """The overrides of that many cells; seeds vary fastest, as in a sweep."""
    seeds = range(-(-count // (CHOICES * len(RATES))))
    product = itertools.product(DESIGNS, STRATEGIES, RATES, seeds)
    cells = [
        (f"data={data}", f"aux={a}", f"strategy={s}", f"recipe.lr={r}", f"seed={n}")
        for a, s, r, n in product
    ]
    return cells[:count]


def through_hydra(overrides: Sequence[str]) -> Composed:
    """One composition; needs Hydra to be initialised."""
    return from_hydra(compose("config", list(overrides), return_hydra_config=True))


def identities(config: Config) -> tuple[str, str, str]:
    """The three that a plan needs of every cell."""
    return cell_id(config), config_id(config), config_id(baseline_of(config))


def hydra_for_every_cell(
    cells: Sequence[tuple[str, ...]], kept: dict[tuple[str, ...], Any]
) -> None:
    """Keeps the identities."""
    for cell in cells:
        kept[cell] = identities(resolve(through_hydra(cell)))


def one_plan(cells: Sequence[tuple[str, ...]], kept: dict[tuple[str, ...], Any]) -> None:
    """Keeps the identities; also finds that none of the cells has been begun."""
    from dks.runs.states import survey

    composer, resolver = Composer(through_hydra), Resolver()
    for cell in cells:
        kept[cell] = identities(resolver(composer(cell)))
    with tempfile.TemporaryDirectory() as folder:
        survey(folder, [first for first, _, _ in kept.values()])


def measure(options: argparse.Namespace) -> list[Result]:
    """
    Raises:
        AssertionError: both ways disagree about a cell of the sample.
    """
    register_schema()
    count = options.cells or (1_000 if options.short else 10_000)
    with initialize_config_dir(str(declarations("conf")), version_base="1.3"):
        cells = grid(count, options.data)
        few = cells[:: max(1, len(cells) // (options.sample or (10 if options.short else 40)))]
        plain, ours = dict[tuple[str, ...], Any](), dict[tuple[str, ...], Any]()
        hydra_for_every_cell(cells[:1], {})  # imports
        ways: dict[str, Callable[[], None]] = {
            "hydra for every cell": partial(hydra_for_every_cell, few, plain),
            "one plan": partial(one_plan, cells, ours),
        }
        seconds = in_turn(ways, options.repeats)
    assert all(ours[cell] == plain[cell] for cell in few), "both ways must name the same cells"
    seconds["hydra for every cell"] = [
        each * len(cells) / len(few) for each in seconds["hydra for every cell"]
    ]
    name = f"{len(cells):,} cells, data={options.data}"
    note = (
        f"{CHOICES} combinations of choices; Hydra for every cell is scaled up from "
        f"{len(few)} cells"
    )
    return [Result(name, "s", seconds, "hydra for every cell", note=note)]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", default="synthetic", choices=("synthetic", "digits"), help="(default: synthetic)"
    )
    parser.add_argument(
        "--cells", type=int, metavar="N", help="(default: 10000, with --short 1000)"
    )
    shown = "cells that Hydra composes one by one (default: 40, with --short 10)"
    parser.add_argument("--sample", type=int, metavar="N", help=shown)


if __name__ == "__main__":
    run(__doc__, measure, add_options, short_repeats=2)
