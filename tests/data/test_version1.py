"""What schema version 1 noted of data, as its code did on these very files."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dks.config.schema import Data
from dks.data.version1 import old_fingerprint

# Two images of one pixel and their labels, of which Parquet files by other versions of pyarrow
# would have other footers.
FILE = (
    b"c-qC2!AiqG5I`qkT~Y`_54&U`hg=dOq{Rx!q2!`xh2q)Ewgg*fZA_x#UHlXe9{dXb!5{G8XE?jtn1Wuc2bY;-GP7@Xc7{xj&qoZ{"
    b"gN>3ff+l6u&mbP3oQ=V(3^hizzSPrxg8I5|v|By!c4h(keSFwzgRN5Rp6D-h53mm|bGI5o+OjP4BrNGdo?~q=&uJ5Ih=1^QcWYzN"
    b"8jOgG6g*nb=EX`f0;%ooEmrcfK%2QCeogP2qBb@uWit=q)Yqg6F6FdX0w=;3c?3RlMMy!!CWS#6hWV3{$jSe8z`|#$!8YXl!xB_v"
    b"X7{(c^)+?b8PB2@lH(M%SkR~<HA*zPX@#bqEtKe;<i8qGcftV`k<QN_DaWqi3*w-Z)%8u$3}$6HkX5z53vP?5UaYTzqjY#U9Elvq"
    b"Vg%msgbDs(pUs$2IR"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for taller, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4 + taller), (9, 0, 0)).save(tmp_path / split / name / "1.bmp")
    return tmp_path


def of(folder: Path) -> str | None:
    return old_fingerprint(Data(source="imagefolder", root=str(folder)))


def test_folders_of_then_are_recognised(folder: Path) -> None:
    assert of(folder) == "2f8e4bcff66bbb41"
    (folder / "val" / "bee" / ".hidden.txt").write_text("")
    assert of(folder) == "2f8e4bcff66bbb41"


def test_folders_of_which_other_images_were_taken_are_not(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "val" / "bee" / "2.gif")
    assert of(folder) != "2f8e4bcff66bbb41"
    (folder / "val").rename(folder / "test")
    assert of(folder) is None


def test_folders_of_which_other_pictures_were_seen_are_not(folder: Path) -> None:
    picture = folder / "train" / "ant" / "2.png"
    Image.new("RGBA", (4, 4), (9, 0, 0, 255)).save(picture)
    assert of(folder) is not None, "nothing of it is transparent"
    image = Image.new("RGBA", (4, 4), (9, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(picture)
    assert of(folder) is None
    Image.fromarray(np.full((4, 4), 999, dtype="u2")).save(picture)
    assert of(folder) is None


def test_parquet_files_of_then_are_recognised_and_other_layouts_are_not(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}-0.parquet").write_bytes(zlib.decompress(base64.b85decode(FILE)))
    settings = Data(source="parquet", root=str(tmp_path))
    assert old_fingerprint(settings) == "d240bd770b6cb75e"
    (tmp_path / "test-0.parquet").rename(tmp_path / "validation-0.parquet")
    assert old_fingerprint(settings) is None


def test_data_without_a_fingerprint_has_had_none() -> None:
    assert old_fingerprint(Data(source="digits")) is None
