"""Where a secret must not be: on command lines, in files and in their names."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def watching_command_lines(secret: str) -> Iterator[list[str]]:
    """The command lines of all processes that hold the secret while the context lasts."""
    seen, over = list[str](), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:  # it ended meanwhile
                    continue
                if _holds(line, secret):
                    seen.append(line.decode(errors="replace"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def assert_nowhere(secret: str, *folders: Path) -> None:
    """No file below the folders holds it, and no name there; there is at least one file."""
    found = [(path, path.relative_to(folder)) for folder in folders for path in folder.rglob("*")]
    assert [name for _, name in found if _holds(str(name).encode(), secret)] == []
    files = [path for path, _ in found if path.is_file()]
    assert files
    assert [path for path in files if _holds(path.read_bytes(), secret)] == []


def _holds(content: bytes, secret: str) -> bool:
    """As it is, or in base64, as HTTP writes passwords.

    What stands before it decides which of three it looks like.
    """
    encoded = (
        b64encode(f"{before}{secret}".encode()).strip(b"=")[4:-4] for before in ("", "a", "ab")
    )
    return any(each in content for each in (secret.encode(), *encoded))
