"""What files hold is known by their content.

Read once, and again when something happened to them.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from dks.config.errors import RequestError
from dks.data import contents
from dks.data.contents import Kept, digests
from dks.runs.terminal import Display


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, for commands that begin without memory and see files that are old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Kept, "_memory", {})
    monkeypatch.setattr(contents, "RECENT", -1.0)
    return tmp_path / "cache" / "dks" / "contents"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are really read."""
    seen, original = list[str](), contents._hashed

    def watched(ended: threading.Event, paths: list[str]) -> list[bytes]:
        seen.extend(os.path.basename(path) for path in paths)  # noqa: PTH119
        return original(ended, paths)

    monkeypatch.setattr(contents, "_hashed", watched)
    return seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name * 5)
    return folder


def look(root: Path) -> dict[str, str]:
    return digests(root, {"one": [str(root / "a")], "two": [str(root / "b"), str(root / "c")]})


def test_a_digest_is_that_of_the_content(root: Path) -> None:
    two = sha256(hashlib.sha256(b"bbbbb").digest(), hashlib.sha256(b"ccccc").digest())
    assert look(root) == {"one": sha256(b"aaaaa"), "two": two}


def test_a_file_is_read_once(
    root: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    first = look(root)
    assert sorted(reads) == ["a", "b", "c"]
    for _ in range(2):
        monkeypatch.setattr(Kept, "_memory", {})  # another command
        assert look(root) == first
    assert len(reads) == 3
    assert len(list(own_cache.iterdir())) == 1


def in_place(path: Path) -> None:
    """With the size and the times that it had."""
    state = path.stat()
    time.sleep(0.02)  # a file system's clock ticks every few milliseconds
    path.write_text("XXXXX")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def renamed(path: Path) -> None:
    """Another file of that size in its place."""
    state, other = path.stat(), path.with_name("other")
    other.write_text("XXXXX")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("replace", [in_place, renamed])
def test_a_file_that_was_replaced_is_read_again(
    root: Path, reads: list[str], replace: object
) -> None:
    before = look(root)
    reads.clear()
    replace(root / "b")  # type: ignore[operator]
    after = look(root)
    assert after["one"] == before["one"]
    assert after["two"] == sha256(
        hashlib.sha256(b"XXXXX").digest(), hashlib.sha256(b"ccccc").digest()
    )
    assert sorted(reads) == ["b", "c"], "those of its group"


def test_groups_keep_their_order_whatever_is_known_of_them(root: Path) -> None:
    """By it images have their classes."""
    look(root)
    in_place(root / "a")
    assert list(look(root)) == ["one", "two"]


def test_an_interrupted_reading_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (tmp_path / f"{number}").write_text("")
    began, hashing = list[str](), contents.hashlib.sha256

    def slow(*given: bytes) -> object:
        began.append("a file")
        time.sleep(0.01)
        return hashing(*given)

    reading = contents._read([str(tmp_path / f"{number}") for number in range(300)])
    monkeypatch.setattr(contents.hashlib, "sha256", slow)
    next(reading)
    reading.close()
    assert len(began) < 150 and not [
        thread for thread in threading.enumerate() if "ThreadPool" in thread.name
    ]


def test_what_just_changed_is_read_again(
    root: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "RECENT", 2.0)
    for _ in range(2):
        look(root)
    assert len(reads) == 6


def test_what_changes_while_it_is_read_is_not_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = contents._hashed

    def disturbed(ended: threading.Event, paths: list[str]) -> list[bytes]:
        found = original(ended, paths)
        (root / "a").write_text("AAAAA")
        return found

    monkeypatch.setattr(contents, "_hashed", disturbed)
    look(root)
    monkeypatch.setattr(contents, "_hashed", original)
    assert look(root)["one"] == sha256(b"AAAAA")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"one": 3, "two": {"state": 1}}', b"\xff"])
def test_a_damaged_cache_is_made_again(
    root: Path, reads: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    first = look(root)
    (file,) = own_cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    monkeypatch.setattr(Kept, "_memory", {})
    assert look(root) == first
    assert (len(reads), file.read_bytes()) == (6, whole)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    root: Path, reads: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert look(root) == look(root)
    assert len(reads) == 3, "a process remembers"


def test_a_file_that_cannot_be_read_is_named(root: Path) -> None:
    (root / "b").unlink()
    (root / "b").symlink_to("nowhere")
    with pytest.raises(
        RequestError, match=rf"^{root}/b cannot be read: No such file or directory$"
    ):
        look(root)


def test_many_files_are_read_side_by_side_and_counted_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(contents, "MANY", 50)
    names = [f"{number:03}" for number in range(200)]
    for name in names:
        (tmp_path / name).write_text(name)
    output = io.StringIO()
    with Display(1, Console(file=output, force_terminal=True, width=120)):
        found = digests(tmp_path, {name: [str(tmp_path / name)] for name in names})
    assert found == {name: sha256(name.encode()) for name in names}
    assert "reading files" in output.getvalue()
