"""Generated images as people and the table see them: side by side, and whether they have the colour asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from starter.colours import first_colour


def colour_rate(images: Sequence[Image.Image], labels: Sequence[str]) -> float:
    """Share of images whose dominant colour is the one asked for."""
    return float(np.mean([first_colour(image) == label for image, label in zip(images, labels, strict=True)]))


def contact_sheet(images: Sequence[Image.Image], columns: int = 16) -> Image.Image:
    """Images side by side on grey."""
    size, gap = images[0].width, 4
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (size + gap) + gap, rows * (size + gap) + gap), "#dddddd")
    for number, image in enumerate(images):
        sheet.paste(image, (gap + number % columns * (size + gap), gap + number // columns * (size + gap)))
    return sheet
