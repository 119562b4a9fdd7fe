"""`dks doctor`: every check with circumstances that are good, and with bad ones made for real."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from dks.config.errors import RequestError
from dks.config.registry import VARIABLE
from dks.config.schema import Data, Tracking, TrackingKind
from dks.machine import control_groups
from dks.tools.doctor import extensions, images, machine, packages, slurm, storage, tracking
from dks.tools.doctor.check import Check, Finding, examine, green, red, show, show_total, yellow
from tests.conftest import ROOT, start
from tests.data.test_data import no_label, write_cifar, write_parquet
from tests.support.slurm_cluster import Cluster, free_ports
from tests.support.tracking_services import mlflow_client

Found = dict[str, Finding]


def by_name(findings: Iterator[Finding]) -> Found:
    return {finding.name: finding for finding in findings}


def levels(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


# --- what runs checks


def test_an_error_inside_a_check_is_a_red_line_and_what_it_found_before_stays() -> None:
    def look() -> Iterator[Finding]:
        yield green("first", "fine")
        raise OSError("the disk\nis gone")

    first, second = examine(Check("disk", look))
    assert first == green("first", "fine")
    assert (second.name, second.level) == ("disk", "red")
    assert "OSError: the disk is gone" in second.found


def test_a_wrong_request_inside_a_check_and_a_package_that_is_missing_are_findings() -> None:
    def wrong() -> Iterator[Finding]:
        raise RequestError("data.root has no value")
        yield

    def without() -> Iterator[Finding]:
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401

        yield green("never", "")

    assert [(each.level, each.found) for each in examine(Check("data", wrong))] == [
        ("red", "data.root has no value")
    ]
    (absent,) = examine(Check("export", without))
    assert absent.level == "grey"
    assert "no_such_package" in absent.found


def test_a_check_that_hangs_is_left_alone_after_its_time() -> None:
    release = threading.Event()

    def look() -> Iterator[Finding]:
        yield green("first", "fine")
        release.wait(60)

    began = time.monotonic()
    found = list(examine(Check("server", look, seconds=0.3)))
    assert time.monotonic() - began < 5
    release.set()
    assert [each.level for each in found] == ["green", "red"]
    assert "within 0.3 s" in found[1].found


# --- Python and packages


def site(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *packages: tuple[str, str], dks: str = ""
) -> None:
    """The only installed packages from here on.

    Dks with these lines of metadata, and others (name, version).
    """
    for name, version, more in (
        ("dks", "0.1.0", dks),
        *((name, version, "") for name, version in packages),
    ):
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}"
        )
    monkeypatch.setattr(sys, "path", [str(folder)])


def test_the_interpreter_is_checked_against_what_dks_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert levels(packages.interpreter())["Python"] == "green"
    site(tmp_path, monkeypatch, dks="Requires-Python: >=3.99\n")
    found = by_name(packages.interpreter())["Python"]
    assert found.level == "red"
    assert "dks needs >=3.99" in found.found


def test_dependencies_that_are_missing_or_too_old_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("torch>=2.11", "rich>=13.7", "gone>=1", "onnx>=1; extra == 'export'")
    needs = "".join(f"Requires-Dist: {line}\n" for line in wanted)
    site(tmp_path, monkeypatch, ("torch", "2.5.0"), ("rich", "15.0"), dks=needs)
    (found,) = packages.dependencies()
    assert found.level == "red"
    assert found.details == ("torch 2.5.0 (needs >=2.11)", "gone missing (needs >=1)")
    assert "2 of 3" in found.found
    extra = by_name(packages.extras())["extra export"]
    assert (extra.level, "pip install" in extra.found) == ("grey", True)


def test_versions_other_than_the_tested_ones_are_counted_and_listed_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    names = ["filelock", "rich", "numpy", "pillow", "scipy", "hydra-core"]
    same = [("torch", f"{pins['torch']}+cpu"), ("PyYAML", pins["PyYAML"])]
    site(tmp_path, monkeypatch, *((name, "0.0.1") for name in names), *same)
    (found,) = packages.tested_versions()
    assert found.level == "yellow"
    assert found.found.startswith("6 of 8 packages")
    assert found.found.endswith("and 2 more")
    assert len(found.details) == 6
    assert f"rich 0.0.1 (tested: {pins['rich']})" in found.details


def test_dks_that_is_not_installed_is_yellow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (found,) = packages.dependencies()
    assert found.level == "yellow"


def test_the_extras_that_the_tests_need_are_here() -> None:
    assert by_name(packages.extras())["extra export"].level == "green"


def test_a_torchvision_that_does_not_fit_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert levels(packages.torchvision()) == {"torchvision": "green"}
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = packages.torchvision()
    assert found.level == "red"
    assert "nms does not exist" in found.found
    assert "pip install" in found.advice


# --- what computes


def test_torch_computes_and_wrong_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert levels(machine.torch_works()) == {"torch": "green", "CPU computes": "green"}
    right = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *given: right(*given) * 1.0001)
    assert levels(machine.torch_works())["CPU computes"] == "red"


def test_without_a_gpu_cuda_is_grey_and_asked_for_it_is_red() -> None:
    import torch

    if torch.cuda.is_available():
        assert set(levels(machine.cuda("auto")).values()) <= {"green", "yellow"}
        assert by_name(machine.cuda("cuda:99"))["device"].level == "red"
        return
    assert levels(machine.cuda("auto")) == {"CUDA": "grey"}
    assert levels(machine.cuda("cuda")) == {"CUDA": "red"}


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """A command that comes first on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_driver_that_torch_cannot_use_is_told_with_torchs_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU works here")
    program(tmp_path / "bin", monkeypatch, "nvidia-smi", "echo 470.57.02")
    (found,) = machine.cuda("auto")
    assert found.level == "yellow"
    assert "driver 470.57.02 is there, but torch cannot use it" in found.found
    assert by_name(machine.cuda("cuda:0"))["CUDA"].level == "red"


def test_more_threads_than_cores_are_yellow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert levels(machine.threads(None)) == {"threads": "green"}
    assert levels(machine.threads(4096)) == {"threads": "yellow"}
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    (found,) = machine.threads(None)
    assert found.level == "yellow"
    assert "OMP_NUM_THREADS=4096" in found.found


def test_the_limits_of_control_groups_are_read_in_both_versions(tmp_path: Path) -> None:
    two = tmp_path / "two"
    (two / "user" / "job").mkdir(parents=True)
    (two / "user" / "cpu.max").write_text("150000 100000\n")
    (two / "user" / "job" / "cpu.max").write_text("max 100000\n")
    groups = tmp_path / "groups"
    groups.write_text("0::/user/job\n")
    for place, most, current in (
        ("", "max", "700"),
        ("user", "900", "500"),
        ("user/job", "500", "300"),
    ):
        (two / place / "memory.max").write_text(f"{most}\n")
        (two / place / "memory.current").write_text(f"{current}\n")
        (two / place / "memory.stat").write_text("anon 1\ninactive_file 50\n")
    assert control_groups.cpu_quota(two, groups) == 1.5
    assert control_groups.free_memory(two, groups) == 250
    one = tmp_path / "one" / "cpu" / "docker"
    one.mkdir(parents=True)
    (one / "cpu.cfs_quota_us").write_text("50000\n")
    (one / "cpu.cfs_period_us").write_text("100000\n")
    memory = tmp_path / "one" / "memory" / "docker"
    memory.mkdir(parents=True)
    for name, value in (
        ("limit_in_bytes", "700"),
        ("usage_in_bytes", "200"),
        ("stat", "total_inactive_file 20"),
    ):
        (memory / f"memory.{name}").write_text(f"{value}\n")
    groups.write_text("3:cpu:/docker\n4:memory:/docker\n0::/\n")
    assert control_groups.cpu_quota(tmp_path / "one", groups) == 0.5
    assert control_groups.free_memory(tmp_path / "one", groups) == 520
    for limit in (control_groups.cpu_quota, control_groups.free_memory):
        assert limit(tmp_path, tmp_path / "none") is None


def test_a_clock_behind_the_newest_run_is_noticed(tmp_path: Path) -> None:
    assert levels(machine.clock(tmp_path)) == {"clock": "green"}
    run = tmp_path / "0123456789ab"
    run.mkdir()
    for ahead, level in ((20, "yellow"), (3600, "red")):
        os.utime(run, (time.time() + ahead, time.time() + ahead))
        assert levels(machine.clock(tmp_path)) == {"clock": level}


# --- extensions


GOOD = """
    from dks import extend

    @extend.matching_strategy("ring", version="3")
    def ring(classifiers):
        return list(zip(classifiers, [*classifiers[1:], classifiers[0]]))
"""


def test_extensions_are_green_with_their_version_and_red_where_they_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    assert levels(extensions.extensions()) == {"extensions": "grey"}
    good, broken, twin = (tmp_path / f"{name}.py" for name in ("good", "broken", "twin"))
    good.write_text(dedent(GOOD))
    monkeypatch.setenv(VARIABLE, str(good))
    (found,) = extensions.extensions()
    assert (found.level, found.name, found.found) == (
        "green",
        "matching_strategy",
        f"ring@3, the file {good}",
    )
    broken.write_text(dedent(GOOD).replace("ring", "line").replace("@extend", "1 / 0\n@extend"))
    twin.write_text(dedent(GOOD).replace("ring", "bidir"))
    monkeypatch.setenv(
        VARIABLE, os.pathsep.join(map(str, (good, broken, twin, tmp_path / "none.py")))
    )
    lost, *each = extensions.extensions()
    assert (lost.name, lost.level) == (
        "extensions",
        "red",
    ) and f"there is no {tmp_path / 'none.py'}" in lost.found
    assert [finding.level for finding in each] == ["red", "red", "green"]
    assert (
        f"the file {broken} cannot be imported: ZeroDivisionError: division by zero"
        in each[1].found
    )
    assert "is there more than once, in dks itself and" in each[0].found
    assert all("\n" not in finding.found and finding.advice for finding in (lost, *each[:2]))


def test_an_entry_point_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    (tmp_path / "whole_part.py").write_text(dedent(GOOD))
    distribution = tmp_path / "mine-2.5.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 2.5\n")
    lines = [
        "[dks.extensions]",
        "matching_strategy.ring = whole_part",
        "backbone.lost = no_such_module",
        "network.other = x",
    ]
    (distribution / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    odd, lost, ring = extensions.extensions()
    assert (odd.level, lost.level, ring.level) == ("red", "red", "green")
    assert "the entry point network.other must be KIND.NAME" in odd.found
    assert (
        "the package mine 2.5 cannot be imported: ModuleNotFoundError: No module named "
        "'no_such_module'" in lost.found
    )
    assert (ring.name, ring.found) == ("matching_strategy", "ring@3, the package mine 2.5")


# --- data


def test_data_without_files_is_green() -> None:
    assert levels(images.images(Data(source="digits"))) == {"digits": "green"}


def test_cifar_files_are_held_against_the_published_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from torchvision.datasets import CIFAR100

    data = Data(source="cifar100", root=str(tmp_path))
    (found,) = images.images(data)
    assert (found.level, found.details) == ("red", ("train", "test", "meta"))
    (found,) = images.images(Data(source="cifar100", root=str(tmp_path), download=True))
    assert found.level == "yellow"
    assert "will be downloaded" in found.found
    write_cifar(tmp_path, 100)
    (found,) = images.images(data)
    assert (found.level, found.details) == ("red", ("train", "test", "meta")), (
        "these are not the published files"
    )
    assert "data.download=true" in found.advice

    def checksum(name: str) -> str:
        return hashlib.md5((tmp_path / "cifar-100-python" / name).read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR100, "train_list", [["train", checksum("train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", checksum("test")]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": checksum("meta")})
    assert levels(images.images(data)) == {"cifar100": "green"}
    with (tmp_path / "cifar-100-python" / "train").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x00\x01\x02")
    (found,) = images.images(data)
    assert (found.level, found.details) == ("red", ("train",))
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps({}))
    (tmp_path / "cifar-100-python" / "meta").unlink()
    assert [each.details for each in images.images(data)] == [("train", "test"), ("meta",)]


def test_parquet_files_are_opened_counted_and_tried(tmp_path: Path) -> None:
    write_parquet(tmp_path, "train", [8] * 7, [0, 1, 2, 3, 0, 1, 2])
    write_parquet(tmp_path, "test", [8] * 2, [3, 0])
    found = by_name(images.images(Data(source="parquet", root=str(tmp_path))))
    assert "4 classes, 7 images in 1 file(s), 8x8 pixels" in found["train"].found
    assert "2 images" in found["test"].found
    assert {each.level for each in found.values()} == {"green"}
    write_parquet(tmp_path, "train", [8, 10, 8, 8], [0, 1, 2, 3])
    found = by_name(images.images(Data(source="parquet", root=str(tmp_path))))
    assert (found["train"].level, found["train"].advice[:15]) == ("red", "data.image_size")
    no_label(tmp_path)
    (wrong,) = images.images(Data(source="parquet", root=str(tmp_path)))
    assert (wrong.level, "has no column label" in wrong.found) == ("red", True)
    (wrong,) = images.images(Data(source="parquet"))
    assert "data.root has no value" in wrong.found


def test_folders_of_images_agree_in_their_classes_and_decode(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "1.png")
    data = Data(source="imagefolder", root=str(tmp_path))
    assert levels(images.images(data)) == {"train": "green", "val": "green"}
    picture = tmp_path / "val" / "dog" / "1.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:40])
    found = by_name(images.images(data))
    assert (found["val"].level, str(picture) in found["val"].found) == ("red", True)
    picture.write_bytes(whole)
    (tmp_path / "val" / "bird").mkdir()
    (found_wrong,) = images.images(data)
    assert (found_wrong.level, "for example bird" in found_wrong.found) == ("red", True)
    (missing,) = images.images(Data(source="imagenet", root=str(tmp_path / "nowhere")))
    assert missing.level == "red"


# --- disks


def test_a_folder_is_tried_out_and_left_as_it_was(tmp_path: Path) -> None:
    (found,) = storage.folder("runs", tmp_path / "a" / "runs")
    assert found.level == "green"
    assert "(not there yet)" in found.found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_red_and_a_cache_yellow(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "runs", Path("/proc/runs")):
        (found,) = storage.folder("runs", place)
        assert found.level == "red"
        assert "runs_dir=FOLDER" in found.advice
        (found,) = storage.folder("cache", place, needed=False)
        assert found.level == "yellow"


def test_locks_that_another_process_does_not_see_are_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import SoftFileLock

    class Unseen(SoftFileLock):
        """As on a file system without locks: it is held here, and nobody else notices."""

        def _acquire(self) -> None:
            super()._acquire()
            Path(self.lock_file).unlink()

    monkeypatch.setattr(storage, "FileLock", Unseen)
    found = list(storage.folder("runs", tmp_path))
    assert [each.level for each in found] == ["green", "red"]
    assert "two processes would run the same cell" in found[1].found


def test_the_file_system_is_that_of_the_innermost_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [("/", "ext4"), ("/net", "tmpfs"), ("/net", "nfs4"), ("/net/my data", "lustre")]
    listed = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in mounts]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: listed)
    places = {"/var": "ext4", "/net/me": "nfs4", "/net/my data/runs": "lustre", "/nets": "ext4"}
    assert {place: storage.filesystem(Path(place)) for place in places} == places


def test_an_sqlite_store_on_a_network_file_system_is_yellow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "filesystem", lambda path: "nfs4")
    (found,) = storage.folder("store", tmp_path, store=True)
    assert found.level == "yellow"
    assert "tracking=server" in found.advice
    (found,) = storage.folder("runs", tmp_path)
    assert found.level == "green"


@pytest.mark.slow
def test_a_disk_that_is_nearly_full_is_red(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m,nr_inodes=50", "tmpfs", str(tmp_path)], check=False
    )
    if mounted.returncode:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "only root can mount a small disk"
        )
    try:
        (found,) = storage.folder("runs", tmp_path)
        assert found.level == "red"
        assert "tmpfs" in found.found
        assert "more files" in found.found
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- tracking: a store


def local(uri: str) -> Tracking:
    return Tracking(kind=TrackingKind.local, uri=uri)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the installed MLflow with the experiment dks and a run RUNNING in it."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = mlflow_client(f"sqlite:///{file}")
    client.create_run(client.create_experiment("dks"))
    return file


def test_no_tracking_is_grey_and_no_store_yet_is_green(tmp_path: Path) -> None:
    assert levels(tracking.tracking(Tracking(kind=TrackingKind.off, uri=None))) == {
        "tracking": "grey"
    }
    assert levels(tracking.tracking(local(f"sqlite:///{tmp_path}/mlflow.db"))) == {"store": "green"}
    assert list(tmp_path.iterdir()) == [], "looking creates nothing"
    assert levels(tracking.tracking(local(f"sqlite:///{tmp_path}/no/mlflow.db"))) == {
        "store": "red"
    }


@pytest.mark.slow
def test_a_whole_store_is_green_and_its_runs_are_counted(store: Path) -> None:
    found = by_name(tracking.tracking(local(f"sqlite:///{store}")))
    assert {each.level for each in found.values()} == {"green"}
    assert "1 RUNNING" in found["experiment"].found
    assert metadata.version("mlflow") in found["schema"].found


def changed(store: Path, folder: Path, *statements: str) -> str:
    """The URI of a copy in which these statements were executed."""
    copy = folder / "mlflow.db"
    copy.write_bytes(store.read_bytes())
    with closing(sqlite3.connect(copy)) as file, file:
        for statement in statements:
            file.execute(statement)
    return f"sqlite:///{copy}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "advice"), [("181f10493468", "mlflow db upgrade"), ("ffffffffffff", "tracking.uri")]
)
def test_a_store_of_another_mlflow_is_red(
    store: Path, tmp_path: Path, version: str, advice: str
) -> None:
    uri = changed(store, tmp_path, f"UPDATE alembic_version SET version_num = '{version}'")
    (found,) = tracking.tracking(local(uri))
    assert (found.name, found.level) == ("schema", "red")
    assert version in found.found
    assert advice in found.advice


@pytest.mark.slow
def test_a_deleted_experiment_is_red_and_one_that_is_not_there_yet_is_not(
    store: Path, tmp_path: Path
) -> None:
    uri = changed(
        store, tmp_path, "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'dks'"
    )
    found = by_name(tracking.tracking(local(uri)))
    assert (
        found["experiment"].level,
        "mlflow experiments restore" in found["experiment"].advice,
    ) == ("red", True)
    other = Tracking(kind=TrackingKind.local, uri=f"sqlite:///{store}", experiment="other")
    assert by_name(tracking.tracking(other))["experiment"].level == "green"


def test_a_file_that_is_no_database_is_red(tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_bytes(b"garbage" * 1000)
    (found,) = tracking.tracking(local(f"sqlite:///{tmp_path}/garbage.db"))
    assert (found.level, "not a database" in found.found) == ("red", True)


@pytest.mark.slow
def test_a_damaged_store_is_red(store: Path, tmp_path: Path) -> None:
    uri, copy = changed(store, tmp_path), tmp_path / "mlflow.db"
    query = "SELECT rootpage FROM sqlite_master WHERE name = 'latest_metrics'"
    with closing(sqlite3.connect(copy)) as file:
        page = file.execute("PRAGMA page_size").fetchone()[0]
        root = file.execute(query).fetchone()[0]
    with copy.open("r+b") as raw:
        raw.seek((root - 1) * page)
        raw.write(b"\xff" * page)
    assert "red" in levels(tracking.tracking(local(uri))).values()


@pytest.mark.slow
def test_a_store_in_postgresql_is_looked_at_as_well(postgresql: str) -> None:
    from sqlalchemy import create_engine, text

    (empty,) = tracking.tracking(local(postgresql))
    assert (empty.level, "without MLflow's tables" in empty.found) == ("green", True)
    mlflow_client(postgresql).create_experiment("dks")
    found = by_name(tracking.tracking(local(postgresql)))
    assert {name: each.level for name, each in found.items()} == dict.fromkeys(
        ("schema", "store", "experiment"), "green"
    )
    engine = create_engine(postgresql)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '181f10493468'"))
    engine.dispose()
    (old,) = tracking.tracking(local(postgresql))
    assert (old.name, old.level) == ("schema", "red")
    (port,) = free_ports(1)
    (silent,) = tracking.tracking(local(f"postgresql://me:correct-horse@127.0.0.1:{port}/mlflow"))
    assert silent.level == "red"
    assert "correct-horse" not in str(silent)


# --- tracking: a server


@contextmanager
def server(
    answer: Callable[[BaseHTTPRequestHandler], None], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server that answers every request so; its URI."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        if tls is not None:
            listening.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
            listening.socket = tls.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            host = "http://127.0.0.1" if tls is None else "https://localhost"
            yield f"{host}:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


def says(
    status: int = 200,
    body: str = "OK",
    ahead: float | None = 0,
    version: str = "",
    api: tuple[int, str] = (200, ""),
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers as MLflow's server, with a clock that is so many seconds ahead.

    None: it tells no time.
    """

    def answer(request: BaseHTTPRequestHandler) -> None:
        code, text = status, body
        if status == 200 and request.path == "/version":
            text = version or metadata.version("mlflow")
        elif status == 200 and request.path.startswith("/api/"):
            code, text = api
        request.send_response_only(code)
        if ahead is not None:
            request.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
        request.end_headers()
        request.wfile.write(text.encode())

    return answer


THERE = (200, json.dumps({"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}}))
ABSENT = (404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST"}))
DELETED = (200, json.dumps({"experiment": {"experiment_id": "1", "lifecycle_stage": "deleted"}}))


def asked(uri: str) -> Found:
    return by_name(tracking.tracking(Tracking(kind=TrackingKind.local, uri=uri)))


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_that_is_well_is_green() -> None:
    for api in (THERE, ABSENT):
        with server(says(api=api)) as uri:
            found = asked(uri)
        assert {name: each.level for name, each in found.items()} == dict.fromkeys(
            ("connection", "answer", "clock", "version", "account"), "green"
        )
    assert "not there yet" in found["account"].found


@pytest.mark.parametrize(
    ("answer", "name", "level", "told"),
    [
        (says(ahead=30, api=THERE), "clock", "yellow", "ahead of"),
        (says(ahead=-7200, api=THERE), "clock", "red", "behind"),
        (says(ahead=None, api=THERE), "clock", "grey", "no time"),
        (says(version="1.30.0", api=THERE), "version", "red", "1.30.0"),
        (says(version="3.0.1", api=THERE), "version", "yellow", "3.0.1"),
        (says(401, "You are not authenticated."), "account", "red", "401"),
        (says(api=(401, "You are not authenticated.")), "account", "red", "MLFLOW_TRACKING_TOKEN"),
        (says(api=(403, "Permission denied")), "account", "red", "Permission denied"),
        (
            says(api=(403, "Invalid Host header - possible DNS rebinding attack detected")),
            "host",
            "red",
            "--allowed-hosts",
        ),
        (says(502, "Bad Gateway"), "answer", "red", "502"),
        (says(200, "<html>welcome</html>"), "answer", "red", "welcome"),
        (says(api=(200, "<html>")), "account", "red", "not answer as MLflow's"),
        (says(api=DELETED), "experiment", "red", "mlflow experiments restore -x 1"),
    ],
)
def test_what_is_wrong_with_a_server_is_told(
    answer: Callable[[BaseHTTPRequestHandler], None], name: str, level: str, told: str
) -> None:
    with server(answer) as uri:
        found = asked(uri)
    assert found[name].level == level, found
    assert told in found[name].found + found[name].advice


def test_a_server_that_speaks_no_http_or_nothing_at_all_is_found_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def garbage(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"\x00\x01 what is this\n\n")

    with server(garbage) as uri:
        assert asked(uri)["answer"].level == "red"
    monkeypatch.setattr(tracking, "ANSWER", 0.5)
    release = threading.Event()
    with server(lambda request: (release.wait(30), None)[1]) as uri:
        began = time.monotonic()
        assert asked(uri)["answer"].level == "red"
        assert time.monotonic() - began < 5
        release.set()


def test_a_port_without_a_server_and_a_name_without_an_address_are_red() -> None:
    (port,) = free_ports(1)
    found = asked(f"http://127.0.0.1:{port}")["connection"]
    assert (found.level, f":{port}" in found.found) == ("red", True)
    assert asked("http://no-such-host.invalid:5000")["name"].level == "red"


@pytest.mark.slow
@pytest.mark.parametrize(("days", "level"), [(400, "green"), (5, "yellow")])
def test_a_certificate_that_nobody_signed_is_red_and_one_that_is_named_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, level: str
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days {days} -subj /CN=localhost"
    names = f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(f"{command} {names}".split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH", raising=False)
    with server(says(api=THERE)) as plain:
        port = int(plain.rpartition(":")[2])
        found = asked(f"https://localhost:{port}")
        assert found["certificate"].level == "red", "it speaks no TLS"
    with server(says(api=THERE), context) as uri:
        found = asked(uri)
        assert found["certificate"].level == "red"
        assert "answer" not in found, "no password is sent to it"
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        found = asked(uri)
        assert (found["certificate"].level, found["account"].level) == (level, "green")


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    with server(says(api=(401, "correct-horse is wrong"))) as uri:
        found = asked(uri.replace("//", "//me:correct-horse@"))
    assert found["account"].level == "red"
    assert "correct-horse" not in str(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_mlflow_server_is_green_and_one_for_other_hosts_is_red(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    store = f"--backend-store-uri sqlite:///{tmp_path}/s.db"
    command = f"-m mlflow server {store} --port {port} --workers 1 --allowed-hosts".split()
    for hosts, expected in (("localhost:*", "green"), ("elsewhere.example.org", "red")):
        process = subprocess.Popen(
            [sys.executable, *command, hosts],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 90
            while "Connection refused" in str(found := asked(f"http://localhost:{port}")):
                assert time.monotonic() < until
                time.sleep(0.5)
            if expected == "green":
                assert {each.level for each in found.values()} == {"green"}, found
            else:
                last = list(found.values())[-1]
                assert (last.level, "--allowed-hosts" in last.advice) == ("red", True), found
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


# --- SLURM


def test_slurm_that_is_not_installed_is_grey_and_half_of_it_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert levels(slurm.slurm()) == {"SLURM": "grey"}
    program(tmp_path, monkeypatch, "sbatch", "echo slurm 23.11")
    (found,) = slurm.slurm()
    assert found.level == "red"
    assert "squeue" in found.found


def test_a_controller_that_does_not_answer_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in slurm.COMMANDS:
        program(tmp_path / "bin", monkeypatch, name, "sleep 30")
    monkeypatch.setattr(slurm, "PATIENCE", 0.3)
    (found,) = slurm.slurm()
    assert (found.name, found.level) == ("controller", "red")


@pytest.mark.slow
def test_a_real_cluster_is_green_and_drained_nodes_are_yellow(cluster: Cluster) -> None:
    found = by_name(slurm.slurm())
    assert found["controller"].level == "green"
    assert found["partition low*"].level == "green", found
    assert "2 nodes" in found["partition high"].found
    assert found["accounting"].level == "grey"
    assert found["submitit"].level == "green"
    cluster.command("scontrol", "update", "NodeName=n1,n2", "State=drain", "Reason=test")
    try:
        assert by_name(slurm.slurm())["partition low*"].level == "yellow"
    finally:
        cluster.command("scontrol", "update", "NodeName=n1,n2", "State=resume")


# --- what a user types


def page(encoding: str = "utf-8", **console: object) -> tuple[str, io.BytesIO]:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    shown = Console(file=out, highlight=False, **console)  # type: ignore[arg-type]
    findings = [
        green("torch", "2.15"),
        yellow("threads", "many " * 30, "fewer"),
        red("store", "[gone]", "cp a b"),
    ]
    show(shown, "Things", findings)
    show_total(shown, findings)
    return raw.getvalue().decode(encoding), raw


def test_findings_are_aligned_and_readable_without_colour_and_without_unicode() -> None:
    text, _ = page()
    assert "\x1b" not in text
    assert text.splitlines()[1] == "  ✓ torch             2.15"
    assert "  ✗ store             [gone]" in text
    assert "\n                      -> cp a b\n" in text
    assert text.splitlines()[-1] == "1 green, 1 yellow, 1 red"
    plain, _ = page("ascii")
    assert "  XX store             [gone]" in plain
    folded, _ = page(force_terminal=True, width=60, no_color=True)
    assert max(len(line) for line in folded.splitlines()) <= 70
    assert "many\n                      many" in folded.replace("\x1b[0m", "").replace(
        "\x1b[1m", ""
    )
    coloured, _ = page(force_terminal=True, width=100, color_system="standard")
    assert "\x1b[31m" in coloured


@pytest.mark.slow
def test_the_command_tells_everything_in_json_and_by_its_exit_status(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    store.write_bytes(b"garbage" * 1000)
    process = start(
        ["-m", "dks", "doctor", "--json", "data=parquet", f"data.root={tmp_path}"], tmp_path
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    found = json.loads(out)
    assert all(
        set(each) == {"group", "name", "level", "found", "advice", "details"} for each in found
    )
    wrong = {each["name"] for each in found if each["level"] == "red"}
    assert {"parquet", "store"} <= wrong, found
    assert all(each["advice"] for each in found if each["level"] in ("yellow", "red"))
    assert "Traceback" not in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "nothing is left behind"
