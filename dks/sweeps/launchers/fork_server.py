"""The fork server of `multiprocessing` that workers come from: started, ended, and its socket."""

from __future__ import annotations

import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import ModuleType

import psutil

from dks.config.files import python_path
from dks.machine.interruption import SIGNALS

# In the environment of the fork server: the folder that it is to remove at its end.
SOCKET_FOLDER = "DKS_SOCKET_FOLDER"


@contextmanager
def fork_server() -> Iterator[None]:
    """A fork server that imports while other things are done, for the workers of this context."""
    start_server()
    try:
        yield
    finally:
        end_server()


def start_server() -> None:
    """Start the fork server unless it runs; it lives as long as this process, or until
    `end_server`.

    It is started with signals blocked, which a scheduler sends to all processes of a job: if it
    died, nobody would learn how workers end.
    """
    variables = {
        SOCKET_FOLDER: str(_socket_folder()),
        "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", "")),
        # A module in the current folder must not take the place of one of Python's own.
        "PYTHONSAFEPATH": "1",
        # Libraries start their threads as they are loaded. Each run sets how many it has.
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in variables}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.environ.update(variables)
    try:
        multiprocessing.set_forkserver_preload(["dks.sweeps.launchers.preload"])
        resource_tracker.ensure_running()  # first, for it unblocks signals again
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_server() -> None:
    """End the fork server at once; workers that live go on."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "multiprocessing.forkserver" in " ".join(child.cmdline()):
                child.kill()
                # multiprocessing reaps it when it starts the next one
                while child.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.002)
    folder = _socket_folder()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)  # multiprocessing removes it as this process ends, and must find it


def _socket_folder() -> Path:
    """The folder that multiprocessing puts sockets into.

    Their names are limited to some 100 characters, which a long TMPDIR does not leave room for.
    """
    before = tempfile.tempdir
    if len(tempfile.gettempdir()) > 60:
        tempfile.tempdir = "/tmp"
    try:
        folder = Path(multiprocessing.util.get_temp_dir())
    finally:
        tempfile.tempdir = before
    return folder


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that are started here do not run the script of this process, as others would."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
