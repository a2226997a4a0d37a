"""The held-out set: real images to compare with, and their words as prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from calotype.datasets import DatasetArchive, DatasetImage
from calotype.errors import JobFailed
from calotype.specs import MAX_SEED
from worker.benchmark.backbone import Backbone
from worker.benchmark.quality import Features, features, frechet_distance


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Words for a contender and the real image they describe."""

    text: str
    file_name: str


def choose_prompts(items: list[DatasetImage], count: int, seed: int, *, needed: bool = True) -> list[Prompt]:
    """`count` captions (labels where there is no caption), in an order drawn from the seed, again from the start
    when all were used. Raises JobFailed `bad_input` when no image has words; where they are not `needed`, since no
    contender reads them, images without words are taken as well.
    """
    found = [
        Prompt(text=words, file_name=item.file_name)
        for item in sorted(items, key=lambda item: item.file_name)
        if (words := item.text or item.label or "") or not needed
    ]
    if not found:
        raise JobFailed(
            "bad_input",
            "The dataset has no words",
            "Contenders are prompted with the captions or labels of the held-out images, and this dataset has "
            "neither. Add a metadata.jsonl with a text for each image, or one folder a class.",
            retryable=False,
        )
    random.Random(seed).shuffle(found)  # noqa: S311 - a reproducible order, no secret
    return [found[number % len(found)] for number in range(count)]


def sample_seeds(count: int, seed: int) -> list[int]:
    """The seed of each sample: the job's seed, counted up, as a generate job does."""
    return [(seed + number) % (MAX_SEED + 1) for number in range(count)]


def real_features(
    archive: DatasetArchive, backbone: Backbone, device: Any, on_batch: Callable[[int], None]
) -> Features:
    """Features of all images of the set, float64 (N, D)."""
    if len(archive) < 2:
        raise JobFailed(
            "bad_input",
            "The dataset is too small",
            "Distances between sets of images need at least two real images.",
            retryable=False,
        )
    return features(_images(archive), backbone, device=device, on_batch=on_batch)


def split_half(real: Features, seed: int) -> dict[str, Any] | None:
    """Fréchet distance between two random halves of the real images: what "as good as real" scores at that N."""
    half = len(real) // 2
    if half < 2:
        return None
    order = np.random.RandomState(seed % 2**32).permutation(len(real))
    value = frechet_distance(real[order[:half]], real[order[half : 2 * half]])
    return {"fd": float(f"{value:.6g}"), "n": half}


def _images(archive: DatasetArchive) -> Iterator[Image.Image]:
    for item in archive.items:
        yield archive.open_image(item.file_name)
