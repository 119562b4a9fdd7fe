"""`dks table`, `dks figure` and `dks report`: what the runs of a sweep gave."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dks.cli.exit_status import DONE
from dks.cli.options import (
    Commands,
    add_command,
    add_json,
    add_loudness,
    add_results_dir,
    file_to_write,
    folder,
)
from dks.config.errors import RequestError

if TYPE_CHECKING:
    from dks.results.study import Study


def add(commands: Commands) -> None:
    table = _reading(
        commands,
        "table",
        "the table of a sweep, from whatever runs exist",
        [
            "dks table table3",
            "dks table paper --format md",
            "dks table table3 data=digits recipe.epochs=2 --epoch best",
            "dks table table1 --store sqlite:///mlflow.db --format latex --output table1.tex",
            "dks table methods --json",
        ],
        _table,
    )
    form = table.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=("terminal", "md", "latex", "html", "csv"), default="terminal"
    )
    add_json(form)
    table.add_argument(
        "--output",
        type=file_to_write,
        metavar="FILE",
        help="write it there, and to FILE.json where its numbers come from",
    )
    figure = _reading(
        commands,
        "figure",
        "figures of a sweep, as SVG, PDF and PNG",
        [
            "dks figure figure3 --kind curves",
            "dks figure table1 --output figures",
            "dks figure table3 --json",
        ],
        _figure,
    )
    figure.add_argument(
        "--kind", choices=("curves", "spread", "dots", "cost"), help="default: all four"
    )
    figure.add_argument(
        "--output", type=folder, metavar="DIR", help="default: results/NAME/figures"
    )
    add_json(figure)
    report = _reading(
        commands,
        "report",
        "one HTML page with the tables, the curves and what is missing; it needs no network",
        ["dks report paper", "dks report table3 --output table3.html"],
        _report,
    )
    report.add_argument(
        "--output", type=file_to_write, metavar="FILE", help="default: results/NAME/report.html"
    )


def _reading(
    commands: Commands,
    name: str,
    what: str,
    examples: Sequence[str],
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A command that shows what the runs of a sweep gave."""
    added = add_command(commands, name, what, examples, run)
    added.add_argument("name", help="one of those that `dks sweep list` shows")
    added.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="those that the sweep was run with, if there were any",
    )
    added.add_argument(
        "--store", metavar="URI", help="read an MLflow store, not the folders of the runs"
    )
    added.add_argument(
        "--experiment", default="dks", metavar="NAME", help="in that store (default: dks)"
    )
    add_results_dir(added)
    add_loudness(added)
    if name != "figure":
        added.add_argument(
            "--epoch",
            choices=("last", "best"),
            default="last",
            help="which epoch of a run counts (default: last; best is chosen by the test error "
            "itself, and so optimistic)",
        )
    return added


def _study(options: argparse.Namespace) -> Study:
    from dks.results.study import Study

    return Study.open(
        options.name, options.overrides, options.store, options.results_dir, options.experiment
    )


def _table(options: argparse.Namespace) -> int:
    from dks.results.model import Epoch
    from dks.results.render import TEXT_FORMATS, as_json
    from dks.results.results import show, write

    if options.output and options.format == "terminal":
        raise RequestError(f"--output {options.output} needs --format: {', '.join(TEXT_FORMATS)}")
    study = _study(options)
    tables = study.tables(Epoch(options.epoch))
    if options.output:
        for path in write(study, tables, options.format, Path(options.output)):
            print(f"written to {path}")
        return DONE
    if options.json:
        sys.stdout.write(as_json(tables))
        return DONE
    for number, table in enumerate(tables):
        if options.format == "terminal":
            show(table)
        else:
            sys.stdout.write(
                ("\n" if number and options.format != "csv" else "")
                + TEXT_FORMATS[options.format](table)
            )
    return DONE


def _figure(options: argparse.Namespace) -> int:
    from rich.markup import escape

    from dks.results.figures import KINDS, draw, write
    from dks.runs.terminal import say

    study = _study(options)
    written, empty = list[str](), list[str]()
    for table in study.tables():
        if table.changed:
            say(escape(table.changed), urgent=True)
        folder = Path(options.output or Path(options.results_dir) / table.name / "figures")
        for kind in [options.kind] if options.kind else KINDS:
            try:
                figure = draw(kind, table, study.source)
            except RequestError as error:
                # nothing to draw: for one of many figures that is worth a line, no more
                empty.append(f"no {kind}: {error}")
                continue
            for path in write(figure, folder, f"{table.name}-{kind}"):
                written.append(str(path))
                if not options.json:
                    print(f"written to {path}")
    if not written:
        raise RequestError(*empty)
    if options.json:
        print(json.dumps({"written": written, "empty": empty}, indent=1))
        return DONE
    for line in empty:
        say(escape(line))
    return DONE


def _report(options: argparse.Namespace) -> int:
    from dks.results.model import Epoch
    from dks.results.report import write_report

    study = _study(options)
    path = Path(options.output or Path(options.results_dir) / study.name / "report.html")
    print(f"written to {write_report(study, path, Epoch(options.epoch))}")
    return DONE
