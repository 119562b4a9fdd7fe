"""What has the place of a file and is none, or has no end.

One line with its name, nobody waits for it, no memory is filled.
"""

from __future__ import annotations

import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dks.config import registry as catalogue
from dks.config.errors import RequestError
from dks.config.reading import MIB, Unfit, check_file, open_file, read_bytes, read_text
from dks.config.schema import Data, Tracking
from dks.data import describe
from dks.data.images import decode
from dks.data.sizes import image_size
from dks.models.weights import fingerprint, load_state_dict
from dks.runs import heartbeat
from dks.runs.launches import LaunchFolder
from dks.runs.record import RunFolder
from dks.runs.states import State, look_up
from dks.sweeps import files, manifest
from dks.tracking import store
from dks.tracking.records import RecordSource
from dks.tracking.upload import lay_out
from dks.tracking.upload_state import UploadState
from dks.training import checkpoint
from dks.training.run import Outcome, run_cell
from tests.conftest import finished_run, queued
from tests.data.test_imagefolder import write_images

pytestmark = pytest.mark.timeout(60)  # whatever waits for a FIFO would wait for ever


def put_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    before = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def put_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def put_huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**42)  # it takes no room


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a FIFO": put_fifo,
    "a socket": put_socket,
    "a device": put_device,
}
KINDS = pytest.mark.parametrize("kind", SPECIAL)


@KINDS
def test_only_a_file_is_opened(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](tmp_path / "it")
    for read in (read_bytes, read_text, open_file, check_file):
        with pytest.raises(Unfit, match=f"^it is {kind} where a file should be$") as refused:
            read(tmp_path / "it")
        assert refused.value.filename == str(tmp_path / "it")


def test_what_is_larger_than_it_can_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"a\r\n" * 1000)
    assert len(read_bytes(tmp_path / "it", 3000)) == 3000
    assert read_text(tmp_path / "it") == "a\n" * 1000
    put_huge(tmp_path / "it")
    with pytest.raises(Unfit, match=r"^it is larger than 32 MiB$"):
        read_text(tmp_path / "it")
    with pytest.raises(Unfit, match=r"^it is larger than 1 MiB$"):
        read_bytes("/proc/self/pagemap", MIB)  # says that it has no bytes, and has no end
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


# --- what lies in the folder of a run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def done(made: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(made.path, tmp_path / "runs" / made.cell_id))


@pytest.mark.parametrize("kind", [*SPECIAL, "huge"])
def test_a_finished_run_stays_finished_whatever_took_the_place_of_its_record(
    done: RunFolder, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    (SPECIAL | {"huge": put_huge})[kind](done.record_file)
    state, record = look_up(done.path.parent, done.cell_id)
    assert record is not None and (state, record.final["epoch"]) == (State.done, 2)
    why = "it is larger than 32 MiB" if kind == "huge" else f"it is {kind} where a file should be"
    assert f"{done.record_file} is damaged ({why})" in caplog.text
    done.mend_record()
    assert done.record_file.is_file() and not done.record_file.is_symlink()


@pytest.mark.parametrize("kind", [*SPECIAL, "huge"])
def test_the_other_files_of_a_run_hang_no_command(
    done: RunFolder, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    put = (SPECIAL | {"huge": put_huge})[kind]
    for path in (done.config_file, done.journal.path, done.mlflow_file, done.path / heartbeat.FILE):
        put(path)
    assert (done.journal.read(), done.journal.read_from(0)) == ([], ([], 0))
    why = "is larger than 1,024 MiB" if kind == "huge" else f"is {kind} where a file should be"
    assert caplog.messages == [f"{done.journal.path} {why}; nothing of it is read"]
    with pytest.raises(
        RequestError,
        match=rf"config\.yaml cannot be read: it is ({kind} where|larger than 1 MiB)|larger",
    ):
        done.read_config()
    assert not done.config_is_whole()
    assert UploadState.read(done) is None and heartbeat.read(done.path) is None
    (row,) = RecordSource(str(done.path.parent)).runs().to_dict("records")
    assert (row["state"], row["mlflow_run_id"], row["epochs"]) == ("done", None, 0)
    assert RecordSource(str(done.path.parent)).config(done.cell_id) == {}


def test_an_endless_header_is_no_header(done: RunFolder) -> None:
    content = done.weights_file.read_bytes()
    for length in (2**63, 2**41):
        done.weights_file.write_bytes(length.to_bytes(8, "little") + content[8:])
        put_huge(done.weights_file)
        assert not done._has_weights()
        done.weights_file.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(RequestError, match=f"{done.weights_file} is cut off, damaged"):
            load_state_dict(done.weights_file, ())


@KINDS
def test_a_run_goes_on_where_something_else_took_the_place_of_its_files(
    tmp_path: Path, kind: str
) -> None:
    run = queued(tmp_path, "recipe.epochs=1")
    run.checkpoints.mkdir()
    places = [
        run.journal.path,
        run.log_file,
        run.weights_file,
        run.checkpoints / checkpoint.NEWEST,
        run.diff_file,
    ]
    drafts = [
        f".record.json.{os.getpid()}",
        ".weights.safetensors",
        ".heartbeat.json",
        f"checkpoints/{checkpoint.DRAFT}",
    ]
    for path in (*places, *(run.path / name for name in drafts)):
        SPECIAL[kind](path)
    assert run_cell(run.path) is Outcome.done
    assert [entry.epoch for entry in run.journal.read()] == [1]
    assert run._has_weights()
    assert (
        run.path.joinpath("metrics.damaged.jsonl").exists()
        and run.path.joinpath("weights.damaged.safetensors").exists()
    )


# --- weights and checkpoints


@KINDS
def test_weights_are_in_a_file(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](path := tmp_path / "w.pt")
    for read in (partial(load_state_dict, names=()), fingerprint):
        with pytest.raises(
            RequestError, match=f"^{path} cannot be read: it is {kind} where a file should be$"
        ):
            read(path)


def test_weights_that_fit_into_no_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_huge(path := tmp_path / "w.pt")
    for read in (partial(load_state_dict, names=()), fingerprint):
        with pytest.raises(RequestError, match=f"^{path} cannot be read: it is larger than "):
            read(path)
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", bytes(2 * MIB))
    monkeypatch.setattr("dks.models.weights.free_memory", lambda device: MIB)
    with pytest.raises(
        RequestError, match=r"packed\.pt is .* no file of weights .*it is larger than 1 MiB"
    ):
        load_state_dict(tmp_path / "packed.pt", ())


def test_a_checkpoint_that_does_not_fit_into_the_memory_is_kept(tmp_path: Path) -> None:
    """It may fit later: a run that has one does not begin anew."""
    put_huge(path := tmp_path / checkpoint.NEWEST)
    with pytest.raises(RequestError, match=f"{path} does not fit into the memory: 4,194,304 MiB"):
        checkpoint.find(tmp_path, 3)
    assert path.exists()


# --- what commands are told by


def test_sweeps_launches_and_extensions_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = LaunchFolder.create(str(tmp_path), "mine", "local", [tmp_path / "cell"], None)
    launch.lock.release()
    put_fifo(launch.file)
    with pytest.raises(
        RequestError,
        match=r"launch\.json cannot be read: it is a FIFO where a file should be; type",
    ):
        launch.read()
    put_fifo(manifest.file(str(tmp_path), "mine"))
    with pytest.raises(
        RequestError, match=r"sweep\.json cannot be read: it is a FIFO where a file should be"
    ):
        manifest.read(str(tmp_path), "mine")
    monkeypatch.setattr(files, "declarations", lambda folder: tmp_path)
    put_fifo(tmp_path / "own.yaml")
    put_huge(tmp_path / "large.yaml")
    with pytest.raises(
        RequestError, match=r"^own\.yaml cannot be read: it is a FIFO where a file should be$"
    ):
        files.read("own")
    with pytest.raises(
        RequestError, match=r"^large\.yaml cannot be read: it is larger than 1 MiB$"
    ):
        files.read("large")
    put_fifo(tmp_path / "mine.py")
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path / "mine.py"))
    (problem,) = catalogue.catalogue().problems
    assert (
        problem
        == f"the file {tmp_path / 'mine.py'} cannot be read: it is a FIFO where a file should be"
    )


def test_a_store_is_a_file(tmp_path: Path) -> None:
    put_fifo(tmp_path / "mlflow.db")
    with pytest.raises(
        RequestError, match=r"mlflow\.db cannot be read: it is a FIFO where a file should be"
    ):
        store.look(Tracking(uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))


# --- images


@KINDS
def test_images_are_files(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](path := tmp_path / "x.png")
    with pytest.raises(
        ValueError,
        match=rf"x\.png: the image cannot be decoded \(it is {kind} where a file should be\)",
    ):
        decode(path, str(path))
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        SPECIAL[kind](tmp_path / "parquet" / f"{split}.parquet")
    data = Data(source="parquet", root=str(tmp_path / "parquet"))
    with pytest.raises(
        RequestError, match=rf"test\.parquet cannot be read: it is {kind} where a file should be"
    ):
        describe(data)
    assert image_size(data) is None
    write_images(tmp_path / "folder")
    for path in (tmp_path / "folder").rglob("*.JPEG"):
        SPECIAL[kind](path)
    assert image_size(Data(source="imagefolder", root=str(tmp_path / "folder"))) is None


def test_an_image_beyond_all_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write_images(tmp_path)
    put_huge(path := tmp_path / "train" / "ant" / "0.JPEG")
    with pytest.raises(RequestError, match=f"^{path} cannot be read: it is larger than 1,024 MiB$"):
        describe(Data(source="imagefolder", root=str(tmp_path)))


def test_a_log_without_an_end_is_not_sent(done: RunFolder, tmp_path: Path) -> None:
    put_huge(done.path / "run.log")
    (into := tmp_path / "sent").mkdir()
    lay_out(done, into)
    assert (
        "run.log"
        not in {path.name for path in into.iterdir()}
        >= {"config.yaml", "record.json", "metrics.jsonl"}
    )
