"""A contender that draws coloured discs at once, and does on demand what real ones do wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

SIZE = 24


def disc(seed: int) -> Image.Image:
    """A disc on white whose place and colour follow from the seed."""
    random = np.random.RandomState(seed)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    left, top = (int(place) for place in random.randint(0, SIZE // 2, 2))
    fill = tuple(int(value) for value in random.randint(0, 200, 3))
    ImageDraw.Draw(image).ellipse((left, top, left + SIZE // 2, top + SIZE // 2), fill=fill)
    return image


class FakeContender:
    """Records what is asked of it."""

    dtype = torch.float32

    def __init__(
        self,
        name: str = "fake",
        *,
        fail: Callable[[Sequence[int]], None] = lambda seeds: None,
        multiplications: int = 1,
    ) -> None:
        self.name = name
        self._fail, self._multiplications = fail, multiplications
        self.events: list[str] = []
        self.calls: list[tuple[list[str], list[int]]] = []

    def describe(self) -> dict[str, Any]:
        return {
            "family": "diffusion",
            "model": "fake@1",
            "adapters": [],
            "steps": 4,
            "guidance_scale": 1.0,
            "width": SIZE,
            "height": SIZE,
            "dtype": "float32",
            "licence": None,
        }

    def fetch(self) -> None:
        self.events.append("fetch")

    def load(self) -> None:
        self.events.append("load")

    def unload(self) -> None:
        self.events.append("unload")

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], on_progress: Callable[[float], None]
    ) -> list[Image.Image]:
        self.calls.append((list(prompts), list(seeds)))
        self._fail(seeds)
        square = torch.ones(32, 32)
        for step in range(4):
            for _ in range(self._multiplications * len(seeds)):
                torch.mm(square, square)
            on_progress((step + 1) / 4)
        return [disc(seed) for seed in seeds]


def out_of_memory_beyond(images: int) -> Callable[[Sequence[int]], None]:
    """Fails as torch does when a call makes more than so many images."""

    def fail(seeds: Sequence[int]) -> None:
        if len(seeds) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return fail
