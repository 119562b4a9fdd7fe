"""What all benchmarks share.

Ways measured in turn, what came out, the machine, and the options of a script.

A script measures ours and a plain implementation and ends with

    if __name__ == "__main__":
        run(__doc__, measure)

where `measure(options)` gives its results. This file's folder is on `sys.path`, for Python puts
that of the script there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if (FOLDER.parent / "dks" / "__init__.py").exists():
    # the checkout that this file is part of; an installed package is found without
    sys.path.insert(0, str(FOLDER.parent))

RESULTS = FOLDER / "results"
# processes that wanted a core, before anything was measured
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
DIGITS = 6  # of a number that is kept


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes; on CUDA the work itself has to wait for the device."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(
    ways: Mapping[str, Callable[[], Any]],
    repeats: int,
    value: Callable[[Callable[[], Any]], float] = seconds_of,
) -> dict[str, list[float]]:
    """Measure all ways in each of `repeats` rounds, in turn, so that what disturbs a round disturbs
    all of them.

    Every other round goes backwards, for whoever comes second may find warmer caches, or a hotter
    processor.

    Args:
        ways: name -> what to call.
        value: what is measured of a call; seconds, if nothing else is said.

    Returns:
        name -> a value for each round.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            found[name].append(value(ways[name]))
    return found


@dataclass(frozen=True)
class Spread:
    """Values of the same thing: their median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        tenths = (
            statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
        )
        return cls(statistics.median(values), tenths[0], tenths[-1])

    def __str__(self) -> str:
        if self.low == self.high:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


@dataclass(frozen=True)
class Bound:
    """What is wanted of a way: its `ratio`, its `median`, or one of its figures."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.figure} {number(self.at_least)} to {number(self.at_most)}"
        if self.at_least is not None:
            return f"{self.figure} at least {number(self.at_least)}"
        return f"{self.figure} at most {number(self.at_most or 0)}"


@dataclass(frozen=True)
class Result:
    """One thing, measured in several ways.

    The ratio says how many times better a way is than `against`: the median of the ratios of all
    rounds, since what disturbs a round disturbs both.
    """

    name: str  # of what was measured, unique in its benchmark
    unit: str  # of the values: s, ms, images/s, MiB, ...
    values: Mapping[str, Sequence[float]]  # way -> a value for each round
    against: str | None = None  # the way that the others are compared with
    more_is_better: bool = False
    # way -> what else is known of it
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # way -> what it is to reach
    wanted: Mapping[str, Sequence[Bound]] = field(default_factory=dict)
    note: str = ""  # what it was measured with: sizes, batches

    def spread(self, way: str) -> Spread:
        return Spread.of(self.values[way])

    def ratio(self, way: str) -> Spread | None:
        """None for the way that the others are compared with, and where there is none."""
        if self.against is None or way == self.against:
            return None
        pairs = list(zip(self.values[way], self.values[self.against], strict=True))
        return Spread.of([mine / its if self.more_is_better else its / mine for mine, its in pairs])

    def reached(self, way: str, bound: Bound) -> float:
        """The value that a bound is about."""
        if bound.figure == "ratio":
            ratio = self.ratio(way)
            assert ratio is not None, "a ratio is wanted of a way that is compared"
            return ratio.median
        return (
            self.spread(way).median if bound.figure == "median" else self.figures[way][bound.figure]
        )

    def to_json(self) -> dict[str, Any]:
        """With medians, spreads and ratios, for whoever reads the file.

        `from_json` needs the values alone.
        """
        ways = {way: self._way(way) for way in self.values}
        about = {
            "name": self.name,
            "note": self.note,
            "unit": self.unit,
            "more_is_better": self.more_is_better,
        }
        return {**about, "against": self.against, "ways": ways}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Result:
        ways: Mapping[str, Any] = found["ways"]
        return cls(
            found["name"],
            found["unit"],
            {way: each["values"] for way, each in ways.items()},
            found["against"],
            found["more_is_better"],
            {way: each["figures"] for way, each in ways.items() if "figures" in each},
            {
                way: [
                    Bound(one["figure"], one["at_least"], one["at_most"]) for one in each["wanted"]
                ]
                for way, each in ways.items()
                if "wanted" in each
            },
            found["note"],
        )

    def _way(self, way: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            key: _short(value) for key, value in dataclasses.asdict(self.spread(way)).items()
        }
        if (ratio := self.ratio(way)) is not None:
            found["ratio"] = {
                key: _short(value) for key, value in dataclasses.asdict(ratio).items()
            }
        if way in self.figures:
            found["figures"] = {name: _short(value) for name, value in self.figures[way].items()}
        if way in self.wanted:
            found["wanted"] = [
                {**dataclasses.asdict(bound), "met": bound.met_by(self.reached(way, bound))}
                for bound in self.wanted[way]
            ]
        return {**found, "values": [_short(value) for value in self.values[way]]}


def rows(result: Result) -> list[list[str]]:
    """A line for each way: what, way, value, ratio, figures, wanted."""
    lines = []
    for way in result.values:
        ratio = result.ratio(way)
        figures = ", ".join(
            f"{name} {number(value)}" for name, value in result.figures.get(way, {}).items()
        )
        wanted = ", ".join(
            f"{bound}: {'yes' if bound.met_by(result.reached(way, bound)) else 'NO'}"
            for bound in result.wanted.get(way, ())
        )
        lines.append(
            [
                result.name,
                way,
                f"{result.spread(way)} {result.unit}",
                str(ratio or ""),
                figures,
                wanted,
            ]
        )
    return lines


HEAD = ["what", "way", "median (10th to 90th percentile)", "times better", "figures", "wanted"]


def number(value: float) -> str:
    """Three digits, or all of a larger whole number."""
    if value and abs(value) < 1000:
        return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.2e}"
    return f"{value:,.0f}"


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures belong to: the machine, what computes, and how busy it was.

    No path and no name of a host.

    Args:
        device: where it was measured.
    """
    import torch

    from dks.machine.environment import environment

    found = environment(torch.device(device))
    kept = (
        "cpu",
        "cores",
        "usable_cores",
        "memory_mib",
        "gpus",
        "driver",
        "python",
        "torch",
        "torchvision",
        "cuda",
        "cudnn",
    )
    versions = {name: found["packages"].get(name) for name in ("dks", "mlflow", "numpy", "pillow")}
    about = {name: found[name] for name in kept} | versions
    return about | {
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "load_before": LOAD,
        "device": device,
    }


def commit() -> str | None:
    """Of the code that was measured, with "-dirty" where files differ from it.

    The results themselves do not count.
    """
    git = ["git", "-C", str(FOLDER.parent)]
    try:
        if not (FOLDER.parent / ".git").exists():
            return None  # an installed package may lie inside somebody else's repository
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, check=True, text=True
        ).stdout.strip()
        changed = [
            *git,
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ".",
            ":!benchmarks/results",
            ":!docs/performance.md",
        ]
        return (
            f"{head}-dirty"
            if subprocess.run(changed, capture_output=True, check=True).stdout
            else head
        )
    except (OSError, subprocess.SubprocessError):
        return None


def machine_name(about: Mapping[str, Any]) -> str:
    """Of the folder that its results are kept in: the GPU, or the processor with its cores."""
    name = (
        about["gpus"][0]
        if about["gpus"]
        else f"{about['cpu']} {about['usable_cores'] or about['cores']} cores"
    )
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run(
    about: str | None,
    measure: Callable[[argparse.Namespace], list[Result]],
    add_options: Callable[[argparse.ArgumentParser], object] | None = None,
    repeats: int = 5,
    short_repeats: int = 3,
    arguments: Sequence[str] | None = None,
) -> None:
    """The main function of a script: read its options, measure, and show or keep the results.

    Args:
        about: the script's docstring; its first line is the description.
        add_options: those of its own, beside the common ones.
        repeats, short_repeats: rounds, if nothing else is said.
    """
    name = Path(sys.argv[0]).stem
    what = (about or "").strip().splitlines()[0]
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help=f"rounds (default: {repeats}, with --short {short_repeats})",
    )
    parser.add_argument("--short", action="store_true", help="smaller, a minute at most")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--save", action="store_true", help="keep the results in benchmarks/results/"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    if add_options is not None:
        add_options(parser)
    options = parser.parse_args(arguments)
    options.device = _device(options.device)
    options.repeats = options.repeats or (short_repeats if options.short else repeats)
    if options.save and (options.short or not (FOLDER.parent / "pyproject.toml").exists()):
        parser.error("--save: what is kept is measured in a checkout, and without --short")
    results = measure(options)
    found = {
        "options": {
            key: value for key, value in vars(options).items() if key not in ("json", "save")
        },
        "machine": machine(options.device),
        "results": [result.to_json() for result in results],
    }
    if options.save:
        keep(RESULTS / machine_name(found["machine"]) / f"{name}.json", found)
    if options.json:
        print(json.dumps({"benchmark": name, "what": what, **found}, indent=1))
    else:
        show(what, results)


def say(line: str) -> None:
    """Tell whoever looks at the terminal what is being measured."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def show(title: str, results: Sequence[Result]) -> None:
    """A table on standard output; without frames where that is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    to_terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if to_terminal else 200)
    console.print(f"{title}\n")
    table = Table(box=box.ROUNDED if to_terminal else None, pad_edge=False)
    lines = [line for result in results for line in rows(result)]
    used = [column for column in range(len(HEAD)) if any(line[column] for line in lines)]
    for column in used:
        table.add_column(HEAD[column])
    for line in lines:
        table.add_row(*(line[column] for column in used))
    console.print(table)
    for note in dict.fromkeys(result.note for result in results if result.note):
        console.print(note)


def keep(path: Path, found: Mapping[str, Any]) -> None:
    """Write the results of a run into a file.

    Earlier ones stay there, but for those that were measured again.
    """
    again = {result["name"] for result in found["results"]}
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    for earlier in runs:
        earlier["results"] = [
            result for result in earlier["results"] if result["name"] not in again
        ]
    runs = [earlier for earlier in runs if earlier["results"]] + [found]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_compact(json.dumps({"runs": runs}, indent=1)) + "\n", encoding="utf-8")


def _device(name: str) -> str:
    """Which one "auto" is; one of several GPUs becomes the current one."""
    import torch

    from dks.machine.environment import pick_device

    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return str(device)


def _compact(text: str) -> str:
    """The values of a way on one line."""
    return re.sub(r"\[[^\[\]{}]+\]", lambda found: " ".join(found[0].split()), text)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
