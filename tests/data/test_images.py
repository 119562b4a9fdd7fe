"""Pictures of every kind become RGB of 8 bits without losing what is in them, or are refused by
name.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from dks import data
from dks.config.schema import Data
from dks.data.images import FORMATS, SUFFIXES, ImageSet, decode
from dks.tools.doctor import images as doctor

GRAY = [[0, 1, 100], [200, 254, 255]]


def encoded(image: Image.Image, form: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file


def pixels(file: io.BytesIO) -> np.ndarray:
    image = decode(file, "picture")
    assert image.mode == "RGB"
    return np.asarray(image)


def gray(file: io.BytesIO) -> list[list[int]]:
    """The pixels of an image without colours."""
    found = pixels(file)
    assert (found == found[:, :, :1]).all()
    return found[:, :, 0].tolist()  # type: ignore[no-any-return]


def of(values: list[list[int]], kind: str, factor: int) -> Image.Image:
    return Image.fromarray((np.array(values, dtype=np.int64) * factor).astype(kind))


# A picture of 8 bits is made one of 16 by either factor.
@pytest.mark.parametrize("factor", [256, 257])
@pytest.mark.parametrize(
    ("form", "kind"), [("PNG", "u2"), ("TIFF", "u2"), ("TIFF", ">u2"), ("PPM", "u2"), ("PPM", "i4")]
)
def test_gray_of_16_bits_is_scaled_to_8(form: str, kind: str, factor: int) -> None:
    assert gray(encoded(of(GRAY, kind, factor), form)) == GRAY


def unsigned(file: io.BytesIO) -> io.BytesIO:
    """The same TIFF, whose numbers are said to have no sign."""
    one, other = (struct.pack("<HHIHH", 339, 3, 1, sign, 0) for sign in (2, 1))
    assert one in file.getvalue()
    return io.BytesIO(file.getvalue().replace(one, other))


def test_gray_of_32_bits_is_scaled_to_8_by_the_range_of_its_type() -> None:
    assert gray(encoded(of(GRAY, "i4", 2**23), "TIFF")) == GRAY
    # in Pillow's only mode of 32 bits
    without_sign = (np.array(GRAY, dtype=np.int64) * 2**24).astype("u4").view("i4")
    assert gray(unsigned(encoded(Image.fromarray(without_sign), "TIFF"))) == GRAY


def test_gray_whose_zero_is_white_is_not_turned_round() -> None:
    negative = encoded(of([[255 - value for value in row] for row in GRAY], "u2", 257), "TIFF")
    tag = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert tag in negative.getvalue()
    assert (
        gray(io.BytesIO(negative.getvalue().replace(tag, struct.pack("<HHIHH", 262, 3, 1, 0, 0))))
        == GRAY
    )


@pytest.mark.parametrize(
    ("image", "form", "message"),
    [
        (
            Image.fromarray(np.array(GRAY, dtype="f4") / 255),
            "TIFF",
            "its pixels are floating-point numbers",
        ),
        (
            Image.fromarray(np.array(GRAY, dtype="f4") / 255),
            "PPM",
            "its pixels are floating-point numbers",
        ),
        (of(GRAY, "u2", 1), "PNG", "its pixels have 16 bits and none is above 255, which is black"),
        (
            of(GRAY, "i4", 257),
            "TIFF",
            "its pixels have 32 bits and none is above 65535, which is black",
        ),
        (of(GRAY, "i4", -1), "TIFF", "it has negative pixels"),
    ],
)
def test_what_would_be_lost_in_8_bits_is_refused_with_the_reason(
    image: Image.Image, form: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^picture: the image cannot be decoded \\({message}"):
        decode(encoded(image, form), "picture")


SHAPE = [[0, 255, 51], [255, 0, 255]]  # opacity
ON_WHITE = [[255, 0, 204], [0, 255, 0]]  # black of that opacity


def black(mode: str) -> Image.Image:
    """A black picture that lives in its alpha channel."""
    image = Image.new(mode, (3, 2), 0)
    image.putalpha(Image.fromarray(np.array(SHAPE, dtype=np.uint8)))
    return image


@pytest.mark.parametrize(
    ("mode", "form"), [("RGB", "PNG"), ("L", "PNG"), ("RGB", "TIFF"), ("RGB", "WEBP")]
)
def test_what_is_transparent_is_laid_on_white(mode: str, form: str) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert gray(encoded(black(mode), form, **options)) == ON_WHITE


def test_a_colour_that_is_transparent_is_white() -> None:
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    palette.putpalette([9, 9, 9, 100, 100, 100])
    assert gray(encoded(palette, "GIF", transparency=0)) == [[255, 100], [100, 255]]
    assert gray(encoded(palette, "PNG", transparency=0)) == [[255, 100], [100, 255]]
    assert gray(encoded(palette, "PNG", transparency=b"\x00\xff")) == [[255, 100], [100, 255]]
    assert gray(encoded(palette.convert("RGB"), "PNG", transparency=(9, 9, 9))) == [
        [255, 100],
        [100, 255],
    ]
    assert gray(encoded(of([[9, 100]], "u2", 256), "PNG", transparency=9 * 256)) == [[255, 100]]


def test_a_picture_that_white_would_hide_is_refused() -> None:
    white = Image.new("RGB", (3, 2), "white")
    white.putalpha(black("L").getchannel("A"))
    hidden = Image.fromarray(np.array(GRAY, dtype=np.uint8)).convert("RGB")
    hidden.putalpha(0)
    for image in (white, hidden):
        with pytest.raises(
            ValueError, match="partly transparent, and on white nothing is left of it"
        ):
            decode(encoded(image, "PNG"), "picture")
    assert gray(encoded(Image.new("RGBA", (3, 2), (0, 0, 0, 0)), "PNG")) == [[255] * 3] * 2, (
        "there is nothing to lose"
    )


def test_other_pictures_are_as_pillow_and_torchvision_read_them() -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    opaque = colours.convert("RGBA")
    assert (pixels(encoded(opaque, "PNG")) == np.asarray(colours)).all()
    for image, form in (
        (colours.convert("P"), "GIF"),
        (colours.convert("CMYK"), "TIFF"),
        (colours.convert("1"), "PNG"),
    ):
        again = Image.open(encoded(image, form)).convert("RGB")
        assert (pixels(encoded(image, form)) == np.asarray(again)).all()
    frames = [Image.new("RGB", (3, 2), shade) for shade in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        if form != "WEBP" or features.check("webp"):
            moving = encoded(
                frames[0],
                form,
                save_all=True,
                append_images=frames[1:],
                **({"lossless": True} if form == "WEBP" else {}),
            )
            assert pixels(moving).tolist() == [[[255, 0, 0]] * 3] * 2, "the first frame"
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera that was held upright
    assert pixels(encoded(colours, "PNG", exif=turned)).shape == (4, 6, 3), (
        "as torchvision, which does not turn it"
    )


def test_all_names_of_the_formats_that_are_read_are_known() -> None:
    Image.init()
    assert {
        name for name, form in Image.registered_extensions().items() if form in FORMATS
    } - SUFFIXES == set()


def test_pictures_of_16_bits_in_parquet_are_scaled_as_well(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = {"bytes": encoded(of(GRAY, "u2", 257), "PNG").getvalue(), "path": None}
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"image": pa.array([image], kind), "label": [0]}),
            tmp_path / f"{split}-0.parquet",
        )
    train, _ = data.load(data.describe(Data(source="parquet", root=str(tmp_path))))
    assert isinstance(train, ImageSet)
    assert train.images[0, 2].tolist() == GRAY


def test_doctor_is_red_where_a_picture_would_be_lost(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.fromarray(np.array(GRAY, dtype="f4")).save(tmp_path / split / "cat" / "1.tif")
    found, _ = doctor.images(Data(source="imagefolder", root=str(tmp_path), image_size=8))
    assert found.level == "red" and "cat/1.tif" in found.found and "floating-point" in found.found
