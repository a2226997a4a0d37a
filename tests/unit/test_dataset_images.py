"""What is taken for an image, and how it is opened."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageOps

from calotype.datasets.images import check_image, open_rgb
from calotype.errors import Invalid

PIXELS = 10_000


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.effect_noise(size, 60).convert(mode)


def refused(name: str, data: bytes) -> Invalid:
    with pytest.raises(Invalid) as caught:
        check_image(name, data, PIXELS)
    assert name in caught.value.detail
    return caught.value


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_known_by_its_content_whatever_its_extension(kind: str) -> None:
    facts = check_image("photo.txt", encoded(noise(), kind), PIXELS)
    assert (facts.width, facts.height) == (40, 30)
    assert len(facts.sha256) == 64


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"not an image at all", "not a PNG"),
        (b"", "not a PNG"),
        (b"PK\x03\x04" + bytes(30), "archive inside"),
        (b"\x1f\x8b" + bytes(30), "archive inside"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (encoded(noise(), "GIF"), "GIF"),
        (encoded(noise(), "BMP"), "BMP"),
        (encoded(noise(), "TIFF"), "TIFF"),
    ],
)
def test_what_is_not_an_image_is_refused_under_an_images_name(data: bytes, said: str) -> None:
    error = refused("a.png", data)
    assert error.code == "not_an_image"
    assert said in error.detail


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_truncated_image_is_refused(kind: str, keep: float) -> None:
    data = encoded(noise(), kind)
    assert refused("cut.png", data[: int(len(data) * keep)]).code == "not_an_image"


def test_a_png_without_its_end_or_with_a_wrong_checksum_is_refused() -> None:
    data = bytearray(encoded(noise()))
    assert "damaged" in refused("cut.png", bytes(data[:-12])).detail
    data[data.index(b"IDAT") + 30] ^= 1
    assert refused("flipped.png", bytes(data)).code == "not_an_image"


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for size in (101, 20_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
        # Nothing can be decoded here: only the header can have been read.
        error = refused("huge.png", b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        assert error.code == "image_too_large"
        assert str(PIXELS) in error.detail


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animated_image_is_refused(kind: str) -> None:
    data = encoded(noise(), kind, save_all=True, append_images=[noise()])
    assert refused("moving.png", data).code == "image_animated"


def test_the_first_picture_of_a_phones_jpeg_is_the_image() -> None:
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise(size=(8, 8))])
    facts = check_image("phone.jpg", data, PIXELS)
    assert (facts.width, facts.height) == (40, 30)
    assert open_rgb(data).size == (40, 30)


def test_a_jpeg_with_hundreds_of_scans_is_refused_before_it_is_decoded() -> None:
    data = encoded(noise(), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    assert refused("slow.jpg", data[:-2] + data[scan : scan + 12] * 300 + data[-2:]).code == "image_too_complex"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_opens_as_rgb(mode: str) -> None:
    data = encoded(noise("RGB").quantize(8) if mode == "P" else noise("L").convert(mode))
    check_image("a.png", data, PIXELS)
    assert open_rgb(data).mode == "RGB"


def test_cmyk_jpeg_opens_as_rgb() -> None:
    data = encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", quality=95)
    check_image("a.jpg", data, PIXELS)
    red, green, blue = open_rgb(data).getpixel((0, 0))  # type: ignore[misc]
    assert red > 200
    assert green < 60
    assert blue < 60


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    assert open_rgb(encoded(Image.new("I;16", (2, 2), 32_896))).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_parts_open_as_white(kind: str) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    opened = open_rgb(encoded(image, kind, lossless=True))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_a_transparent_palette_colour_opens_as_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    opened = open_rgb(encoded(image, transparency=1))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


#: How a camera that was held so stores an upright picture (Exif 2.32, tag 274).
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
def test_an_image_opens_upright_and_its_size_is_told_so(orientation: int) -> None:
    upright = noise(size=(4, 2))
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    data = encoded(stored, exif=with_orientation(orientation))
    facts = check_image("a.png", data, PIXELS)
    assert (facts.width, facts.height) == (4, 2)
    assert open_rgb(data).tobytes() == upright.tobytes()
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes() == upright.tobytes()
