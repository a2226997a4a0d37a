"""Contact sheets: many small images on one page, each with the words it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

#: Pixels: an image as shown, the space around it, the height of its two lines of text.
TILE, GAP, CAPTION = 160, 12, 40
COLUMNS = 4


@dataclass(frozen=True)
class Picture:
    """An image file, its caption and a second line under that."""

    path: Path
    caption: str
    note: str = ""


def contact_sheet(pictures: Sequence[Picture], target: Path, *, columns: int = COLUMNS) -> None:
    """Write one PNG that shows all pictures in rows."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(pictures) // columns)
    cell_width, cell_height = TILE + GAP, TILE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), "#f2f2f2")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for number, picture in enumerate(pictures):
        left = GAP + number % columns * cell_width
        top = GAP + number // columns * cell_height
        with Image.open(picture.path) as image:
            sheet.paste(_fitted(image), (left, top))
        for line, text in enumerate((picture.caption, picture.note)):
            place = (left, top + TILE + 4 + 17 * line)
            draw.text(place, _shortened(text, font, draw), fill="#333333", font=font)
    sheet.save(target)


def _fitted(image: Image.Image) -> Image.Image:
    from PIL import Image, ImageOps

    shown = ImageOps.contain(image.convert("RGB"), (TILE, TILE), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (TILE, TILE), "white")
    tile.paste(shown, ((TILE - shown.width) // 2, (TILE - shown.height) // 2))
    return tile


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, draw: ImageDraw.ImageDraw) -> str:
    if draw.textlength(text, font) <= TILE:
        return text
    while text and draw.textlength(f"{text}…", font) > TILE:
        text = text[:-1]
    return f"{text}…"
