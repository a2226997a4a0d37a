"""The images of one contender: looked at, and all but the first dropped, before they fill the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from PIL import Image

from worker.benchmark.quality import Features

#: Images for people: the first so many samples.
SHOWN: Final = 64

#: Images that may wait to be looked at: 1.5 GB at 1024 × 1024.
_WAITING: Final = 512


class Samples:
    """Sample number → image, and its features once looked at. Each number counts once, whoever makes it first."""

    def __init__(self, look: Callable[[Sequence[Image.Image]], Features] | None) -> None:
        #: Features of images, float64 (N, D); None when none are asked for.
        self._look = look
        self._waiting: dict[int, Image.Image] = {}
        self._features: dict[int, Features] = {}
        self._seen: set[int] = set()
        #: The samples that people are shown.
        self.shown: dict[int, Image.Image] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, number: int, image: Image.Image) -> None:
        """Keep a sample, unless there is one of that number."""
        if number in self._seen:
            return
        self._seen.add(number)
        if number < SHOWN:
            self.shown[number] = image
        if self._look is not None:
            self._waiting[number] = image

    @property
    def crowded(self) -> bool:
        """Whether so many wait that it is time to `settle`."""
        return len(self._waiting) >= _WAITING

    def settle(self) -> None:
        """Look at all that wait, and drop them. Uses the device: not between calls that are timed."""
        if self._look is None or not self._waiting:
            return
        numbers = sorted(self._waiting)
        found = self._look([self._waiting[number] for number in numbers])
        self._features |= dict(zip(numbers, found, strict=True))
        self._waiting.clear()

    def features(self) -> Features:
        """Of all samples in the order of their numbers, float64 (N, D)."""
        self.settle()
        return np.stack([self._features[number] for number in sorted(self._features)])
