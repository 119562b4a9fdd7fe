"""What the fork server imports before it forks workers: all that a run needs at its beginning.

The server imports this module as it starts (`dks/sweeps/launchers/local.py`). Nothing here starts
a thread or touches a GPU, so that forking is safe.
"""

import atexit
import gc
import os
import shutil
import signal
from contextlib import suppress
from importlib import import_module
from types import FrameType

from dks.machine import code
from dks.sweeps.launchers.fork_server import SOCKET_FOLDER

_PARENT = os.getppid()


def _remove_socket() -> None:
    """What multiprocessing leaves to the parent, which may have been killed."""
    shutil.rmtree(os.environ[SOCKET_FOLDER], ignore_errors=True)


def _leave_with_parent(number: int, frame: FrameType | None) -> None:
    if os.getppid() != _PARENT:
        _remove_socket()
        os._exit(0)


# What libraries print as they are imported is no business of the terminal, and whoever waits for
# the end of a command's output does not wait for the server.
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 1)
os.dup2(_nowhere, 2)
os.close(_nowhere)

atexit.register(_remove_socket)
# The server looks whether its parent lives only when all is imported, which takes seconds.
signal.signal(signal.SIGALRM, _leave_with_parent)
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
with suppress(Exception):  # a worker tries again, and tells why it fails
    for name in ("dks.training.run", "dks.training.flops", "torch._dynamo"):
        import_module(name)
    code.current()  # changes to the files of the code from here on change no worker
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_DFL)

gc.collect()
gc.freeze()  # pages that the collector does not write to are shared with the workers
