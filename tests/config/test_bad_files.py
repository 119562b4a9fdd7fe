"""Files that are truncated, foreign or malicious.

An error with the file's name, nothing run, nothing else harmed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dks import data
from dks.config.errors import RequestError
from dks.config.frozen import from_yaml
from dks.config.schema import Data
from dks.data.images import decode
from dks.data.registry import source
from dks.models.weights import load_state_dict
from dks.runs.launches import LaunchFolder
from dks.runs.record import RunFolder
from dks.sweeps import manifest
from dks.sweeps.manifest import Manifest, ManifestCell
from dks.training import checkpoint
from dks.training.run import Outcome, run_cell
from tests.conftest import queued
from tests.data.test_data import no_label, write_parquet, wrong_image
from tests.data.test_imagefolder import write_images


class Command:
    """What a malicious pickle is: the command runs when the object is loaded."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.made}",)


# --- checkpoints and weights


def as_checkpoint(content: object) -> bytes:
    """With the right checksum, as whoever made it would see to."""
    body = io.BytesIO()
    torch.save(content, body)
    return body.getvalue() + hashlib.sha256(body.getvalue()).digest()


def test_a_pickle_with_a_command_would_run_it(tmp_path: Path) -> None:
    """That the next tests can fail."""
    pickle.loads(pickle.dumps(Command(tmp_path / "made")))
    assert (tmp_path / "made").exists()


def test_a_checkpoint_with_a_command_is_damaged_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NEWEST
    path.write_bytes(as_checkpoint({"progress": (1, 1, 1), "network": Command(tmp_path / "made")}))
    with pytest.raises(checkpoint.Damaged, match="holds what no checkpoint does"):
        checkpoint.read(path)
    assert not (tmp_path / "made").exists()
    assert checkpoint.find(tmp_path, 0) is None, "the run begins anew"
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 31, os.urandom(1) * 500, as_checkpoint([1, 2]), as_checkpoint({"x": 1})],
)
def test_a_checkpoint_of_another_kind_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(checkpoint.Damaged):
        checkpoint.read(tmp_path / "last.pt")


def test_a_raw_pickle_as_weights_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"conv.weight": Command(tmp_path / "made")}))
    with pytest.raises(RequestError, match=str(path)):
        load_state_dict(path, ["w"])
    assert not (tmp_path / "made").exists()


# --- configurations, records, sweeps


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return queued(tmp_path_factory.mktemp("queued"))


HOSTILE_CONFIGS = {
    "a command": ("sweep: null", "sweep: !!python/object/apply:os.system ['touch made']"),
    "an object": ("seed: 0", "seed: !!python/name:os.system"),
    "the environment": ("sweep: null", "sweep: ${oc.env:HOME}"),
    "the environment, elsewhere": ("experiment: dks", "experiment: ${oc.env:PATH}"),
    "a reference inside of a text": ("sweep: null", "sweep: x${results_dir}"),
    "references that grow": ("sweep: null", "sweep: ${results_dir}${results_dir}"),
    "a reference with a name made elsewhere": ("sweep: null", "sweep: ${${results_dir}:HOME}"),
    "a reference to itself": ("seed: 0", "seed: ${seed}"),
    "brackets": ("seed: 0", f"seed: {'[' * 5000}"),
    "aliases": ("sweep: null", "sweep: &a x\nresults_dir: *a"),
    "an unknown key": ("seed: 0", "seed: 0\nevil: 1"),
    "another type": ("seed: 0", "seed: {a: 1}"),
    "bytes": ("seed: 0", "seed: \x00"),
}


@pytest.mark.parametrize("what", HOSTILE_CONFIGS)
def test_a_hostile_configuration_is_refused_with_its_name(
    ready: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = HOSTILE_CONFIGS[what]
    text = ready.config_file.read_text()
    assert old in text
    from_yaml(text)
    folder = RunFolder(tmp_path / ready.cell_id)
    folder.path.mkdir()
    folder.config_file.write_text(text.replace(old, new))
    with pytest.raises(RequestError, match=r"config\.yaml cannot be read") as refused:
        folder.read_config()
    assert os.environ["HOME"] not in str(refused.value).replace(str(tmp_path), "")
    assert not (tmp_path / "made").exists()


def test_aliases_that_would_fill_the_memory_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match="aliases"):
        from_yaml("\n".join(lines))


HOSTILE_RECORDS: dict[str, dict[str, Any]] = {
    "another cell": {"cell_id": "../../../../tmp"},
    "a name that is a list": {"sweep": ["x"]},
    "a sweep elsewhere": {"sweep": "../../x"},
    "a condition for a store": {"uid": "' OR attributes.status = 'RUNNING"},
    "a number for a dict": {"final": 3},
    "attempts that are none": {"attempts": {"a": 1}},
    "a code that is none": {
        "attempts": [
            {
                "started": "2026-01-01",
                "host": "a",
                "pid": 1,
                "device": "cpu",
                "threads": 1,
                "code": "\x1b[2J",
            }
        ]
    },
    "an unknown status": {"status": "owned"},
    "a version that is a text": {"schema_version": "9"},
}


@pytest.mark.parametrize("what", HOSTILE_RECORDS)
def test_a_hostile_record_is_a_damaged_one(
    ready: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    folder = RunFolder(tmp_path / ready.cell_id)
    folder.path.mkdir()
    folder.config_file.write_text(ready.config_file.read_text())
    values = json.loads(ready.record_file.read_text()) | HOSTILE_RECORDS[what]
    folder.record_file.write_text(json.dumps(values))
    record = folder.read_record()
    assert record is not None and folder.record_is_damaged
    assert (record.cell_id, record.status.value) == (ready.cell_id, "killed")
    assert f"{folder.record_file} is damaged" in caplog.text


def test_a_record_of_a_newer_version_is_refused_with_its_name(
    ready: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / ready.cell_id)
    folder.path.mkdir()
    folder.record_file.write_text(
        json.dumps(json.loads(ready.record_file.read_text()) | {"schema_version": 99})
    )
    with pytest.raises(RequestError, match=r"record\.json is of version 99"):
        folder.read_record()


HOSTILE_SWEEPS: dict[str, dict[str, Any]] = {
    "a cell elsewhere": {"cell_id": "../../../home"},
    "a part elsewhere": {"parts": ["../../x"]},
    "an option": {"request": ["--config-dir=/tmp/evil"]},
    "a class of Hydra": {"request": ["hydra.launcher._target_=os.system"]},
    "another class of Hydra": {"request": ["++hydra.callbacks.x._target_=os.system"]},
    "nothing": {"request": [""]},
    "all of Hydra": {"request": ["++hydra={launcher: {_target_: os.system}}"]},
    "a choice of another folder": {"request": ["backbone=../../../tmp/evil"]},
    "a named sweep elsewhere": {"named": "../../evil"},
    "a file elsewhere": {"definition": {"../../evil": ""}},
    "a choice by cells elsewhere": {"choices": [{"1": ["../../home"]}]},
    "a list as title": {"title": ["x"]},
    "rows that are a text": {"rows": "aux"},
}


@pytest.mark.parametrize("what", HOSTILE_SWEEPS)
def test_a_hostile_sweep_is_a_damaged_one(tmp_path: Path, what: str) -> None:
    cell = ManifestCell({"aux": "ours"}, "0123456789ab", "0" * 12, "0" * 12, 0, "dks", ["aux=ours"])
    good = Manifest("mine", "Mine", ["aux"], "runs", [cell], request=["aux=ours", "~seed", "+x=1"])
    path = manifest.write(good, str(tmp_path))
    assert manifest.read(str(tmp_path), "mine") == good
    values = json.loads(path.read_text())
    (values["cells"][0] if "cell_id" in HOSTILE_SWEEPS[what] else values).update(
        HOSTILE_SWEEPS[what]
    )
    path.write_text(json.dumps(values))
    with pytest.raises(RequestError, match=r"sweep\.json is damaged"):
        manifest.read(str(tmp_path), "mine")


@pytest.mark.parametrize(
    "name", ["../mine", "/etc", "a/../mine", "", ".", "..", "mine\n", "-mine", "x" * 300]
)
def test_a_sweep_is_looked_for_in_its_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sweep.json").write_text("{}")
    with pytest.raises(RequestError, match="no sweep"):
        manifest.read(str(tmp_path / "mine"), name)


def test_a_launch_that_cannot_be_read_is_one_line_with_its_name(tmp_path: Path) -> None:
    created = LaunchFolder.create(str(tmp_path), "mine", "local", [tmp_path / "cell"], None)
    created.lock.release()
    whole = created.file.read_text()
    values = json.loads(whole)
    array = {"tasks": [["a"]], "job": "12"}
    hostile = {
        "Expecting value": "",
        "cannot be read: ": whole[: len(whole) // 2],
        "it holds a list": "[]",
        "it says arms, shape, which a newer version of this program may know": json.dumps(
            values | {"shape": 2, "arms": 3}
        ),
        "missing 1 required": json.dumps({key: values[key] for key in values if key != "started"}),
        "'arrays' is missing": json.dumps({key: values[key] for key in values if key != "arrays"}),
        "retries is a str": json.dumps(values | {"retries": "3"}),
        "its cells are not all names of folders": json.dumps(values | {"cells": [["a"]]}),
        "not all names": json.dumps(values | {"arrays": [array | {"tasks": [["a", 3]]}]}),
        "is no id of a job": json.dumps(values | {"arrays": [array | {"job": "--all"}]}),
        "unexpected keyword argument 'x'": json.dumps(values | {"arrays": [array | {"x": 1}]}),
        "recursion": "[" * 100_000,
        "codec can't decode": "\udcff",
    }
    for message, text in hostile.items():
        created.file.write_text(text, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(RequestError, match=message) as refused:
            LaunchFolder(created.path).read()
        assert str(refused.value).startswith(
            f"{created.file} cannot be read: "
        ) and "\n" not in str(refused.value)
        assert created.file.read_bytes() == text.encode(errors="surrogateescape"), (
            "it is left as it was"
        )
    created.file.write_text(json.dumps(values | {"arrays": [array]}))
    assert LaunchFolder(created.path).read().jobs() == {"a": "12"}


# --- images


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int, content: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


def whole(form: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(file, form)
    return file.getvalue()


BAD_IMAGES = {
    "nothing": b"",
    "a text": b"hello",
    "a bomb": png(60_000, 60_000, b"\0" * 100),
    "half a bomb": png(10_000, 10_000, b"\0" * 100),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "a PNG that ends early": whole("PNG")[:200],
    "a JPEG that ends early": whole("JPEG")[:200],
    "a PNG of other bytes": png(40, 40, b"\0" * 10),
    "a header alone": whole("PNG")[:40],
    "a TIFF that ends early": whole("TIFF")[:100],
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_an_image_that_does_not_decode_is_named_and_fills_no_memory(
    tmp_path: Path, what: str
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(BAD_IMAGES[what])
    with pytest.raises(ValueError, match=r"picture\.png: the image cannot be decoded"):
        decode(path, str(path))


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_images_of_the_usual_formats_decode(form: str) -> None:
    assert decode(io.BytesIO(whole(form)), form).size == (40, 40)


# --- data that was damaged after a run on it was planned


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def lost(path: Path) -> None:
    """A link to nowhere in its place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.parent / "nowhere")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def replaced(path: Path) -> None:
    """By other bytes, as many."""
    path.write_bytes(b"x" * path.stat().st_size)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


def piped(path: Path) -> None:
    """What would be waited for, in its place."""
    path.unlink()
    os.mkfifo(path)


Harm = Callable[[Path], None]
DAMAGED_FOLDERS: dict[str, tuple[Harm, str, str]] = {
    "a class without images": (emptied, "train/cat", "train/cat holds no image"),
    "a class that is gone": (
        shutil.rmtree,
        "train/cat",
        "train and val have different classes, for example cat",
    ),
    "a class that is a link to nowhere": (
        lost,
        "train/cat",
        "train/cat is a link to nowhere; it may be that of a class",
    ),
    "a set that is gone": (shutil.rmtree, "val", "val is not a folder"),
    "an image that is a link to nowhere": (
        lost,
        "val/bee/1.JPEG",
        "val/bee/1.JPEG is a link to nowhere",
    ),
    "an image that is no file": (
        piped,
        "val/bee/1.JPEG",
        "val/bee/1.JPEG is no file that could hold an image",
    ),
    "an image that ends early": (
        cut,
        "train/bee/3.JPEG",
        "train/bee/3.JPEG: the image cannot be decoded",
    ),
    "a file that is no image": (
        replaced,
        "train/bee/3.JPEG",
        "train/bee/3.JPEG: the image cannot be decoded",
    ),
    "an image less": (
        Path.unlink,
        "train/bee/3.JPEG",
        "are not those that the run was planned with",
    ),
}
DAMAGED_PARQUET: dict[str, tuple[Harm, str, str]] = {
    "nothing": (Path.unlink, FILE := "train-00000-of-00001.parquet", "has no file train-*.parquet"),
    "a file that ends early": (cut, FILE, f"{FILE} cannot be read as Parquet"),
    "other bytes": (replaced, FILE, f"{FILE} cannot be read as Parquet"),
    "a byte that is another one": (flipped, FILE, FILE),
    "no labels": (lambda path: no_label(path.parent), FILE, "has no column label"),
    "images in another form": (
        lambda path: wrong_image(path.parent),
        FILE,
        "must be a struct with the field bytes",
    ),
    "other labels": (
        lambda path: relabelled(path.parent),
        FILE,
        "are not those that the run was planned with",
    ),
}


def relabelled(root: Path) -> None:
    write_parquet(root, "train", [8] * 6, [1, 0, 1, 0, 1, 0])


def check_failure(
    tmp_path: Path, root: Path, path: Path, harm: Harm, message: str, *overrides: str
) -> None:
    """A run on damaged data fails with one line, and the same call goes through when the data is as
    it was.
    """
    folder = queued(
        tmp_path, f"data.root={root}", "recipe.epochs=1", "recipe.batch_size=4", *overrides
    )
    shutil.copytree(root, tmp_path / "whole")
    harm(path)
    assert run_cell(folder.path) is Outcome.failed
    record = folder.read_record()
    assert record is not None and record.error is not None
    said = record.error["message"]
    assert message in said and "\n" not in said, said
    assert str(root) in said
    assert (record.status.value, record.attempts[-1].status) == ("failed", "failed")
    assert not folder.weights_file.exists() and folder.journal.read() == []
    shutil.rmtree(root)
    (tmp_path / "whole").rename(root)
    assert run_cell(folder.path) is Outcome.done, folder.read_record()


@pytest.mark.rest_slow(2)
@pytest.mark.parametrize("what", DAMAGED_FOLDERS)
def test_a_run_on_a_damaged_folder_says_where_and_goes_on_when_it_is_mended(
    tmp_path: Path, what: str
) -> None:
    harm, place, message = DAMAGED_FOLDERS[what]
    root = write_images(tmp_path / "insects")
    plain = (
        "data=imagefolder",
        "data.augmentation=pad_crop",
        "data.num_classes=null",
        "data.mean=null",
        "data.std=null",
    )
    check_failure(tmp_path, root, root / place, harm, message, *plain)


@pytest.mark.rest_slow(2)
@pytest.mark.parametrize("what", DAMAGED_PARQUET)
def test_a_run_on_damaged_parquet_says_where_and_goes_on_when_it_is_mended(
    tmp_path: Path, what: str
) -> None:
    harm, place, message = DAMAGED_PARQUET[what]
    root = tmp_path / "hub"
    root.mkdir()
    write_parquet(root, "train", [8] * 6, [0, 1, 0, 1, 0, 1])
    write_parquet(root, "test", [8] * 4, [0, 1, 0, 1])
    check_failure(
        tmp_path, root, root / place, harm, message, "data=parquet", "data.num_classes=null"
    )


@pytest.mark.parametrize(
    "what", ["a class that is a link to nowhere", "an image that is a link to nowhere"]
)
def test_links_to_nowhere_are_refused_before_anything_runs(tmp_path: Path, what: str) -> None:
    harm, place, _ = DAMAGED_FOLDERS[what]
    root = write_images(tmp_path / "insects")
    harm(root / place)
    with pytest.raises(RequestError, match=rf"{place} is a link to nowhere"):
        data.describe(Data(source="imagefolder", root=str(root), image_size=8))


@pytest.mark.slow
def test_a_flipped_bit_in_parquet_is_no_traceback(tmp_path: Path) -> None:
    """Wherever it is: the file is refused with its name, or the bit does not matter to a reader."""
    write_parquet(tmp_path, "train", [8] * 3, [0, 1, 2])
    write_parquet(tmp_path, "test", [8], [0])
    file, settings = tmp_path / FILE, Data(source="parquet", root=str(tmp_path))
    whole, refused = file.read_bytes(), list[str]()
    for place in range(0, len(whole), 23):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            data.describe(settings)
            source("parquet").load(settings)
        except (RequestError, ValueError) as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert [line for line in refused if str(tmp_path) not in line or "\n" in line] == []
