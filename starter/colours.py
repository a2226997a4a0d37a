"""Names for colours: RGB to one of eleven words, and the colours that an image is made of.

The measure "the colour asked for is the first colour" and the captions of the starter datasets use the same functions,
so that a word means the same thing in a caption, in a prompt and in a report. numpy and Pillow only.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: The words, in the order of the indices that `name_indices` returns. White is the paper and has no word.
COLOURS: Final = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black", "gray")

#: Upper hue bound in degrees of each hue's word; hues above the last bound are red again.
_HUES: Final = (
    (14.0, "red"),
    (42.0, "orange"),
    (68.0, "yellow"),
    (160.0, "green"),
    (194.0, "teal"),
    (254.0, "blue"),
    (295.0, "purple"),
    (343.0, "pink"),
)
_INDEX: Final = {name: index for index, name in enumerate(COLOURS)}

#: A pixel whose darkest channel is above this is paper, not ink (0 to 255).
_PAPER: Final = 238.0


def name_indices(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Index into `COLOURS` of every pixel of an array (..., 3) of 8-bit RGB; the answer has shape (...)."""
    hue, saturation, value = _hsv(rgb)
    bounds = np.array([bound for bound, _ in _HUES])
    words = np.array([_INDEX[name] for _, name in _HUES] + [_INDEX["red"]])
    named = words[np.searchsorted(bounds, hue, side="right")]
    warm = (hue >= 8.0) & (hue < 50.0)
    named = np.where(warm & (value < 0.62), _INDEX["brown"], named)
    reddish = named == _INDEX["red"]
    named = np.where(reddish & (saturation < 0.5) & (value > 0.8), _INDEX["pink"], named)
    named = np.where(saturation < 0.15, _INDEX["gray"], named)
    named = np.where((value < 0.2) | ((value < 0.32) & (saturation < 0.35)), _INDEX["black"], named)
    return named.astype(np.int64)


def colour_name(rgb: tuple[int, int, int]) -> str:
    """The word for one 8-bit RGB colour: `colour_name((220, 30, 40)) == "red"`."""
    return COLOURS[int(name_indices(np.array(rgb, dtype=np.uint8)))]


def colour_shares(image: Image.Image) -> dict[str, float]:
    """Each colour's share of the ink in an image on white paper, largest first; empty for a blank image.

    A pixel weighs the square of its distance from white, so that the pale rims that antialiasing leaves around a shape
    do not outvote the shape.
    """
    rgb = np.asarray(image.convert("RGB")).reshape(-1, 3)
    darkest = rgb.min(axis=1).astype(np.float64)
    ink = darkest < _PAPER
    if not ink.any():
        return {}
    weights = ((255.0 - darkest[ink]) / 255.0) ** 2
    totals = np.bincount(name_indices(rgb[ink]), weights=weights, minlength=len(COLOURS))
    shares = totals / totals.sum()
    order = np.argsort(-shares, kind="stable")
    return {COLOURS[i]: float(shares[i]) for i in order if shares[i] > 0.0}


def dominant_colours(image: Image.Image, limit: int = 2, least: float = 0.15) -> list[str]:
    """Up to `limit` colour words of an image, dominant first; each beyond the first has at least `least` of the ink."""
    shares = colour_shares(image)
    return [name for rank, (name, share) in enumerate(shares.items()) if rank == 0 or share >= least][:limit]


def first_colour(image: Image.Image) -> str | None:
    """The dominant colour's word, or None for a blank image."""
    return next(iter(colour_shares(image)), None)


def _hsv(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hue in degrees, saturation and value in 0 to 1 of an array (..., 3) of 8-bit RGB."""
    scaled = rgb.astype(np.float64) / 255.0
    red, green, blue = scaled[..., 0], scaled[..., 1], scaled[..., 2]
    value = scaled.max(axis=-1)
    chroma = value - scaled.min(axis=-1)
    safe = np.where(chroma > 0.0, chroma, 1.0)
    sextant = np.where(
        value == red,
        ((green - blue) / safe) % 6.0,
        np.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    hue = np.where(chroma > 0.0, 60.0 * sextant, 0.0)
    saturation = np.where(value > 0.0, chroma / np.where(value > 0.0, value, 1.0), 0.0)
    return hue, saturation, value
