"""`dks sync`.

What the folders of runs have and their MLflow store has not is sent, and runs that died are said to
have.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.config.secrets import without_password
from dks.runs.disk import FORBIDDEN
from dks.runs.record import RunFolder, Status
from dks.runs.states import Standing, State, survey
from dks.runs.superseded import executions
from dks.tracking.addresses import point_at, warn_if_exposed
from dks.tracking.note import RUNNING, Note
from dks.tracking.parents import status_of, tell_sweep
from dks.tracking.shipment import DeletedRun, Draw, Shipment
from dks.tracking.store import Unavailable, all_cells, open_named, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEAD = (State.killed, State.failed, State.lost)


@dataclass(frozen=True)
class Sent:
    """What came of one run."""

    cell_id: str
    uri: str | None  # of the store; None with tracking=off
    points: int = 0  # that were sent
    status: str | None = None  # as MLflow has it now
    # the store was told something besides points: that the run is there, goes on or ended
    told: bool = False
    problem: str | None = None
    superseded: str | None = None  # the number of an execution whose place another one has taken


@dataclass(frozen=True)
class Report:
    """What came of all of them."""

    runs: Sequence[Sent]

    @property
    def failed(self) -> bool:
        return any(run.problem for run in self.runs)

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        for uri in dict.fromkeys(run.uri for run in self.runs):
            runs = [run for run in self.runs if run.uri == uri]
            if uri is None:
                yield f"tracking=off: {_count(runs)} left alone; --store URI sends them"
                continue
            changed = [run for run in runs if run.points or run.told]
            problems = [run for run in runs if run.problem]
            complete = sum(not (run.points or run.told or run.problem) for run in runs)
            line = f"{uri}: {sum(run.points for run in runs):,} points of {_count(changed)} sent"
            yield line + (f"; {_count(complete)} complete already" if complete else "")
            for run in changed:
                yield f"  {run.cell_id}  {run.points:,} points  {run.status}" + (
                    "  superseded" if run.superseded else ""
                )
            for problem, members in _grouped(problems).items():
                yield (
                    f"  {_count(members)} not sent "
                    f"({', '.join(members[:3])}{', ...' if len(members) > 3 else ''}): {problem}"
                )

    def to_json(self) -> str:
        """The same for programs."""
        return json.dumps(
            {
                "points": sum(run.points for run in self.runs),
                "runs": [asdict(run) for run in self.runs],
            },
            indent=1,
        )


def sync(
    runs_dir: str,
    cell_ids: Collection[str] | None = None,
    target: Tracking | None = None,
    draw: Draw | None = None,
    track: Callable[[Sequence[RunFolder]], Iterable[RunFolder]] = iter,
) -> Report:
    """Send what is missing; done again, it sends nothing.

    Runs under way are sent as well, without their end.

    Args:
        cell_ids: of the runs; None: all in `runs_dir`.
        target: the store to send to; None: the one that each run's configuration names.
        draw: makes the pictures that are kept beside a run.
        track: shows how many runs have been looked at.

    Raises:
        RequestError: `runs_dir` cannot be read, or there is no run in it.
    """
    begun = {path.parent.name for path in Path(runs_dir).glob("*/record.json")}
    replaced = [
        each
        for path in sorted(Path(runs_dir).glob("*/superseded"))
        for each in executions(RunFolder(path.parent))
    ]
    known = sorted(begun | {folder.cell_id for folder in replaced})
    chosen = known if cell_ids is None else [cell_id for cell_id in known if cell_id in cell_ids]
    if not chosen:
        raise RequestError(
            f"there is no run to send in runs_dir={runs_dir}; --runs-dir names another folder"
        )
    if target is not None:
        point_at(str(target.uri))
    standings = close_dead(survey(runs_dir, chosen))
    looked_at = {standing.folder: standing for standing in standings.values()}
    looked_at |= {folder: _superseded(folder) for folder in replaced if folder.cell_id in chosen}
    stores: dict[tuple[str, str], _Target] = {}
    sent = []
    prepared = set[tuple[str, str, str]]()
    for folder in track(list(looked_at)):
        standing = looked_at[folder]
        if standing.record is None or not standing.record.attempts:
            continue  # it never began
        try:
            tracking = target or folder.read_config().tracking
        except RequestError as error:
            sent.append(Sent(folder.cell_id, None, problem=str(error)))
            continue
        if tracking.kind is TrackingKind.off:
            sent.append(Sent(folder.cell_id, None))
            continue
        key = str(tracking.uri), tracking.experiment
        store = stores.setdefault(key, _Target(tracking))
        if (sweep := standing.record.sweep) is not None and (*key, sweep) not in prepared:
            prepared.add((*key, sweep))
            store.tell_sweep(sweep, standings)
        number = folder.path.name if folder.is_superseded else None
        sent.append(replace(store.send(standing, draw), superseded=number))
    return Report(sent)


def _superseded(folder: RunFolder) -> Standing:
    """An execution whose place another one has taken; it is over."""
    record = folder.read_record()
    return Standing(State.missing if record is None else State(record.status.value), folder, record)


def close_dead(standings: Mapping[str, Standing]) -> dict[str, Standing]:
    """The same, with the records completed of runs that could not do so themselves.

    Their process died on this machine without a word, or their job ended, which the scheduler
    forgets soon.
    """
    return {cell_id: _closed(standing) for cell_id, standing in standings.items()}


def tell_dead(standings: Mapping[str, Standing]) -> list[str]:
    """Tell MLflow of runs that died, which it has as running.

    Returns what went wrong, in lines for a person.
    """
    stores: dict[tuple[str, str], _Target] = {}
    problems = []
    for standing in standings.values():
        note = Note.read(standing.folder) if standing.state in DEAD else None
        if note is None or note.status != RUNNING:
            continue
        try:
            tracking = standing.folder.read_config().tracking
        except RequestError as error:
            problems.append(str(error))
            continue
        if tracking.uri == note.uri:
            sent = stores.setdefault(
                (note.uri, tracking.experiment), _Target(tracking, bulk=False)
            ).send(standing, None)
            problems += [sent.problem] if sent.problem else []
    return [
        f"MLflow was not told of runs that died: {problem}; dks sync tells it"
        for problem in dict.fromkeys(problems)
    ]


class _Target:
    """A store that runs are sent to.

    After it could not be opened, or has failed twice running, it is not asked again.
    """

    def __init__(self, tracking: Tracking, bulk: bool = True) -> None:
        """With `bulk`, all runs are asked for at once."""
        self.tracking, self.name = tracking, without_password(str(tracking.uri))
        self._bulk = bulk
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._known: dict[str, Any] = {}
        self._parents: dict[tuple[str, str], str] = {}
        self._problem: str | None = None
        self._failures = 0  # since it last took something

    def send(self, standing: Standing, draw: Draw | None) -> Sent:
        cell_id, folder = standing.folder.cell_id, standing.folder
        try:
            client = self._open()
            shipment = Shipment(
                folder, client, str(self.tracking.uri), self._experiment, self._known, self._parents
            )
            before = Note.read(folder)
            points = shipment.send(
                live=standing.state is State.running, dead=standing.state in DEAD, check=True
            )
            pictured = draw is not None and shipment.picture(draw)
            after = Note.read(folder)
        except DeletedRun as error:
            return Sent(cell_id, self.name, problem=f"it was deleted in MLflow; {error}")
        except Exception as error:  # of as many kinds as there are stores and networks
            self._failures += 1
            if self._client is None or self._failures > 1:
                self._problem = self._problem or reason(error)
            return Sent(cell_id, self.name, problem=reason(error))
        self._failures = 0
        assert after is not None, "it was sent"
        told = before is None or _known(before) != _known(after)
        return Sent(cell_id, self.name, points, after.status, told or pictured)

    def tell_sweep(self, sweep: str, standings: Mapping[str, Standing]) -> None:
        """The parent is there before its cells are sent, and stands as they do."""
        states = {
            each.state
            for each in standings.values()
            if each.record is not None and each.record.sweep == sweep
        }
        names = {State.lost: Status.killed, State.missing: Status.killed}
        status = status_of({names.get(state) or Status(state.value) for state in states})
        try:
            tell_sweep(self._open(), self._experiment, sweep, status)
        except Exception as error:  # it is said with the first of its runs
            self._problem = self._problem or reason(error)

    def _open(self) -> MlflowClient:
        if self._problem is not None:
            raise Unavailable(self._problem)
        if self._client is None:
            warn_if_exposed(str(self.tracking.uri))
            self._experiment, client = open_named(self.tracking)
            self._known = _runs(client, self._experiment) if self._bulk else {}
            self._client = client
        return self._client


def _runs(client: MlflowClient, experiment: str) -> dict[str, Any]:
    """All runs of an experiment that are a cell, deleted ones included, by their ids."""
    from mlflow.entities import ViewType

    return {run.info.run_id: run for run in all_cells(client, experiment, ViewType.ALL)}


def _closed(standing: Standing) -> Standing:
    record = standing.record
    if record is None or standing.state not in (State.failed, State.killed):
        return standing
    if standing.job is not None:
        error = {"type": "JobEnded", "message": f"job {standing.job_id} ended: {standing.job}"}
        status, expected = Status(standing.state.value), {Status.queued, Status.running}
    else:
        error = {"type": "Died", "message": "its process ended without a word"}
        status, expected = Status.killed, {Status.running}
    try:
        closed = record.status in expected and standing.folder.close(status, error, expected)
    except OSError as problem:
        if problem.errno not in FORBIDDEN:
            raise
        return standing  # another user's, who will note it
    return replace(standing, record=standing.folder.read_record()) if closed else standing


def _known(note: Note) -> tuple[object, ...]:
    """What a store knows of a run besides points and pictures."""
    return note.run_id, note.status, note.ended, note.superseded, note.cell_id


def _count(runs: int | Sequence[object]) -> str:
    number = runs if isinstance(runs, int) else len(runs)
    return "1 run" if number == 1 else f"{number} runs"


def _grouped(runs: Iterable[Sent]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        found[str(run.problem)].append(run.cell_id)
    return found
