"""An animated WebP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from PIL import Image

#: What the artifact is called.
ANIMATION: Final = "interpolation.webp"
#: Of lossy WebP, 0 to 100: at 90 no block is seen in flat colour.
QUALITY: Final = 90


def save_animation(path: Path, frames: Sequence[Image.Image], frames_per_second: int, *, loop: bool) -> None:
    """Write frames of one size; with `loop` it begins again for ever, else it stops at the last frame.

    A WebP counts in whole milliseconds: durations are rounded so that the frames keep in step with the clock.
    """
    ends = [round(1000 * number / frames_per_second) for number in range(len(frames) + 1)]
    durations = [end - start for start, end in pairwise(ends)]
    first, *others = frames
    first.save(
        path,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0 if loop else 1,
        quality=QUALITY,
        method=4,
    )
