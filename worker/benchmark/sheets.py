"""Contact sheets: what a contender makes, at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image

#: Images on a sheet at most: what a page shows readably.
SHEET_IMAGES: Final = 48

_COLUMNS: Final = 12
_GAP: Final = 4
#: Pixels of a cell's edge: images are shrunk to it, or enlarged by whole factors, never in between.
_CELL: Final = 128


def contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """The first images in rows on white; ValueError when there is none."""
    if not images:
        raise ValueError("a contact sheet of no image")
    shown = [thumbnail(image, _CELL) for image in images[:SHEET_IMAGES]]
    columns = min(_COLUMNS, len(shown))
    width, height = max(image.width for image in shown), max(image.height for image in shown)
    rows = math.ceil(len(shown) / columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "#e8e8e8")
    for position, image in enumerate(shown):
        row, column = divmod(position, columns)
        sheet.paste(image, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def thumbnail(image: Image.Image, edge: int) -> Image.Image:
    """The image in RGB within edge × edge pixels: small ones enlarged by a whole factor, large ones shrunk."""
    plain, longest = image.convert("RGB"), max(image.size)
    if longest > edge:
        plain.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        return plain
    factor = edge // longest
    return plain.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
