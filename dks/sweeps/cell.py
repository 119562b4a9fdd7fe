"""A cell of a sweep, from its plan to its launch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dks.config.identity import config_id
from dks.config.methods import PAPERS, baseline_of, classifiers_of, computed_with, ds_of, method_of
from dks.config.schema import Config
from dks.runs.record import RunFolder
from dks.runs.states import Standing, State
from dks.sweeps.manifest import ManifestCell
from dks.sweeps.paper import setting_id
from dks.sweeps.points import Point, words


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: what was asked for, its configuration and id, and where it stands."""

    point: Point
    config: Config
    choices: dict[str, str | None]
    cell_id: str
    standing: Standing | None = None  # None: not looked up yet
    anew: bool = False  # it is trained again, for another code than today's computed it

    @property
    def state(self) -> State:
        """As it was when the sweep was planned."""
        return State.missing if self.standing is None else self.standing.state

    @property
    def folder(self) -> RunFolder:
        """What its run leaves lies there."""
        return RunFolder(Path(self.config.runs_dir) / self.cell_id)

    @property
    def method(self) -> str:
        """What tables call it: its preset, unless the paper has a name for what it trains."""
        preset = self.choices.get("method")
        return method_of(self.config) if preset is None or preset in PAPERS else preset

    @property
    def place(self) -> str:
        """What a person calls it: its place in the sweep, or its overrides."""
        return words(self.point.labels) or " ".join(self.point.overrides)

    @cached_property
    def config_id(self) -> str:
        """The id of its configuration without the seed."""
        return config_id(self.config)

    @property
    def goes_on(self) -> bool:
        """Is there an unfinished run, with a checkpoint to go on from?"""
        return self.standing is not None and self.standing.goes_on

    @cached_property
    def other_codes(self) -> tuple[str | None, ...]:
        """The codes that computed what is there and are not today's; None: not known."""
        return () if self.standing is None else self.standing.other_codes()

    @cached_property
    def done_epochs(self) -> int:
        """Whole epochs trained by earlier attempts that it goes on from."""
        found = self.standing
        if self.anew or found is None or found.state is State.done:
            return 0
        begun = found.record is not None and found.record.attempts
        return len(found.folder.journal.read()) if begun else 0

    def entry(self) -> ManifestCell:
        """What of it is written to `sweep.json`."""
        ds, computed = ds_of(self.config), computed_with(self.config)
        return ManifestCell(
            labels=self.point.labels,
            cell_id=self.cell_id,
            config_id=self.config_id,
            baseline_id=config_id(baseline_of(self.config)),
            ds_id=None if ds is None else config_id(ds),
            classifiers=classifiers_of(self.config),
            classes=self.config.data.num_classes or 0,
            seed=self.config.seed,
            method=self.method,
            overrides=list(self.point.overrides),
            computed=computed,
            setting_id=setting_id(self.config) if computed else "",
        )
