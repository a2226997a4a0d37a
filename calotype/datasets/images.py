"""What counts as an image, and how one is opened."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zlib
from dataclasses import dataclass

# Named one by one, so that opening with exactly these formats works before Pillow has looked for all it
# knows.
from PIL import (
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from calotype.archive import refusal
from calotype.errors import Invalid

FORMATS = ("PNG", "JPEG", "WEBP")
#: A progressive JPEG has about ten scans; a hostile one thousands, each costing a pass over all pixels.
_MAX_SCANS = 200
_START_OF_SCAN = b"\xff\xda"
_ORIENTATION = 0x0112
#: How to undo each EXIF orientation (Exif 2.32, tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: What Pillow raises for bytes that are no proper image; its parsers meet hostile input unguarded.
_BAD_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
#: First bytes of what is found in archives beside images, and what to do about it.
_KNOWN = (
    (b"GIF8", "is a GIF", "Convert it to PNG."),
    (b"BM", "is a BMP", "Convert it to PNG."),
    (b"II*\0", "is a TIFF", "Convert it to PNG."),
    (b"MM\0*", "is a TIFF", "Convert it to PNG."),
    (b"<svg", "is an SVG", "Render it to PNG."),
    (b"%PDF", "is a PDF", "Render it to PNG."),
    (b"PK\x03\x04", "is an archive inside the archive", "Unpack it first."),
    (b"\x1f\x8b", "is an archive inside the archive", "Unpack it first."),
    (b"7z\xbc\xaf", "is an archive inside the archive", "Unpack it first."),
    (b"Rar!", "is an archive inside the archive", "Unpack it first."),
)
#: Images above this many pixels are decoded one at a time, so that parallel imports do not add up their
#: memory.
_LARGE_PIXELS = 16_000_000
_one_large_image = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What checking an image found out."""

    #: Pixels, after EXIF orientation.
    width: int
    height: int
    #: Of the file's bytes, hexadecimal.
    sha256: str


def check_image(name: str, data: bytes, max_pixels: int) -> ImageFacts:
    """Decodes an image in full; the extension of ``name`` is not looked at.

    Raises:
        Invalid: not_an_image, image_too_large, image_animated or image_too_complex.
    """
    try:
        return _checked(name, data, max_pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _too_large(name, str(exc), max_pixels) from exc
    except _BAD_IMAGE as exc:
        problem, remedy = _guess(data)
        raise refusal("not_an_image", name, problem, remedy) from exc


def open_rgb(data: bytes) -> Image.Image:
    """An image as training sees it: upright, RGB, transparency on white."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF orientation says, in RGB, with transparent parts white.

    16-bit grey is scaled to 8 bits (Pillow by itself would clip it). Colour profiles are not applied.
    """
    turn = _TURNS.get(_orientation(image))
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.copy() if turn is None else image.transpose(turn)


def _checked(name: str, data: bytes, max_pixels: int) -> ImageFacts:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(name, f"has {width} x {height} pixels", max_pixels)
        # Phones write JPEGs with further pictures behind the first (depth, gain map): the first is the image.
        if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
            raise refusal("image_animated", name, "is animated", "Keep one frame of it.")
        if data.count(_START_OF_SCAN) > _MAX_SCANS and image.format not in ("PNG", "WEBP"):
            raise refusal(
                "image_too_complex",
                name,
                f"has more than {_MAX_SCANS} scans",
                "Save it again as a usual JPEG.",
            )
        width, height = _decoded_size(image, data)
    return ImageFacts(width=width, height=height, sha256=hashlib.sha256(data).hexdigest())


def _decoded_size(image: Image.Image, data: bytes) -> tuple[int, int]:
    """Width and height, upright; decodes ``image`` just as training will, so that what is stored opens."""
    if image.format == "PNG":
        # Checks every chunk's CRC up to the end mark, which decoding does not.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
            again.verify()
    if image.width * image.height <= _LARGE_PIXELS:
        return upright_rgb(image).size
    with _one_large_image:
        return upright_rgb(image).size


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _too_large(name: str, problem: str, max_pixels: int) -> Invalid:
    return refusal("image_too_large", name, problem, f"An image may have {max_pixels} pixels; make it smaller.")


def _guess(data: bytes) -> tuple[str, str]:
    """What a file that is no image is, and what to do with it."""
    for magic, problem, remedy in _KNOWN:
        if data.startswith(magic):
            return f"{problem}, not a PNG, JPEG or WebP image", remedy
    looks_right = data.startswith((b"\x89PNG", b"\xff\xd8\xff")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    if looks_right:
        return "is a damaged or truncated image", "Replace it or leave it out."
    return "is not a PNG, JPEG or WebP image", "Leave it out, or convert it to PNG."
