"""Words for a logo: its colours, its outline, its title."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from starter.colours import dominant_colours

#: Directions in which an outline's radius is sampled.
_ANGLES: Final = np.linspace(-np.pi, np.pi, 48, endpoint=False)

#: Largest mean error, relative to the mean radius, at which an outline still has a form's name.
_FORM_TOLERANCE: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a caption can say about one logo."""

    #: one or two colour words, dominant first
    colours: tuple[str, ...]
    #: words for outline and weight, e.g. ("solid", "round")
    shape: tuple[str, ...]
    #: lower-case title in plain letters and digits
    title: str


def describe(image: Image.Image, title: str) -> Words:
    """The words for a logo on white paper."""
    return Words(colours=tuple(dominant_colours(image)), shape=shape_words(image), title=plain_title(title))


def plain_title(title: str) -> str:
    """A title as it stands in captions: lower case, letters and digits only, at most four words."""
    return " ".join(re.findall(r"[a-z0-9]+", title.lower())[:4])


def shape_words(image: Image.Image) -> tuple[str, ...]:
    """Words for the weight of the ink and the outline that holds it; empty for a blank image."""
    ink = np.asarray(image.convert("L")) < 215
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return ()
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    words = [word for word in (_weight(box), _proportion(box) or _form(box)) if word]
    return tuple(words)


def captions(words: Words) -> tuple[str, ...]:
    """Every caption that fits a logo; the shipped datasets carry one of the first three, training draws from all."""
    colours = " and ".join(words.colours)
    shape = " ".join(words.shape)
    form = words.shape[-1] if words.shape else ""
    return (
        _join(colours, shape, "logo"),
        _join(colours, shape, "logo"),
        f"{words.title} logo, {colours}",
        _join(words.colours[0], "logo"),
        _join(words.colours[0], form, "logo"),
        _join(words.colours[0], words.title, "logo"),
        _join(colours, shape, words.title, "logo"),
    )


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _weight(box: NDArray[np.bool_]) -> str:
    """`solid` or `thin` by the share of its bounding box that a logo covers with ink."""
    share = float(box.mean())
    if share > 0.72:
        return "solid"
    return "thin" if share < 0.32 else ""


def _proportion(box: NDArray[np.bool_]) -> str:
    """`wide` or `tall` when a logo's box is far from square."""
    aspect = box.shape[1] / box.shape[0]
    if aspect > 1.25:
        return "wide"
    return "tall" if aspect < 0.8 else ""


def _form(box: NDArray[np.bool_]) -> str:
    """The regular form nearest to the outline, if one is near."""
    outline = _outline(box)
    outline = outline / outline.mean()
    errors = {form: float(np.abs(outline - profile).mean()) for form, profile in _FORMS}
    form = min(errors, key=errors.__getitem__)
    return form.split()[0] if errors[form] < _FORM_TOLERANCE else ""


def _outline(box: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The farthest ink from the box's centre in each of the directions, in pixels."""
    y, x = np.nonzero(box)
    dy, dx = y - (box.shape[0] - 1) / 2, x - (box.shape[1] - 1) / 2
    radius, angle = np.hypot(dy, dx) + 0.5, np.arctan2(dy, dx)
    sector = np.round((angle + np.pi) / (2 * np.pi) * len(_ANGLES)).astype(int) % len(_ANGLES)
    farthest = np.full(len(_ANGLES), 1e-6)
    np.maximum.at(farthest, sector, radius)
    return farthest


def _polygon(sides: int, turn: float) -> NDArray[np.float64]:
    """Radius of a regular polygon in each direction, its first corner at `turn` radians, scaled to mean 1."""
    step = 2 * np.pi / sides
    radius = 1.0 / np.cos((_ANGLES - turn) % step - step / 2)
    return np.asarray(radius / radius.mean())


def _rounded_square() -> NDArray[np.float64]:
    """Radius of a superellipse of degree 6, which is how icon tiles are rounded, scaled to mean 1."""
    radius = (np.abs(np.cos(_ANGLES)) ** 6 + np.abs(np.sin(_ANGLES)) ** 6) ** (-1 / 6)
    return np.asarray(radius / radius.mean())


_FORMS: Final = (
    ("round", np.ones(len(_ANGLES))),
    ("square", _polygon(4, np.pi / 4)),
    ("square rounded", _rounded_square()),
    ("diamond", _polygon(4, 0.0)),
    ("hexagon", _polygon(6, 0.0)),
    ("hexagon upright", _polygon(6, np.pi / 6)),
)
