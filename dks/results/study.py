"""A sweep and the runs that there are for it: what tables, figures and reports are made from."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from dks.config.errors import RequestError
from dks.config.files import declarations
from dks.config.identity import SCHEMA_VERSION
from dks.config.secrets import without_password
from dks.results.entries import entries, is_told, other_axes
from dks.results.model import Table, build
from dks.results.shape import Epoch, Metric, Over, Shape
from dks.runs.earlier import of_sweep
from dks.runs.terminal import duration, explain
from dks.sweeps import manifest
from dks.sweeps.changes import Changes
from dks.sweeps.files import TableShape, names, read
from dks.sweeps.manifest import Manifest
from dks.sweeps.paper import paper_table
from dks.tracking.source import Source


@dataclass(frozen=True)
class Study:
    """A sweep, or a union of several, and where its runs are read from."""

    sweep: Manifest
    parts: tuple[Manifest, ...]  # one a table
    source: Source

    @classmethod
    def open(
        cls,
        name: str,
        overrides: Sequence[str] = (),
        store: str | None = None,
        results_dir: str = "results",
        experiment: str = "dks",
    ) -> Study:
        """The sweep of that name.

        As it was begun in `results_dir`, or else as its file in `sweeps/` describes it.

        Args:
            overrides: those that the sweep was run with, if there were any.
            store: URI of the MLflow store to read; None: the folders of the runs.
            experiment: in that store.

        Raises:
            RequestError: there is no such sweep or no such store.
        """
        if store is None:
            from dks.tracking.records import RecordSource

            sweep, parts = _manifests(name, overrides, results_dir)
            return cls(sweep, parts, RecordSource(sweep.runs_dir))
        from dks.tracking.mlflow_source import MlflowSource

        # says what is wrong with the URI, before cells are planned
        source = MlflowSource(store, experiment)
        return cls(*_manifests(name, overrides, results_dir), source)

    @classmethod
    def begun(cls, results_dir: str, sweep: Manifest) -> Study:
        """A sweep that was begun in `results_dir` as this manifest has it, whatever is written
        there meanwhile.
        """
        from dks.tracking.records import RecordSource

        parts = tuple(manifest.read(results_dir, part) for part in sweep.parts) or (sweep,)
        return cls(sweep, parts, RecordSource(sweep.runs_dir))

    @property
    def name(self) -> str:
        return self.sweep.name

    @property
    def title(self) -> str:
        return self.sweep.title

    @property
    def command(self) -> str:
        """What runs its missing cells."""
        request = [self.sweep.named, *self.sweep.request] if self.sweep.named else [self.name]
        return f"dks sweep run {shlex.join(map(without_password, request))}"

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Its runs, those of selections included, as `dks.tracking.source.Source.runs` has them."""
        began = time.monotonic()
        asked = list(dict.fromkeys(cell_id for part in self.parts for cell_id in part.cell_ids))
        found = self.source.runs(asked)
        explain(
            f"{len(found)} of {len(asked)} runs are in {self.source.name}; read in "
            f"{duration(time.monotonic() - began)}"
        )
        return found

    def table(self, epoch: Epoch = Epoch.last) -> Table:
        """Its table.

        Raises:
            RequestError: it has several.
        """
        if len(self.parts) > 1:
            raise RequestError(
                f"{self.name} has several tables; choose from "
                f"{', '.join(part.name for part in self.parts)}"
            )
        return self.tables(epoch)[0]

    def tables(self, epoch: Epoch = Epoch.last) -> list[Table]:
        """All of its tables, from whatever runs exist."""
        changes = Changes()
        earlier = set(self.runs.loc[self.runs["schema_version"] < SCHEMA_VERSION, "cell_id"])
        said = [changes.of(part) for part in self.parts]
        if not any(said):  # a union may have been given other parts, or another base
            said = [changes.of(self.sweep)] * len(self.parts)
        return [
            replace(
                self._table(part, epoch),
                changed=line,
                earlier=of_sweep(len(earlier & {*part.cell_ids})),
                decided=tuple(part.decided),
            )
            for part, line in zip(self.parts, said, strict=True)
        ]

    def _table(self, part: Manifest, epoch: Epoch) -> Table:
        file = read(part.named) if part.named in names() else None
        declared = file.shape if file else TableShape()
        over = None if declared.gain is None else tuple(map(Over, declared.gain))
        metrics = tuple(Metric[name] for name in declared.metrics)
        if part.cells:
            metrics = tuple(
                each for each in metrics if any(is_told(each, cell) for cell in part.cells)
            ) or (Metric.top1,)
        shape = Shape(metrics, over, declared.aside)
        axes, rows, columns = part.axes, part.rows, part.columns
        by_classifier = bool(declared.classifier_rows or declared.classifier_columns)
        if by_classifier:
            rows = [*other_axes(part), *declared.classifier_rows]
            columns = list(declared.classifier_columns)
            axes = [*rows, *columns]
        return build(
            entries(part, self.runs, shape.metrics, epoch, by_classifier),
            part.name,
            part.title,
            axes,
            rows,
            columns,
            shape,
            epoch,
            paper_table(part.named),
            part.differs,
            part.undecided,
        )


def _manifests(
    name: str, overrides: Sequence[str], results_dir: str
) -> tuple[Manifest, tuple[Manifest, ...]]:
    """What was asked for: of the whole sweep, and of each of its tables."""
    begun = _begun_name(name, overrides, results_dir)
    if begun is not None:
        explain(f"what was asked for: {manifest.file(results_dir, begun)}")
        whole = manifest.read(results_dir, begun)
        return whole, tuple(manifest.read(results_dir, part) for part in whole.parts) or (whole,)
    if name not in names():
        manifest.read(results_dir, name)  # says which there are
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dks.config.compose import Composer, compose_here
    from dks.sweeps.plan import plan
    from dks.sweeps.spec import grid_of

    compose = Composer(compose_here)
    grid = grid_of(read(name), overrides, OverridesParser.create(), compose)
    explain(
        f"what was asked for: the file of {name} in {declarations('sweeps')}, as the sweep is "
        f"not begun in {results_dir}"
    )
    *parts, whole = plan(grid, compose, absent_ok=True).manifests()
    return whole, tuple(parts) or (whole,)


def _begun_name(name: str, overrides: Sequence[str], results_dir: str) -> str | None:
    """The name under which it was begun in `results_dir`; None if it was not."""
    known = manifest.known(results_dir)
    if overrides:
        if name not in names():
            raise RequestError(
                f"{name} is no named sweep, so it takes no overrides; choose from "
                f"{', '.join(names())}"
            )
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from dks.sweeps.spec import grid_of

        asked = grid_of(read(name), overrides, OverridesParser.create()).name
        return asked if asked in known else None
    return name if name in known or manifest.variants_of(results_dir, name) else None
