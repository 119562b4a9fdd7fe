"""Decoded images kept in a file.

Made once, shared by processes, never taken for others, and no obstacle when damaged.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from rich.console import Console

from dks import data
from dks.config.errors import RequestError
from dks.config.schema import Augmentation, Data
from dks.data import decoded
from dks.data.images import Images, ImageSet
from dks.runs.terminal import Display
from tests.conftest import ROOT, assert_same_result, config, finished_run
from tests.data.test_data import write_cifar, write_parquet


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dks" / "images"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Data]:
    """What was really decoded."""
    seen: list[Data] = []
    original = decoded._decode
    monkeypatch.setattr(decoded, "_decode", lambda wanted: seen.append(wanted) or original(wanted))
    return seen


def parquet(root: Path, **choices: object) -> Data:
    if not root.exists():
        write_parquet(root, "train", [8] * 7, [0, 1, 2, 3, 0, 1, 2])
        write_parquet(root, "test", [8] * 2, [3, 0])
    return data.describe(Data(source="parquet", root=str(root), **choices))  # type: ignore[arg-type]


def folders(root: Path, **choices: object) -> Data:
    if not root.exists():
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            for name in ("ant", "bee"):
                (root / split / name).mkdir(parents=True)
                for number in range(3):
                    pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / split / name / f"{number}.bmp")
    return data.describe(Data(source="imagefolder", root=str(root), **choices))  # type: ignore[arg-type]


def cifar(root: Path, **choices: object) -> Data:
    if not root.exists():
        write_cifar(root, 10)
    return data.describe(Data(source="cifar10", root=str(root), **choices))  # type: ignore[arg-type]


def assert_same(ours: tuple[Images, Images], expected: tuple[Images, Images]) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert isinstance(one, ImageSet) and isinstance(other, ImageSet)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def the_file(cache: Path) -> Path:
    (file,) = cache.glob("*.safetensors")
    return file


@pytest.mark.parametrize("form", [parquet, folders, cifar])
@pytest.mark.parametrize("size", [None, 9])
def test_images_are_decoded_once_and_are_the_same_ever_after(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    decodings: list[Data],
    form: Callable[..., Data],
    size: int | None,
) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    wanted = form(tmp_path / "images", image_size=size)
    fresh = data.registry.source(wanted.source).load(wanted)
    fresh = fresh if size is None else tuple(each.resized(size) for each in fresh)
    for _ in range(3):
        found = decoded.load(wanted)
        assert_same(found, fresh)
        for each in found:
            assert isinstance(each, ImageSet)
            assert each.stored.is_contiguous(memory_format=torch.channels_last)
    assert len(decodings) == 1
    decoded.load(form(tmp_path / "images", image_size=7))
    assert len(decodings) == 2, "another size is another file"


def test_a_run_on_kept_images_ends_as_one_that_decodes(tmp_path: Path) -> None:
    parquet(tmp_path / "flowers")
    overrides = (
        "data=parquet",
        f"data.root={tmp_path / 'flowers'}",
        "data.num_classes=null",
        "data.train_images=null",
    )
    sized = (*overrides, "data.test_images=null", "data.image_size=null", "data.pad=2")
    runs = []
    for name, more in (("none", ["data.cache_gib=0"]), ("makes", []), ("finds", [])):
        data._loaded.clear()
        runs.append(finished_run(tmp_path / name, *sized, *more))
    for run in runs[1:]:
        assert_same_result(run, runs[0])


def replace_pixels(root: Path) -> None:
    """An image of the same name, size and time."""
    picture = root / "train" / "ant" / "1.bmp"
    state = picture.stat()
    Image.new("RGB", (5, 6), (1, 2, 3)).save(picture)
    os.utime(picture, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("has_fingerprint", [True, False])
def test_files_with_other_pixels_are_decoded_anew(
    tmp_path: Path, decodings: list[Data], has_fingerprint: bool
) -> None:
    def wanted() -> Data:
        described = folders(tmp_path / "images")
        return described if has_fingerprint else replace(described, fingerprint=None)  # as ImageNet

    before = wanted()
    decoded.load(before)
    replace_pixels(tmp_path / "images")
    assert (wanted() != before) == has_fingerprint
    train, _ = decoded.load(wanted())
    assert isinstance(train, ImageSet)
    assert train.images[1, :, 0, 0].tolist() == [1, 2, 3]
    assert len(decodings) == 2


def test_files_that_changed_since_they_were_planned_are_not_taken_for_those(
    tmp_path: Path, cache: Path
) -> None:
    planned = folders(tmp_path / "images")
    replace_pixels(tmp_path / "images")
    decoded.load(planned)
    assert not list(cache.glob("*.safetensors"))
    with pytest.raises(RequestError, match="are not those that the run was planned with"):
        data.require(planned)


def test_files_that_change_while_they_are_decoded_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    wanted, original = folders(tmp_path / "images"), decoded._decode

    def disturbed(given: Data) -> tuple[Images, Images]:
        found = original(given)
        Image.new("RGB", (5, 6)).save(tmp_path / "images" / "train" / "ant" / "1.bmp")
        return found

    monkeypatch.setattr(decoded, "_decode", disturbed)
    decoded.load(wanted)
    assert not list(cache.glob("*.safetensors"))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def other_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut, other_header, lambda file: file.write_bytes(b"")]
)
def test_a_damaged_file_is_made_again(
    tmp_path: Path, cache: Path, decodings: list[Data], damage: Callable[[Path], object]
) -> None:
    wanted = parquet(tmp_path / "flowers")
    fresh = data.registry.source("parquet").load(wanted)
    decoded.load(wanted)
    whole = the_file(cache).read_bytes()
    damage(the_file(cache))
    for _ in range(2):
        assert_same(decoded.load(wanted), fresh)
    assert len(decodings) == 2
    assert the_file(cache).read_bytes() == whole


def test_what_is_written_to_the_images_does_not_reach_the_file(tmp_path: Path, cache: Path) -> None:
    wanted = parquet(tmp_path / "flowers")
    train, _ = decoded.load(wanted)
    content = the_file(cache).read_bytes()
    assert isinstance(train, ImageSet)
    train.stored.zero_()
    assert the_file(cache).read_bytes() == content


def test_nothing_is_kept_where_decoding_costs_nothing_or_it_is_switched_off(
    tmp_path: Path, cache: Path
) -> None:
    decoded.load(config().data)
    decoded.load(config("data=synthetic").data)
    decoded.load(parquet(tmp_path / "flowers", cache_gib=0.0))
    streamed = folders(
        tmp_path / "images", augmentation=Augmentation.resized_crop, resize=6, image_size=4
    )
    decoded.load(streamed)
    assert not cache.exists()
    with pytest.raises(
        RequestError, match=r"data\.cache_gib=-1.0 must be a finite number of at least 0"
    ):
        config("data.cache_gib=-1")


def test_the_oldest_are_removed_where_all_would_take_too_much(
    tmp_path: Path, cache: Path, decodings: list[Data]
) -> None:
    wanted = [
        parquet(tmp_path / name, image_size=side, cache_gib=7000 / 2**30)
        for name, side in zip("abc", (8, 9, 10), strict=True)
    ]
    decoded.load(wanted[0])
    first = the_file(cache)
    decoded.load(wanted[1])
    (second,) = set(cache.glob("*.safetensors")) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    decoded.load(wanted[0])  # now it is the newest
    assert len(decodings) == 2
    decoded.load(wanted[2])
    assert first.exists() and not second.exists()
    assert sum(file.stat().st_size for file in cache.iterdir()) < 7000
    decoded.load(parquet(tmp_path / "a", image_size=8, cache_gib=100 / 2**30))
    assert first.exists(), "what fits in no case removes nothing"


@pytest.mark.parametrize("what", ["a file in the place of the folder", "a full disk"])
def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "a full disk":

        def full(tensors: object, path: Path, note: object) -> None:
            path.write_bytes(b"some of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(decoded, "save_file", full)
    else:
        (tmp_path / "cache").write_text("")
    wanted = parquet(tmp_path / "flowers")
    assert_same(decoded.load(wanted), data.registry.source("parquet").load(wanted))
    assert what != "a full disk" or [file.suffix for file in cache.iterdir()] == [".lock"]


@contextmanager
def only_readable(folder: Path) -> Iterator[None]:
    """For root, whom permissions do not stop, a mount that nobody can write to."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    if (
        subprocess.run(
            ["mount", "--bind", str(folder), str(folder)], capture_output=True
        ).returncode
        != 0
    ):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("this root may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # images may still be mapped


def test_in_a_folder_that_can_only_be_read_kept_images_are_used_and_others_are_decoded(
    tmp_path: Path, cache: Path, decodings: list[Data]
) -> None:
    kept, other = parquet(tmp_path / "flowers"), parquet(tmp_path / "flowers", image_size=9)
    fresh = decoded.load(kept)
    before = sorted(cache.iterdir())
    with only_readable(cache):
        assert_same(decoded.load(kept), fresh)
        assert len(decodings) == 1
        for _ in range(2):
            train, test = data.registry.source("parquet").load(other)
            assert_same(decoded.load(other), (train.resized(9), test.resized(9)))
        assert len(decodings) == 3
    assert sorted(cache.iterdir()) == before


def no_locks(error: int) -> Callable[..., None]:
    """A stand-in for what the file system says to whoever wants a lock."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    return flock


def test_without_locks_images_are_decoded_and_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Data]
) -> None:
    """NFS whose lock service does not answer, for one."""
    monkeypatch.setattr("fcntl.flock", no_locks(errno.ENOLCK))
    wanted = parquet(tmp_path / "flowers")
    fresh = data.registry.source("parquet").load(wanted)
    for _ in range(2):
        assert_same(decoded.load(wanted), fresh)
    assert len(decodings) == 2
    assert not list(cache.glob("*.safetensors"))


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_flock_is_unknown_images_are_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of filelock's versions the older ones give up, by the test below, and the newer ones lock by
    a file that is there.
    """
    monkeypatch.setattr("fcntl.flock", no_locks(errno.ENOSYS))
    wanted = parquet(tmp_path / "flowers")
    fresh = data.registry.source("parquet").load(wanted)
    for _ in range(2):
        assert_same(decoded.load(wanted), fresh)
    assert not [file for file in cache.iterdir() if file.suffix == ".lock" and file.read_bytes()], (
        "nobody waits for a lock"
    )


def test_a_filelock_that_gives_up_is_no_obstacle(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Data]
) -> None:
    def acquire(self: FileLock, **given: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    wanted = parquet(tmp_path / "flowers")
    fresh = data.registry.source("parquet").load(wanted)
    for _ in range(2):
        assert_same(decoded.load(wanted), fresh)
    assert len(decodings) == 2
    assert not list(cache.iterdir())


@pytest.mark.parametrize("succeeds", [True, False])
def test_others_wait_for_the_one_that_decodes(
    tmp_path: Path,
    cache: Path,
    decodings: list[Data],
    succeeds: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it dies without a file, whoever has waited decodes for itself."""
    monkeypatch.setenv("TERM", "xterm")  # a bar is drawn on a terminal that can move its cursor
    wanted = parquet(tmp_path / "flowers")
    fresh = decoded.load(wanted)
    file, content = the_file(cache), the_file(cache).read_bytes()
    file.unlink()
    lock = FileLock(file.with_suffix(".lock"), thread_local=False)
    lock.acquire()

    def other() -> None:
        time.sleep(1.2)
        if succeeds:
            file.write_bytes(content)
        lock.release()

    thread = threading.Thread(target=other)
    thread.start()
    output = io.StringIO()
    with Display(1, Console(file=output, force_terminal=True, width=120)):
        assert_same(decoded.load(wanted), fresh)
    thread.join()
    assert "waiting for decoded images" in output.getvalue()
    assert len(decodings) == (1 if succeeds else 2)


SHARER = """
import sys, time
from dks import data
from dks.config.schema import Data
from dks.data import decoded
original = decoded._decode
decoded._decode = lambda wanted: print("decoded") or original(wanted)
images, _ = data.load(data.describe(Data(source="parquet", root=sys.argv[1])))
total = int(images.images.sum())
print("ready", total, flush=True)
sys.stdin.read(1)
here, shared = False, 0
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        here = ".safetensors" in line
    elif here and line.startswith(("Shared_Clean:", "Shared_Dirty:")):
        shared += int(line.split()[1])
print(shared, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_processes_that_start_at_the_same_time_decode_once_and_share_the_memory(
    tmp_path: Path,
) -> None:
    parquet(tmp_path / "flowers", image_size=256)
    write_parquet(tmp_path / "flowers", "train", [300] * 12, [0, 1, 2, 3] * 3)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARER, str(tmp_path / "flowers")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(3)
    ]
    said = []
    for process in started:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        if lines[0] == "decoded\n":
            lines.append(process.stdout.readline())
        said.append(lines)
    assert sum(lines[0] == "decoded\n" for lines in said) == 1
    assert len({lines[-1] for lines in said}) == 1
    shared = []
    for process in started:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("x")
        process.stdin.flush()
        shared.append(int(process.stdout.readline()))
    for process in started:
        process.communicate(timeout=30)
    assert min(shared) >= 0.95 * 12 * 300 * 300 * 3 / 1024, "KiB that others map as well"
