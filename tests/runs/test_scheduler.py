"""What SLURM's commands print, read without a SLURM; how cells become arrays.

Requests that are refused.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from dks.config.errors import RequestError
from dks.runs.handover import array_name, recover
from dks.runs.launches import LaunchFolder
from dks.runs.scheduler import (
    Job,
    Scheduler,
    SchedulerSilentError,
    Stage,
    read_accounts,
    read_queue,
)
from dks.sweeps.launchers.slurm import Cells, Resources, arrays_of, submit
from tests.conftest import composed

QUEUE = """\
12_4|PENDING|JobArrayTaskLimit|
12_5|PENDING|JobHeldUser|
12_0|RUNNING|None|n1
12_1|COMPLETING|None|n2
12_2|FAILED|NonZeroExitCode|n2
12_3|OUT_OF_MEMORY|OutOfMemory|n1
13|CANCELLED|None|
14|PENDING|BeginTime|
15_0|PENDING|Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions|
16_0|NODE_FAIL|NodeDown|n2
16_1|TIMEOUT|TimeLimit|n[1-2]
"""  # noqa: E501
STAGES = {
    "12_4": Stage.pending,
    "12_5": Stage.pending,
    "12_0": Stage.running,
    "12_1": Stage.running,
    "12_2": Stage.ended,
    "12_3": Stage.ended,
    "13": Stage.ended,
    "14": Stage.pending,
    "15_0": Stage.pending,
    "16_0": Stage.ended,
    "16_1": Stage.ended,
}


def a_command(folder: Path, name: str, script: str) -> None:
    """A command of that name in `folder`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for commands that takes the place of SLURM's own, if there are any."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin")
    for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel"):
        a_command(folder, name, f"echo 'no {name} here' >&2; exit 1")
    return folder


def test_the_stage_of_each_state_is_read_from_the_queue() -> None:
    found = read_queue(QUEUE)
    assert {job: each.stage for job, each in found.items()} == STAGES
    assert found["12_2"] == Job(Stage.ended, "FAILED", "NonZeroExitCode", "n2")
    assert found["13"].was_cancelled and not found["12_2"].was_cancelled
    assert found["12_0"].reason == "", "None is no reason"
    assert found["15_0"].reason.startswith("Nodes required"), "a reason may have commas and spaces"


def test_accounts_say_how_a_job_ended() -> None:
    found = read_accounts(
        "12_0|FAILED|1:0|n1\n12_1|CANCELLED by "
        "1000|0:15|n2\n12_2|FAILED|0:9|n1\n12_3|COMPLETED|0:0|n1\n"
    )
    assert found["12_0"] == Job(Stage.ended, "FAILED", "exit status 1", "n1")
    assert found["12_1"].was_cancelled and found["12_1"].state == "CANCELLED"
    assert found["12_2"].reason == "signal 9"
    assert found["12_3"] == Job(Stage.ended, "COMPLETED", "", "n1")


def test_jobs_are_asked_for_in_one_call_and_forgotten_ones_looked_up_in_the_accounts(
    commands: Path,
) -> None:
    a_command(
        commands,
        "squeue",
        f"echo call >> {commands}/calls; echo '12_0|RUNNING|None|n1'; echo "
        f"'12_7|PENDING|Priority|'",
    )
    a_command(commands, "sacct", "echo '9_1|FAILED|2:0|n2'; echo '12_0|PENDING|0:0|'")
    jobs = Scheduler().jobs(["12_0", "12_1", "9_1"])
    assert {job: each.stage for job, each in jobs.items()} == {
        "12_0": Stage.running,  # what the controller says counts
        "12_1": Stage.unknown,
        "9_1": Stage.ended,
    }
    assert (commands / "calls").read_text().count("call") == 1


def test_without_accounting_a_forgotten_job_is_unknown(commands: Path) -> None:
    a_command(
        commands, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    )
    a_command(commands, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert Scheduler().jobs(["12_0"]) == {"12_0": Job(Stage.unknown)}


def test_a_controller_that_does_not_answer_concludes_nothing(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it refuses or keeps one waiting: no job is called unknown."""
    a_command(
        commands,
        "squeue",
        "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1",
    )
    assert Scheduler().jobs(["12_0"]) == {}
    monkeypatch.setattr("dks.runs.scheduler.PATIENCE", 0.3)
    a_command(commands, "squeue", "exec sleep 20")
    assert Scheduler().jobs(["12_0"]) == {}
    with pytest.raises(SchedulerSilentError, match="does not answer"):
        Scheduler().named("dks-")


def test_a_machine_without_slurm_has_no_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RequestError,
        match="no scontrol on this machine; log in where SLURM is, or choose --launcher local",
    ):
        submit([tmp_path / "cell"], a_launch(tmp_path, 1), Resources())


def test_a_machine_whose_slurm_is_not_set_up_is_told_so_in_a_line(
    commands: Path, tmp_path: Path
) -> None:
    said = (
        "scontrol: error: DNS SRV lookup failed\\nscontrol: fatal: Could not establish a "
        "configuration source\\n"
    )
    a_command(commands, "scontrol", f"printf '{said}' >&2; exit 1")
    with pytest.raises(
        RequestError,
        match=r"submitted: scontrol says: Could not establish a configuration source; log in",
    ):
        submit([tmp_path / "cell"], a_launch(tmp_path, 1), Resources())


def test_jobs_are_found_by_the_beginning_of_their_name(commands: Path) -> None:
    a_command(
        commands,
        "squeue",
        "echo '12|dks-a-0'; echo '12|dks-a-0'; echo '14|dks-a-1'; echo '15|dks-b-0'; echo '16|x|y'",
    )
    assert Scheduler().named("dks-a-") == {"dks-a-0": "12", "dks-a-1": "14"}


def test_the_largest_array_is_what_the_configuration_says(commands: Path) -> None:
    a_command(
        commands, "scontrol", "echo 'MailProg = /bin/mail'; echo 'MaxArraySize            = 4001'"
    )
    assert Scheduler().max_array_size() == 4001


def test_cells_are_packed_into_jobs_and_these_into_arrays() -> None:
    cells = [str(number) for number in range(7)]
    assert [array.tasks for array in arrays_of(cells, 1, 100)] == [[[cell] for cell in cells]]
    assert [array.tasks for array in arrays_of(cells, 2, 3)] == [
        [["0", "1"], ["2", "3"], ["4", "5"]],
        [["6"]],
    ]


def test_what_a_job_runs_is_pickled_by_reference_and_knows_its_folders_only() -> None:
    written = pickle.dumps(Cells(["/a/runs/1", "/a/runs/2"]))
    assert b"dks.sweeps.launchers.slurm" in written and len(written) < 200
    again = pickle.loads(written).checkpoint()
    assert again.function.folders == ("/a/runs/1", "/a/runs/2"), "a requeued job has the same cells"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parallel": 0}, "hydra.launcher.parallel=0 must be at least 1"),
        ({"cells_per_job": -1}, "hydra.launcher.cells_per_job=-1 must be at least 1"),
        ({"mem_gb": 0.0}, "hydra.launcher.mem_gb=0.0 must be above 0"),
        (
            {"timeout_min": 2},
            "hydra.launcher.signal_delay_s=120 must be below the time limit of a job, which "
            "is 2 min",
        ),
    ],
)
def test_senseless_resources_are_refused_before_slurm_is_asked(
    tmp_path: Path, wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        submit([tmp_path / "cell"], a_launch(tmp_path, 1), Resources(**wrong))  # type: ignore[arg-type]


def test_the_launcher_has_the_options_and_their_types() -> None:
    """`hydra.launcher.parallel=many` is refused when the command line is read."""
    assert composed("hydra/launcher=slurm", "hydra.launcher.parallel=7", "hydra.launcher.mem_gb=3")
    with pytest.raises(ConfigCompositionException, match="parallel"):
        composed("hydra/launcher=slurm", "hydra.launcher.parallel=many")


def test_an_array_that_slurm_refuses_takes_the_others_back(commands: Path, tmp_path: Path) -> None:
    """Of a launch, all cells are submitted or none."""
    a_command(commands, "scontrol", "echo 'MaxArraySize = 2'")
    count = f"n=$(cat {commands}/n 2>/dev/null); echo x$n > {commands}/n"
    refusal = (
        "printf 'sbatch: error: invalid account\\nsbatch: error: Batch job submission "
        "failed: no money\\n' >&2; exit 1"
    )
    a_command(
        commands,
        "sbatch",
        f'[ "$1" = --test-only ] && exit 0; {count}; [ "$n" = "" ] && echo "Submitted batch job '
        f'12" && exit 0; {refusal}',
    )
    a_command(commands, "srun", "")
    a_command(commands, "scancel", f'echo "$@" > {commands}/cancelled')
    launch = a_launch(tmp_path, 3)
    with pytest.raises(
        RequestError,
        match="SLURM refuses the jobs: invalid account; Batch job submission failed: no money",
    ):
        submit([Path(cell) for cell in launch.read().cells], launch, Resources())
    assert (commands / "cancelled").read_text().split()[-1] == "12"
    assert launch.read().arrays == []


def test_a_submission_under_way_is_left_alone(commands: Path, tmp_path: Path) -> None:
    launch = a_launch(tmp_path, 1)
    launch.lock.acquire()
    (launch.jobs_folder / "staged").mkdir(parents=True)
    a_command(commands, "squeue", f"touch {commands}/asked")
    assert recover(LaunchFolder(launch.path), Scheduler()) is False
    assert not (commands / "asked").exists()


def test_cells_of_an_array_that_never_arrived_are_given_up(commands: Path, tmp_path: Path) -> None:
    """The process died before SLURM had the array: after a while nobody counts on it any more."""
    launch = a_launch(tmp_path, 2)
    content = launch.read()
    content.arrays = arrays_of(content.cells, 1, 1)
    content.arrays[0].job = "12"
    launch.write(content)
    staged = launch.jobs_folder / "staged"
    staged.mkdir(parents=True)
    a_command(commands, "squeue", f"echo '12|{array_name(content.id, 0)}'")
    a_command(commands, "scontrol", f'echo "$@" > {commands}/released')
    assert recover(launch, Scheduler()) is False, "it may still be on its way"
    os.utime(staged, (0, 0))
    assert recover(launch, Scheduler()) is True
    assert launch.read().jobs() == {content.cells[0]: "12"}
    assert [array.tasks for array in launch.read().arrays] == [[[content.cells[0]]], []]
    assert (commands / "released").read_text().split() == ["release", "12"]
    assert recover(launch, Scheduler()) is False, "there is no more to do"


def a_launch(folder: Path, cells: int) -> LaunchFolder:
    """A launch whose process has gone."""
    paths = [folder / "runs" / str(number) for number in range(cells)]
    launch = LaunchFolder.create(str(folder / "results"), "some", "slurm", paths, None)
    launch.lock.release()
    return launch
