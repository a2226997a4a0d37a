"""Settings that change as training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """From `start` to `end` over the first `kimg` thousand images, and `end` from then on.

    R3GAN's learning rate, Adam's second beta, γ and the augmentation's p move in this way, along half a cosine. (Huang
    et al., arXiv 2501.05441, Appendix)
    """

    start: float
    end: float
    kimg: float
    shape: Shape = "cosine"

    def __post_init__(self) -> None:
        if not self.kimg >= 0:
            raise ValueError(f"a ramp over {self.kimg} thousand images; it must be 0 (none) or more")
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"unknown shape of a ramp {self.shape!r}; there are linear and cosine")

    def at(self, images: int) -> float:
        """The value when so many images have been seen."""
        share = min(1.0, images / (1000 * self.kimg)) if self.kimg else 1.0
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share
