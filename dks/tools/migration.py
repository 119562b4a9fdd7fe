"""`dks runs migrate`.

Runs of an earlier version get the ids of today, where the same configuration still computes the
same.

Version 2 of the identity made one cell of configurations that compute the same, knows data by its
content, and computes a few things in another way. A run keeps its files; its configuration, its
record and the name of its folder are written anew, and the sweeps and the stores that know it by
its old id are told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.identity import SCHEMA_VERSION, canonical, cell_id, config_id, drops
from dks.config.methods import PAPERS, method_of
from dks.config.schema import (
    Config,
    Data,
    DesignKind,
    NoiseKind,
    Precision,
    Recipe,
    Schedule,
    TeacherKind,
)
from dks.data import describe
from dks.data.version1 import old_fingerprint
from dks.models.weights import stated_input
from dks.objectives.teacher import torchvision_input, torchvision_weights
from dks.runs.earlier import earlier_runs
from dks.runs.lock import Busy, alone
from dks.runs.record import Record, RunFolder
from dks.runs.states import Standing, State, look_up, survey
from dks.sweeps import manifest
from dks.sweeps.manifest import Manifest, ManifestCell
from dks.tracking.sync import sync
from dks.tracking.upload_state import UploadState


@dataclass(frozen=True)
class Fate:
    """What becomes of one run."""

    cell_id: str  # as it was
    now: str | None = None  # its id of today; None: it has none
    why: str = ""  # its folder stays as it is


@dataclass(frozen=True)
class Report:
    """What became of all of them."""

    runs_dir: str
    fates: Sequence[Fate]
    sweeps: Sequence[str] = ()  # whose tables know the runs by their new ids
    untold: Sequence[str] = ()  # what stores could not be told, a line each

    def lines(self, dry: bool) -> Iterator[str]:
        """What a person reads."""
        if not self.fates:
            yield f"all runs in {self.runs_dir} have ids of today"
            return
        moved = [fate for fate in self.fates if not fate.why]
        would = "would get" if dry else "got"
        yield (
            f"{len(moved)} of {len(self.fates)} runs of an earlier version in {self.runs_dir} "
            f"{would} ids of today"
        )
        for fate in self.fates:
            yield (
                f"  {fate.cell_id} stays as it is: {fate.why}"
                if fate.why
                else f"  {fate.cell_id} -> {fate.now}"
            )
        if self.sweeps:
            yield f"sweeps that know them: {', '.join(self.sweeps)}"
        yield from (f"not told: {line}" for line in self.untold)

    def to_json(self) -> str:
        """The same for programs."""
        return json.dumps(asdict(self), indent=1)


class _Stays(Exception):
    """A run keeps its old id, for this reason."""


def migrate(
    runs_dir: str,
    results_dir: str,
    dry: bool = False,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Report:
    """Give every run of an earlier version its id of today.

    One that was interrupted goes on with the next call.

    Args:
        dry: only say what would be done.
        track: shows how many runs have been looked at.

    Raises:
        RequestError: `runs_dir` or a record in it cannot be read.
        OSError: a folder cannot be written.
    """
    names = [folder.cell_id for folder in (*earlier_runs(runs_dir), *_half_moved(runs_dir))]
    standings = survey(runs_dir, names)
    # of several that are one, a finished one
    names.sort(key=lambda name: (standings[name].state is not State.done, name))
    movers = _Movers(runs_dir, standings)
    fates = [movers.fate(name) for name in track(names)]
    if dry:
        return Report(runs_dir, fates)
    # Before any folder has another name: whoever is killed in between goes on from there.
    sweeps = [
        name for name in manifest.known(results_dir) if _tell_sweep(results_dir, name, movers)
    ]
    fates = [movers.move(fate) for fate in fates]
    moved = {fate.now for fate in fates if fate.now is not None and not fate.why}
    told = sync(runs_dir, moved).runs if moved else ()
    return Report(
        runs_dir,
        fates,
        sweeps,
        [f"{run.cell_id}: {run.problem}; dks sync tells it" for run in told if run.problem],
    )


@dataclass
class _Movers:
    """The runs of one folder, each looked at once; a student follows its teacher."""

    runs_dir: str
    standings: Mapping[str, Standing]  # of those of an earlier version
    cells: dict[str, str] = field(default_factory=dict)  # old id -> the one of today
    configs: dict[str, str] = field(default_factory=dict)  # the same of `config_id`
    _fates: dict[str, Fate] = field(default_factory=dict)
    _present: dict[str, Config] = field(default_factory=dict)  # id of today -> the configuration
    _data: dict[str, Data | _Stays] = field(default_factory=dict)

    def fate(self, old: str) -> Fate:
        """What becomes of this run."""
        if old not in self._fates:
            # a configuration that somebody wrote may say so
            self._fates[old] = Fate(old, why="it is its own teacher")
            try:
                self._fates[old] = self._decided(old)
            except (_Stays, RequestError) as reason:
                self._fates[old] = Fate(old, why=str(reason))
        return self._fates[old]

    def move(self, fate: Fate) -> Fate:
        """Write it anew, under its new name."""
        if fate.why or fate.now is None:
            return fate
        folder, config = RunFolder(Path(self.runs_dir) / fate.cell_id), self._present[fate.now]
        if not folder.claim():
            return replace(fate, why="a process works on it; end it, or wait for it, and try again")
        try:
            with alone(folder.path):
                record = folder.mend_record()
                assert record is not None, "it has been read"
                if (note := UploadState.read(folder)) is not None:
                    replace(note, cell_id=note.cell_id or fate.cell_id).write(folder)
                folder.write_config(config)
                folder.write_record(_renamed(record, config))
                folder.path.rename(folder.path.with_name(fate.now))
        except Busy as busy:
            return replace(fate, why=f"{busy}; try again")
        finally:
            folder.release()
        return fate

    def _decided(self, old: str) -> Fate:
        """
        Raises:
            _Stays, RequestError: it has no id of today, or none that can be told.
        """
        standing = self.standings.get(old)
        if standing is None:  # a teacher of today's version
            self._present[old] = RunFolder(Path(self.runs_dir) / old).read_config()
            return Fate(old, old)
        if standing.state in (State.running, State.queued):
            raise _Stays("it is under way")
        config, record = self._config(standing.folder), standing.record
        assert record is not None, "it is of a version"
        now = cell_id(config)
        there = (
            now not in self._present and now != old and standing.folder.path.with_name(now).exists()
        )
        if (
            there
            and standing.state is State.done
            and look_up(self.runs_dir, now)[0] is not State.done
        ):
            raise _Stays(
                f"{now} computes the same, and is there, but not done; remove that folder, and "
                f"try again"
            )
        self.cells[old], self.configs[record.config_id] = now, config_id(config)
        if there or now in self._present:
            return Fate(old, now, f"{now} computes the same, and is there")
        self._present[now] = config
        return Fate(old, now)

    def _config(self, folder: RunFolder) -> Config:
        """Its configuration as it is spelled today.

        Raises:
            _Stays: today it computes something else, or that cannot be told.
            RequestError: it cannot be read.
        """
        config = folder.read_config()
        if (reason := next(_otherwise(config), None)) is not None:
            raise _Stays(reason)
        config = replace(config, data=self._described(config.data))
        if config.kd_teacher.kind is not TeacherKind.none:
            config = self._taught(config)
        return canonical(config)

    def _described(self, data: Data) -> Data:
        key = repr(data)
        if key not in self._data:
            try:
                self._data[key] = _described(data)
            except RequestError as error:
                self._data[key] = _Stays(f"its data tells no more: {error}")
            except _Stays as reason:
                self._data[key] = reason
        found = self._data[key]
        if isinstance(found, _Stays):
            raise found
        return found

    def _taught(self, config: Config) -> Config:
        """With the id of today of its teacher, whose images were those of the student, as all were
        then.
        """
        kd = config.kd_teacher
        if kd.cell is not None:
            there = (Path(self.runs_dir) / kd.cell / "record.json").exists()
            now = self.fate(kd.cell).now if there else None
            if now is None or now not in self._present:
                raise _Stays(f"its teacher {kd.cell} has no id of today")
            alike = _shown(self._present[now]) == _shown(config)
            config = replace(config, kd_teacher=replace(kd, cell=now))
        elif kd.kind is TeacherKind.torchvision:
            alike = stated_input(config) == torchvision_input(torchvision_weights(config))
        else:
            alike = True  # a file is shown what its student is shown, unless something else is said
        if not alike:
            raise _Stays(
                "its teacher saw images that were normalised or sized as those of the student, "
                "and sees its own today"
            )
        return config


def _otherwise(config: Config) -> Iterator[str]:
    """What version 1 computed of it in another way."""
    if config.recipe.uniform_gamma and config.aux_design.kind != DesignKind.none:
        yield "recipe.uniform_gamma: the first weights of the backbone depended on the branches"
    if config.data.holdout and config.label_noise.kind is not NoiseKind.none:
        yield "data.holdout: labels were corrupted before images were held out"
    if config.recipe.schedule is Schedule.step and _drops_then(config.recipe) != _drops_now(
        config.recipe
    ):
        yield (
            f"recipe.milestones: of {config.recipe.epochs} epochs a fraction was rounded up by "
            f"one too many"
        )
    if config.compute.precision is Precision.fp16 and config.recipe.momentum:
        yield "compute.precision=fp16: the momentum of a skipped first step was not defined"
    students = config.kd_teacher.students
    if len(students) > 2 and students != sorted(students):
        yield "kd_teacher.students: their terms were added in the order of the list"
    if "@" in config.backbone.family and config.aux_design.kind != DesignKind.none:
        yield (
            "backbone.family: branches of an extension may have got what a later layer had "
            "changed in place"
        )


def _drops_then(recipe: Recipe) -> list[int]:
    marks = [
        math.ceil(mark * recipe.epochs) if mark < 1 else math.ceil(mark)
        for mark in recipe.milestones
    ]
    return [min(mark, recipe.epochs) for mark in marks]


def _drops_now(recipe: Recipe) -> list[int]:
    return [min(mark, recipe.epochs) for mark in drops(recipe)]


def _described(data: Data) -> Data:
    """Known by its content, where the files are those of then and are seen as they were.

    Raises:
        _Stays, RequestError: they are not, or are not here.
    """
    if data.source in ("imagefolder", "parquet"):
        if old_fingerprint(data) != data.fingerprint:
            raise _Stays(
                f"the files in data.root={data.root} are not those of then, or are not read as "
                f"they were"
            )
        return describe(replace(data, fingerprint=None))
    found = describe(replace(data, fingerprint=None), absent=[])
    if found.fingerprint != data.fingerprint:
        raise _Stays(f"data.source={data.source} has another fingerprint today")
    return found


def _shown(config: Config) -> tuple[object, ...]:
    """What decides in which form a network saw its images.

    It is stated, or measured on those that it was trained on.
    """
    if (stated := stated_input(config)) is not None:
        return (stated,)
    data, recipe = config.data, config.recipe
    drawn_by = config.seed if data.holdout else None
    files = data.source, data.fingerprint, data.image_size, data.train_images, data.options
    return recipe.mean or data.mean, recipe.std or data.std, *files, data.holdout, drawn_by


def _renamed(record: Record, config: Config) -> Record:
    method = method_of(config) if record.method in PAPERS else record.method
    return replace(
        record,
        cell_id=cell_id(config),
        config_id=config_id(config),
        method=method,
        schema_version=SCHEMA_VERSION,
    )


def _half_moved(runs_dir: str) -> list[RunFolder]:
    """Runs that were written anew and whose folders still have their old names, for somebody was
    killed in between.
    """
    found = []
    for folder in map(RunFolder, sorted(Path(runs_dir).glob("[0-9a-f]" * 12))):
        record = folder.read_record() if (folder.path / "record.json").exists() else None
        if record is not None and not folder.record_is_damaged and record.cell_id != folder.cell_id:
            found.append(folder)
    return found


def _tell_sweep(results_dir: str, name: str, movers: _Movers) -> bool:
    """Does the sweep know one of them? Its cells are called by their new ids then."""
    try:
        found = manifest.read(results_dir, name)
    except RequestError:  # damaged: its command writes it anew
        return False
    if (
        Path(found.runs_dir).resolve() != Path(movers.runs_dir).resolve()
        or not {*found.cell_ids} & movers.cells.keys()
    ):
        return False
    manifest.write(_with(found, movers.cells, movers.configs), results_dir)
    return True


def _with(found: Manifest, cells: Mapping[str, str], configs: Mapping[str, str]) -> Manifest:
    def renamed(cell: ManifestCell) -> ManifestCell:
        return replace(
            cell,
            cell_id=cells.get(cell.cell_id, cell.cell_id),
            config_id=configs.get(cell.config_id, cell.config_id),
            baseline_id=configs.get(cell.baseline_id, cell.baseline_id),
            ds_id=None if cell.ds_id is None else configs.get(cell.ds_id, cell.ds_id),
            setting_id=configs.get(cell.setting_id, cell.setting_id),
        )

    return replace(
        found,
        cells=list(map(renamed, found.cells)),
        selection=list(map(renamed, found.selection)),
        choices=[
            {value: [cells.get(each, each) for each in its] for value, its in choice.items()}
            for choice in found.choices
        ],
        differs={configs.get(setting, setting): lines for setting, lines in found.differs.items()},
    )
