"""`dks table`, `dks figure` and `dks report`: what the runs of a sweep gave."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from dks.cli.command import Command, option, together
from dks.cli.exit_status import DONE
from dks.cli.options import FILE, FOLDER, json_output, overrides, results_dir, sweep_name, verbosity
from dks.config.errors import RequestError

# Parameters of `Study.open`.
_source_options = together(
    sweep_name("one of those that `dks sweep list` shows"),
    overrides("those that the sweep was run with, if there were any"),
    option("--store URI", "read an MLflow store, not the folders of the runs"),
    option("--experiment NAME", "in that store (default: dks)", default="dks"),
    results_dir,
)
_epoch_option = option(
    "--epoch",
    "which epoch of a run counts (default: last; best is chosen by the test error itself, and so "
    "optimistic)",
    choices="last best",
    default="last",
)


@click.command(cls=Command)
@_source_options
@_epoch_option
@option("--format", "default: terminal", choices="terminal md latex html csv", name="form")
@json_output
@option("--output FILE", "write it there, and to FILE.json where its numbers come from", type=FILE)
@verbosity
def table(epoch: str, form: str | None, as_json: bool, output: str | None, **source: Any) -> int:
    """The table of a sweep, from whatever runs exist.

    \b
    Examples:
      dks table table3
      dks table paper --format md
      dks table table3 data=digits recipe.epochs=2 --epoch best
      dks table table1 --store sqlite:///mlflow.db --format latex --output table1.tex
      dks table methods --json
    """
    from dks.results.render import TEXT_FORMATS
    from dks.results.render import as_json as tables_as_json
    from dks.results.results import show, write
    from dks.results.shape import Epoch
    from dks.results.study import Study

    if form and as_json:
        raise RequestError("--format and --json exclude each other; drop one")
    if output and form not in TEXT_FORMATS:
        raise RequestError(f"--output {output} needs --format: {', '.join(TEXT_FORMATS)}")
    study = Study.open(**source)
    tables = study.tables(Epoch(epoch))
    if output and form:
        for path in write(study, tables, form, Path(output)):
            print(f"written to {path}")
    elif as_json:
        sys.stdout.write(tables_as_json(tables))
    elif form in TEXT_FORMATS:
        between = "" if form == "csv" else "\n"
        sys.stdout.write(between.join(TEXT_FORMATS[form](table) for table in tables))
    else:
        for table in tables:
            show(table)
    return DONE


@click.command(cls=Command)
@_source_options
@option("--kind", "default: all four", choices="curves spread dots cost")
@option("--output DIR", "default: results/NAME/figures", type=FOLDER)
@json_output
@verbosity
def figure(kind: str | None, output: str | None, as_json: bool, **source: Any) -> int:
    """Figures of a sweep, as SVG, PDF and PNG.

    \b
    Examples:
      dks figure figure3 --kind curves
      dks figure table1 --output figures
      dks figure table3 --json
    """
    from rich.markup import escape

    from dks.results.figures import KINDS, draw, write
    from dks.results.study import Study
    from dks.runs.terminal import say

    study = Study.open(**source)
    written, empty = list[str](), list[str]()
    for table in study.tables():
        if table.changed:
            say(escape(table.changed), urgent=True)
        folder = Path(output or Path(source["results_dir"]) / table.name / "figures")
        for each in [kind] if kind else KINDS:
            try:
                drawn = draw(each, table, study.source)
            except RequestError as error:
                # nothing to draw: for one of many figures that is worth a line, no more
                empty.append(f"no {each}: {error}")
                continue
            for path in write(drawn, folder, f"{table.name}-{each}"):
                written.append(str(path))
                if not as_json:
                    print(f"written to {path}")
    if not written:
        raise RequestError(*empty)
    if as_json:
        print(json.dumps({"written": written, "empty": empty}, indent=1))
    for line in () if as_json else empty:
        say(escape(line))
    return DONE


@click.command(cls=Command)
@_source_options
@_epoch_option
@option("--output FILE", "default: results/NAME/report.html", type=FILE)
@verbosity
def report(epoch: str, output: str | None, **source: Any) -> int:
    """One HTML page with the tables, the curves and what is missing; it needs no network.

    \b
    Examples:
      dks report paper
      dks report table3 --output table3.html
    """
    from dks.results.report import write_report
    from dks.results.shape import Epoch
    from dks.results.study import Study

    study = Study.open(**source)
    path = Path(output or Path(source["results_dir"]) / study.name / "report.html")
    print(f"written to {write_report(study, path, Epoch(epoch))}")
    return DONE
