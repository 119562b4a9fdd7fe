"""The process that sends, when the runs are interrupted."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

from dks.config.schema import Tracking
from dks.machine.interruption import Interrupted
from dks.tracking.sender import Sender, sending
from tests.conftest import queued

LOCAL = Tracking(uri="sqlite:///mlflow.db")


def interrupted(hangs_with: Path | None = None) -> tuple[float, list[str]]:
    """Interrupt a command that has begun to use a fresh store, if need be with a run while the
    process that sends hangs.

    Returns:
        Seconds until it is over, and what is said. The process is gone.
    """
    said: list[str] = []
    with suppress(Interrupted), sending(LOCAL, said.append) as sender:
        assert isinstance(sender, Sender) and sender.open(LOCAL) is None
        assert sender._process is not None
        if hangs_with is not None:
            sender._process.send_signal(signal.SIGSTOP)
            sender.begin(hangs_with)
        begun = time.monotonic()
        raise Interrupted("SIGINT")
    assert sender._process.returncode == -signal.SIGKILL
    return time.monotonic() - begun, said


def test_an_interrupted_command_waits_for_no_store_that_nobody_has_used(in_folder: Path) -> None:
    seconds, said = interrupted()
    assert seconds < 1 and said == []
    assert not Path("mlflow.db").exists()


def test_an_interrupted_command_waits_little_for_a_process_that_hangs(in_folder: Path) -> None:
    seconds, said = interrupted(queued(in_folder).path)
    assert seconds < 4
    assert said == [
        "[yellow]tracking[/]: MLflow has not got everything: the process that sends does not "
        "answer; dks sync sends the rest"
    ]
