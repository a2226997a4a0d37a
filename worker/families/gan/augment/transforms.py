"""Which transforms the pipe makes, and how often."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """For each transform a factor of the pipe's probability p: it happens to a share min(1, factor·p) of the images.

    0 switches it off. The defaults are for logos, where a flip, a turn or another hue makes another mark: what would
    change the meaning is off. `EVERYTHING` is the ADA paper's pipe.
    """

    #: Left and right change places, for every second of the images chosen.
    x_flip: float = 0.0
    #: A turn by 0, 90, 180 or 270 degrees.
    rotate90: float = 0.0
    #: A shift by whole pixels, up to an eighth of the size.
    integer_shift: float = 1.0
    #: Larger or smaller, log-normal: two in three within 2^±0.2.
    scale: float = 1.0
    #: A turn by any angle, before or after the anisotropic scale, or both.
    rotate: float = 0.0
    #: Wider and lower, or narrower and higher, by as much as `scale`.
    anisotropic_scale: float = 1.0
    #: A shift by fractions of a pixel, normal with an eighth of the size.
    fractional_shift: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    #: Dark and light change places while the hue stays, for every second of the images chosen.
    luma_flip: float = 0.0
    #: A turn of the colours around the axis of greys.
    hue: float = 0.0
    saturation: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            factor = getattr(self, field.name)
            if not 0 <= factor < float("inf"):
                raise ValueError(f"the factor of {field.name} is {factor}; it must be 0 (off) or more")


#: The pipe "bgc" of the ADA paper, for images that a flip or another hue does not change.
EVERYTHING: Final = Transforms(**{field.name: 1.0 for field in fields(Transforms)})
