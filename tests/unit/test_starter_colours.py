"""Colour words: `starter.colours`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from starter.colours import COLOURS, colour_name, colour_shares, dominant_colours, first_colour, name_indices


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((220, 30, 40), "red"),
        ((255, 140, 0), "orange"),
        ((255, 220, 0), "yellow"),
        ((40, 160, 60), "green"),
        ((0, 170, 170), "teal"),
        ((30, 80, 220), "blue"),
        ((10, 20, 80), "blue"),
        ((130, 60, 220), "purple"),
        ((240, 60, 160), "pink"),
        ((255, 160, 160), "pink"),
        ((120, 70, 20), "brown"),
        ((15, 15, 15), "black"),
        ((128, 128, 128), "gray"),
    ],
)
def test_a_colour_has_the_word_people_use(rgb: tuple[int, int, int], word: str) -> None:
    assert colour_name(rgb) == word


def test_every_rgb_value_has_a_word() -> None:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    found = name_indices(cube)
    assert found.shape == cube.shape[:-1]
    assert set(np.unique(found)) == set(range(len(COLOURS)))


def test_the_first_colour_is_the_one_that_covers_most() -> None:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8, 40, 56), fill=(30, 80, 220))
    draw.rectangle((41, 8, 56, 56), fill=(255, 140, 0))
    assert dominant_colours(image) == ["blue", "orange"]
    assert first_colour(image) == "blue"
    assert sum(colour_shares(image).values()) == pytest.approx(1.0)


def test_a_small_share_is_no_second_colour() -> None:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 8, 56, 56), fill=(30, 80, 220))
    draw.rectangle((8, 8, 14, 14), fill=(220, 30, 40))
    assert dominant_colours(image) == ["blue"]


def test_pale_rims_do_not_outvote_the_shape() -> None:
    image = Image.new("RGB", (512, 512), "white")
    draw = ImageDraw.Draw(image)
    for offset in range(40, 480, 40):
        draw.line((offset, 40, offset, 470), fill=(20, 20, 20), width=12)
    assert first_colour(image.resize((64, 64), Image.Resampling.BOX)) == "black"


def test_a_blank_image_has_no_colour() -> None:
    blank = Image.new("RGB", (8, 8), "white")
    assert first_colour(blank) is None
    assert dominant_colours(blank) == []
