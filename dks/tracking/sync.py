"""`dks sync`: what the folders of runs have and MLflow has not is uploaded.

Runs that died are said to have.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.runs.disk import FORBIDDEN
from dks.runs.record import RunFolder, Status
from dks.runs.states import Standing, State, survey
from dks.runs.superseded import executions
from dks.tracking.addresses import point_at
from dks.tracking.destination import Destination, status_of
from dks.tracking.store import Unavailable
from dks.tracking.upload import Draw
from dks.tracking.upload_loop import Run, Store, Uploaded, count, upload_run
from dks.tracking.upload_state import RUNNING, UploadState

DEAD = (State.killed, State.failed, State.lost)


@dataclass(frozen=True)
class Report:
    """What came of all runs."""

    runs: Sequence[Uploaded]

    @property
    def failed(self) -> bool:
        return any(run.problem for run in self.runs)

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        for uri in dict.fromkeys(run.uri for run in self.runs):
            runs = [run for run in self.runs if run.uri == uri]
            if uri is None:
                yield f"tracking=off: {count(runs)} left alone; --store URI sends them"
                continue
            changed = [run for run in runs if run.points or run.told]
            complete = [run for run in runs if not (run.points or run.told or run.problem)]
            line = f"{uri}: {sum(run.points for run in runs):,} points of {count(changed)} sent"
            yield line + (f"; {count(complete)} complete already" if complete else "")
            for run in changed:
                end = "  superseded" if run.superseded else ""
                yield f"  {run.cell_id}  {run.points:,} points  {run.status}{end}"
            problems: dict[str, list[str]] = defaultdict(list)
            for run in runs:
                if run.problem:
                    problems[run.problem].append(run.cell_id)
            for problem, cells in problems.items():
                names = ", ".join(cells[:3] + ["..."] * (len(cells) > 3))
                yield f"  {count(cells)} not sent ({names}): {problem}"

    def to_json(self) -> str:
        """The same for programs."""
        points, runs = sum(run.points for run in self.runs), [asdict(run) for run in self.runs]
        return json.dumps({"points": points, "runs": runs}, indent=1)


def sync(
    runs_dir: str,
    cell_ids: Collection[str] | None = None,
    target: Tracking | None = None,
    draw: Draw | None = None,
    track: Callable[[Sequence[RunFolder]], Iterable[RunFolder]] = iter,
) -> Report:
    """Upload what is missing; done again, it sends nothing.

    Runs under way are uploaded as well, without their end.

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
    stores: dict[tuple[str, str], Store] = {}
    sweeps = set[tuple[str, str, str]]()
    uploaded = []
    for folder in track(list(looked_at)):
        standing = looked_at[folder]
        if standing.record is None or not standing.record.attempts:
            continue  # it never began
        try:
            tracking = target or folder.read_config().tracking
        except RequestError as error:
            uploaded.append(Uploaded(folder.cell_id, None, problem=str(error)))
            continue
        if tracking.kind is TrackingKind.off:
            uploaded.append(Uploaded(folder.cell_id, None))
            continue
        key = str(tracking.uri), tracking.experiment
        store = stores.setdefault(key, Store(tracking, once=True, bulk=True))
        sweep = standing.record.sweep
        if sweep is not None and (*key, sweep) not in sweeps:
            sweeps.add((*key, sweep))  # it is there before its cells
            status = _sweep_status(sweep, standings)
            with suppress(Unavailable):  # which is said with the runs
                store.attempt(partial(Destination.set_sweep_status, sweep=sweep, status=status))
        uploaded.append(_upload(standing, store, draw))
    return Report(uploaded)


def tell_dead(standings: Mapping[str, Standing]) -> list[str]:
    """Upload the end of runs that died, which MLflow has as running.

    Returns what went wrong, in lines for a person.
    """
    stores: dict[tuple[str, str], Store] = {}
    problems: list[str | None] = []
    for standing in standings.values():
        state = UploadState.read(standing.folder) if standing.state in DEAD else None
        if state is None or state.status != RUNNING:
            continue
        try:
            tracking = standing.folder.read_config().tracking
        except RequestError as error:
            problems.append(str(error))
            continue
        if tracking.uri == state.uri:
            key = state.uri, tracking.experiment
            store = stores.setdefault(key, Store(tracking, once=True))
            problems.append(_upload(standing, store).problem)
    return [
        f"MLflow was not told of runs that died: {problem}; dks sync tells it"
        for problem in dict.fromkeys(problems)
        if problem
    ]


def close_dead(standings: Mapping[str, Standing]) -> dict[str, Standing]:
    """The same, with the records completed of runs that could not do so themselves.

    Their process died on this machine without a word, or their job ended, which the scheduler
    forgets soon.
    """
    return {cell_id: _closed(standing) for cell_id, standing in standings.items()}


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


def _upload(standing: Standing, store: Store, draw: Draw | None = None) -> Uploaded:
    run = Run(standing.folder, store, over=standing.state is not State.running)
    return upload_run(run, dead=standing.state in DEAD, check=True, draw=draw)


def _superseded(folder: RunFolder) -> Standing:
    """An execution whose place another one has taken; it is over."""
    record = folder.read_record()
    return Standing(State.missing if record is None else State(record.status.value), folder, record)


def _sweep_status(sweep: str, standings: Mapping[str, Standing]) -> str:
    """As its cells stand."""
    states = {
        each.state
        for each in standings.values()
        if each.record is not None and each.record.sweep == sweep
    }
    names = {State.lost: Status.killed, State.missing: Status.killed}
    return status_of({names.get(state) or Status(state.value) for state in states})
