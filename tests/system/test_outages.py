"""Runs whose MLflow server is killed, gone, slow or says no.

They end in their normal time, and MLflow gets their journals.

All of it is real: `python train.py` and `dks sync`, an MLflow server on PostgreSQL, and a network
    between them that fails.
"""

from __future__ import annotations

import secrets
import statistics
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from dks.runs.record import RunFolder
from dks.tracking.database import TIMEOUT
from tests.conftest import ROOT, TINY, queued, sampled, start
from tests.support.leaks import assert_nowhere, watching_command_lines
from tests.support.tracking_services import (
    Certificate,
    FaultyProxy,
    MlflowServer,
    PostgreSQL,
    answers,
    assert_holds_journal,
    mlflow_client,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DRAIN = 5  # seconds that a run waits at its end
# An epoch takes a tenth of a second or two on a free core.
WORK = (
    *TINY,
    "data.train_images=1024",
    "method=baseline",
    "tracking=server",
    f"tracking.drain_seconds={DRAIN}",
)


@pytest.fixture(scope="module")
def running(
    postgresql_server: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    with MlflowServer(
        tmp_path_factory.mktemp("server"), postgresql_server.new_database()
    ) as server:
        yield server


@pytest.fixture
def server(running: MlflowServer) -> MlflowServer:
    """An MLflow server on PostgreSQL; it runs, whatever became of it in the test before."""
    if not answers(f"{running.uri}/health"):
        running.kill()
        running.start()
    return running


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test; they share the store."""
    return str(request.node.name)


# --- commands


@dataclass
class Command:
    """`python ARGUMENTS` in a folder, with more variables in its environment."""

    folder: Path
    arguments: Sequence[str]
    variables: dict[str, str]


@dataclass
class Ended:
    status: int
    said: str  # on both outputs
    seconds: float


def execute(command: Command) -> Ended:
    begun = time.monotonic()
    command.folder.mkdir(exist_ok=True)
    process = start(command.arguments, command.folder, OMP_NUM_THREADS="1", **command.variables)
    out, err = process.communicate(timeout=500)
    return Ended(process.returncode, out + err, time.monotonic() - begun)


def side_by_side(commands: dict[str, Command]) -> dict[str, Ended]:
    with ThreadPoolExecutor(len(commands)) as pool:
        return dict(zip(commands, pool.map(execute, commands.values()), strict=True))


def training(folder: Path, uri: str, experiment: str, *overrides: str, **variables: str) -> Command:
    where = (f"tracking.uri={uri}", f"tracking.experiment={experiment}")
    # All as a sweep: where nothing is swept that is the same as a single run.
    return Command(folder, [str(ROOT / "train.py"), "-m", *WORK, *where, *overrides], variables)


def sync(folder: Path, **variables: str) -> str:
    ended = execute(Command(folder, ["-m", "dks", "sync"], variables))
    assert ended.status == 0, ended.said
    return ended.said


def until(condition: Callable[[], object], what: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s; {what}"
        time.sleep(0.1)


# --- runs


def runs(folder: Path) -> list[RunFolder]:
    return sorted(
        (RunFolder(path) for path in (folder / "runs").glob("*")), key=lambda run: run.cell_id
    )


def epochs(run: RunFolder) -> int:
    return len(run.journal.read())


def times(run: RunFolder) -> list[float]:
    """When each epoch was written down."""
    return [datetime.fromisoformat(entry.time).timestamp() for entry in run.journal.read()]


def training_seconds(run: RunFolder) -> float:
    """From the first epoch's end to the last one's."""
    return times(run)[-1] - times(run)[0]


def pace(run: RunFolder) -> float:
    """Seconds an epoch."""
    return statistics.median(later - earlier for earlier, later in pairwise(times(run)))


def pauses(run: RunFolder, begin: float, end: float) -> float:
    """The longest time without a new epoch, of a run that was training between two times, both in
    seconds since 1970.
    """
    return max(
        later - earlier
        for earlier, later in pairwise(times(run))
        if later > begin and earlier < end
    )


def check_mlflow(uri: str, run: RunFolder, status: str = "FINISHED") -> None:
    """It holds the journal, and knows how the run ended."""
    client = mlflow_client(uri)
    assert client.get_run(assert_holds_journal(client, run.path)).info.status == status


def check_nothing_is_left(folder: Path, **variables: str) -> None:
    lines = sync(folder, **variables).splitlines()
    assert lines and all(": 0 points of 0 runs sent" in line for line in lines), lines


# --- many at once

MANY, EPOCHS = sampled((16, 100), (6, 40))  # processes, epochs of the run of each
# What a run does, but for the training: its epochs as fast as the journal takes them.
JOURNALING = """
import os, sys, time
from pathlib import Path
from dks.runs.journal import now
from dks.runs.record import Attempt, RunFolder, Status
from dks.tracking.sender import sending
from dks.tracking.store import prepare

folder, signal = RunFolder(sys.argv[1]), Path(sys.argv[2])
config, record = folder.read_config(), folder.read_record()
print("ready", flush=True)
while not signal.exists():
    time.sleep(0.001)
prepare(config.tracking)
assert folder.claim()
record.status = Status.running
record.attempts.append(Attempt(now(), "here", os.getpid(), "cpu", 1))
folder.write_record(record)
with sending(config.tracking, print) as sender:
    sender.begin(folder.path)
    for epoch in range(1, int(sys.argv[3]) + 1):
        folder.journal.append(epoch, epoch, {f"test/metric_{number}": epoch + number / 7 for number in range(12)})
    record.status = Status.done
    record.attempts[-1].ended, record.attempts[-1].status = now(), "done"
    folder.write_record(record)
    sender.end(folder.path)
"""  # noqa: E501


def check_many_processes(folder: Path, *tracking: str) -> None:
    """They begin at the same moment, each with a run of its own, and the store gets every point of
    all of them once.
    """
    go, processes = folder / "go", []
    queue = [
        queued(folder, f"seed={seed}", "tracking.drain_seconds=120", *tracking)
        for seed in range(MANY)
    ]
    try:
        for run in queue:
            processes.append(start(["-c", JOURNALING, str(run.path), str(go), str(EPOCHS)], folder))
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        go.touch()
        for process in processes:
            out, err = process.communicate(timeout=400)
            assert process.returncode == 0, err
            assert out in ("", "sending the rest to MLflow, 120 s at most\n"), (
                "that is said where it takes more than a moment"
            )
            assert "tracking:" not in err, err
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for run in queue:
        assert epochs(run) == EPOCHS
        check_mlflow(str(run.read_config().tracking.uri), run)


def test_many_processes_fill_a_fresh_sqlite_store(in_folder: Path) -> None:
    check_many_processes(in_folder, "tracking=local")


def test_many_processes_fill_a_server_on_postgresql(
    server: MlflowServer, experiment: str, in_folder: Path
) -> None:
    check_many_processes(
        in_folder,
        "tracking=server",
        f"tracking.uri={server.uri}",
        f"tracking.experiment={experiment}",
    )


# --- outages


def test_a_server_killed_in_the_middle_of_runs(
    server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    (count, last), down = sampled((8, 60), (3, 90)), sampled(30, 10)  # runs, epochs; seconds
    sweep = [
        f"seed={','.join(map(str, range(count)))}",
        f"hydra.launcher.slots={count}",
        f"recipe.epochs={last}",
    ]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(execute, training(tmp_path, server.uri, experiment, *sweep))
        until(lambda: begun(tmp_path, count) or ended.done(), ended)
        assert not ended.done(), ended.result().said
        server.kill()
        killed, at = time.time(), [epochs(run) for run in runs(tmp_path)]
        time.sleep(down)
        server.start()
        back = time.time()
    assert ended.result().status == 0, ended.result().said
    assert max(at) < last, "they were in the middle"
    for run in runs(tmp_path):
        assert pauses(run, killed, back) < 3 * pace(run) + 2, "no epoch waited for the server"
    sync(tmp_path)
    for run in runs(tmp_path):
        check_mlflow(server.uri, run)
    check_nothing_is_left(tmp_path)


def begun(folder: Path, count: int) -> bool:
    """Have all these runs some epochs, and MLflow some of them?"""
    return len(runs(folder)) == count and all(
        run.mlflow_file.exists() and epochs(run) >= 3 for run in runs(folder)
    )


def test_runs_do_not_notice_a_network_that_fails(
    server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    faults: dict[str, dict[str, float]] = {
        "pass": {},
        "refuse": {},  # the server is down from beginning to end
        "drop": {"probability": 0.5},
        "delay": {"seconds": 0.5},
        "cut": {"probability": 0.5},
        "lose": {"probability": 0.5},
    }
    proxies = {kind: FaultyProxy(server.port, seed) for seed, kind in enumerate(faults)}
    commands = {}
    try:
        for seed, (kind, proxy) in enumerate(proxies.items()):
            proxy.__enter__()
            proxy.behave(kind, **faults[kind])
            commands[kind] = training(
                tmp_path, proxy.uri, experiment, f"seed={seed}", "recipe.epochs=30"
            )
        ended = side_by_side(commands)
        for kind, each in ended.items():
            assert each.status == 0, (kind, each.said)
        found = {list(faults)[run.read_config().seed]: run for run in runs(tmp_path)}
        normal = training_seconds(found["pass"])
        for kind, run in found.items():
            assert training_seconds(run) < 1.3 * normal + 1, kind
            # Before it begins, and at its end, it has some patience.
            assert ended[kind].seconds < ended["pass"].seconds + TIMEOUT + DRAIN + TIMEOUT + 5, kind
            assert kind == "refuse" or proxies[kind].counts[kind] > 0, "it met what it was to meet"
        for proxy in proxies.values():
            proxy.behave("pass")
        sync(tmp_path)
        for run in found.values():
            check_mlflow(server.uri, run)
        check_nothing_is_left(tmp_path)
    finally:
        for proxy in proxies.values():
            proxy.__exit__()


def test_a_database_that_stops_for_a_while(
    postgresql_server: PostgreSQL, server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(
            execute, training(tmp_path, server.uri, experiment, "recipe.epochs=120")
        )
        until(lambda: begun(tmp_path, 1) or ended.done(), ended)
        assert not ended.done(), ended.result().said
        postgresql_server.stop()
        try:
            stopped, at = time.time(), epochs(*runs(tmp_path))
            time.sleep(10)
        finally:
            postgresql_server.start()
        back = time.time()
    assert ended.result().status == 0, ended.result().said
    (run,) = runs(tmp_path)
    assert at < 120, "it was in the middle"
    assert pauses(run, stopped, back) < 3 * pace(run) + 2, "no epoch waited for the database"
    sync(tmp_path)
    check_mlflow(server.uri, run)
    check_nothing_is_left(tmp_path)


# --- secrets


def test_a_token_or_a_password_from_the_environment_opens_the_door_and_is_written_nowhere(
    server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    secret = secrets.token_hex(16)
    with (
        FaultyProxy(server.port, authorization=f"Bearer {secret}") as for_tokens,
        FaultyProxy(server.port, authorization=basic("ann", secret)) as for_passwords,
        watching_command_lines(secret) as seen,
    ):
        proxies = {"token": for_tokens, "password": for_passwords}
        variables = {"token": {"MLFLOW_TRACKING_TOKEN": secret}, "password": account("ann", secret)}
        ended = side_by_side(
            {
                kind: training(tmp_path / kind, proxies[kind].uri, experiment, **variables[kind])
                for kind in proxies
            }
        )
        for kind, proxy in proxies.items():
            assert (ended[kind].status, secret in ended[kind].said) == (0, False), ended[kind].said
            check_nothing_is_left(tmp_path / kind, **variables[kind], MLFLOW_TRACKING_URI=proxy.uri)
            (run,) = runs(tmp_path / kind)
            check_mlflow(server.uri, run)
            assert proxy.counts["denied"] == 0 < proxy.counts["pass"]
    assert not seen
    assert_nowhere(secret, tmp_path, server.folder)


def test_a_wrong_password_stops_no_run(
    server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    secret = secrets.token_hex(16)
    with FaultyProxy(server.port, authorization=basic("ann", secret)) as proxy:
        commands = {
            "wrong": training(
                tmp_path, proxy.uri, experiment, "seed=1", **account("ann", f"not-{secret}")
            ),
            "none": training(tmp_path, proxy.uri, experiment, "seed=2"),
        }
        for each in side_by_side(commands).values():
            assert (each.status, secret in each.said) == (0, False), each.said
            check_said(each, "401", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        sync(tmp_path, **account("ann", secret), MLFLOW_TRACKING_URI=proxy.uri)
        for run in runs(tmp_path):
            check_mlflow(server.uri, run)
    assert_nowhere(secret, tmp_path, server.folder)


def check_said(ended: Ended, *parts: str) -> None:
    """It is told before the runs begin, and what to do at the end.

    A line each, and nothing else.
    """
    lines = [line for line in ended.said.splitlines() if line.startswith("tracking:")]
    assert len(lines) == 2, ended.said
    assert all(part in lines[0] for part in parts), lines
    assert all("dks sync" in line for line in lines), lines
    assert "Traceback" not in ended.said


def test_a_run_whose_password_is_taken_back_goes_on(
    server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    secret = secrets.token_hex(16)
    with (
        FaultyProxy(server.port, authorization=basic("ann", secret)) as proxy,
        ThreadPoolExecutor(1) as pool,
    ):
        ours = account("ann", secret)
        ended = pool.submit(
            execute, training(tmp_path, proxy.uri, experiment, "recipe.epochs=60", **ours)
        )
        until(lambda: begun(tmp_path, 1) or ended.done(), ended)
        assert not ended.done(), ended.result().said
        proxy.authorization = basic("ann", "another")
        assert ended.result().status == 0, ended.result().said
        assert (
            len(why := [line for line in ended.result().said.splitlines() if "401" in line]) == 1
        ), why
        assert "dks sync" in why[0]
        proxy.authorization = basic("ann", secret)
        sync(tmp_path, **ours, MLFLOW_TRACKING_URI=proxy.uri)
        (run,) = runs(tmp_path)
        check_mlflow(server.uri, run)
    assert_nowhere(secret, tmp_path, server.folder)


@pytest.mark.usefixtures("basic_auth")
def test_mlflows_own_access_control(experiment: str, tmp_path: Path) -> None:
    secret = secrets.token_hex(16)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    here = tmp_path / "here"
    with (
        MlflowServer(tmp_path / "server", store, authentication=("ann", secret)) as server,
        watching_command_lines(secret) as seen,
    ):
        known = execute(training(here, server.uri, experiment, **account("ann", secret)))
        assert (known.status, secret in known.said) == (0, False), known.said
        check_nothing_is_left(here, **account("ann", secret), MLFLOW_TRACKING_URI=server.uri)
        (run,) = runs(here)
        wrong = execute(
            training(here, server.uri, experiment, "seed=1", **account("ann", f"not-{secret}"))
        )
        assert (wrong.status, secret in wrong.said) == (0, False), wrong.said
        check_said(wrong, "401")
        assert not seen
    check_mlflow(store, run)
    assert_nowhere(secret, here, server.artifacts)


def account(user: str, password: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}


def basic(user: str, password: str) -> str:
    """What HTTP's header of basic authentication says."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


# --- TLS


def test_a_certificate_must_be_trusted(
    server: MlflowServer, experiment: str, tmp_path: Path
) -> None:
    certificate = Certificate(tmp_path)
    with FaultyProxy(server.port, tls=certificate.context) as proxy:
        trusting = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate.path)}
        ended = side_by_side(
            {
                "trusted": training(tmp_path / "trusted", proxy.uri, experiment, **trusting),
                "untrusted": training(tmp_path / "untrusted", proxy.uri, experiment),
                "unverified": training(
                    tmp_path / "unverified",
                    proxy.uri,
                    experiment,
                    MLFLOW_TRACKING_INSECURE_TLS="true",
                ),
            }
        )
        for kind in ("trusted", "untrusted"):
            assert ended[kind].status == 0, ended[kind].said
        check_said(ended["untrusted"], "certificate", "MLFLOW_TRACKING_SERVER_CERT_PATH")
        sync(tmp_path / "untrusted", **trusting)
        for kind in ("trusted", "untrusted"):
            (run,) = runs(tmp_path / kind)
            check_mlflow(server.uri, run)
    assert ended["unverified"].status == 2, "passwords would go to whoever answers"
    assert not runs(tmp_path / "unverified")
