"""A real SLURM cluster on this machine, for the tests.

Munged, one slurmctld and two slurmd in a folder of their own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

# Besides what two nodes on one host need: `cred_expire` is how long a requeued job waits before it
# starts again (120 s by default), `MaxArraySize` is small so that a sweep of a few cells needs
# several arrays.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={ports[0]}
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MaxArraySize=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=10 State=UP
"""


class Cluster:
    """The daemons and what tests ask of them. While it runs, SLURM_CONF names its configuration."""

    NODES = ("n1", "n2")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self._before = os.environ.get("SLURM_CONF")

    def __enter__(self) -> Cluster:
        (self.folder / "state").mkdir(parents=True)
        configuration = self.folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                folder=self.folder, host=socket.gethostname().split(".")[0], ports=free_ports(3)
            )
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        os.environ["SLURM_CONF"] = str(configuration)
        files = {
            "socket": "munge.sock",
            "key-file": "munge.key",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
        }
        try:
            self._start(
                "munged",
                "--foreground",
                "--force",
                *(f"--{key}={self.folder / name}" for key, name in files.items()),
            )
            self.until(lambda: (self.folder / "munge.sock").exists(), 10)
            self._start("slurmctld", "-D")
            for node in self.NODES:
                self._start("slurmd", "-D", "-N", node)
            self.until(lambda: self.node_states() == dict.fromkeys(self.NODES, "idle"), 60)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        try:  # a job that outlives its slurmd would have nobody to end it
            self.cancel_all()
        finally:
            self.stop()

    def stop(self) -> None:
        """End the daemons, in the order opposite to that of their start."""
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if self._before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = self._before

    def cancel_all(self) -> None:
        """Cancel every job and wait until none is left."""
        subprocess.run(["scancel", "--user=root"], check=False, capture_output=True, timeout=30)
        self.until(lambda: not self.command("squeue", "--noheader"), 60)

    def command(self, *arguments: str) -> str:
        """The standard output of one of SLURM's commands."""
        return subprocess.run(
            arguments, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    def node_states(self) -> dict[str, str]:
        """Node -> idle, allocated, mixed, down, ...; empty while the controller does not answer."""
        asked = subprocess.run(
            ["sinfo", "--Node", "--noheader", "--partition=low", "--format=%N %T"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return dict(line.split() for line in asked.stdout.splitlines())

    def until(
        self,
        condition: Callable[[], object],
        seconds: float,
        why: Callable[[], object] = lambda: "",
    ) -> None:
        """Wait until something is so; fail after that many seconds, with `why()`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {why()}"
            time.sleep(0.2)

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            # In a session of its own: Ctrl-C in the terminal of the tests must not reach it before
            #     the jobs are cancelled.
            self.daemons.append(
                subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            )


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def missing() -> str | None:
    """What keeps the cluster from starting on this machine."""
    if lacking := [name for name in DAEMONS if shutil.which(name) is None]:
        return f"{', '.join(lacking)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "only root can start SLURM's daemons"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, idle.

    Without SLURM the tests that need it are skipped, except in CI, where they must run.
    """
    if (reason := missing()) is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running
