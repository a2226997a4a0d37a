"""Measure a GAN against the held-out logos with the product's own metrics; the table of README.md.

    python -m starter.recipe.evaluate_gan [--version DIR] [--sheet FILE]

One image per held-out logo, of its colour, seeds 0, 1, 2, ... as `evaluate` does it for the diffusion pipeline. The
features are EfficientNet-lite0's, which nothing here was trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

import starter
from starter.colours import COLOURS
from starter.recipe.data import load_images, load_rows
from starter.recipe.pictures import colour_rate, contact_sheet
from starter.recipe.recolour import numbers_of
from worker.benchmark.diversity import prdc
from worker.benchmark.quality import features, frechet_distance, kid
from worker.benchmark.timing import Stopwatch
from worker.families.gan.sampling import Sampler, make_sampler, to_images
from worker.families.gan.stored import load_generator

#: Batch sizes at which the time is taken, and calls at each after two to warm up.
BATCHES: Final = (1, 8, 16)
CALLS: Final = 50


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, default=starter.gan_dir())
    parser.add_argument("--sheet", type=Path, default=None, help="write a contact sheet: a column a colour")
    options = parser.parse_args()
    evaluate(options.version, sheet=options.sheet)


def evaluate(version: Path, *, sheet: Path | None = None) -> dict[str, Any]:
    """Distances, diversity, colours and times of a version, printed and returned; its images by colour as a sheet."""
    sampler = make_sampler(load_generator(version, torch.device("cpu")).generator)
    labels = [row["label"] for row in load_rows(starter.heldout_dataset())]
    images = generate(sampler, labels)
    found = measures(images, labels) | {"ms_per_image": milliseconds(sampler)}
    print(json.dumps(found), flush=True)
    if sheet:
        by_colour(sampler).save(sheet)
    return found


def generate(sampler: Sampler, labels: Sequence[str], *, first_seed: int = 0, batch: int = 32) -> list[Image.Image]:
    """One image a label, the n-th of seed first_seed + n, whatever the batch size. Raises ValueError for NaN."""
    images: list[Image.Image] = []
    for start in range(0, len(labels), batch):
        part = labels[start : start + batch]
        seeds = range(first_seed + start, first_seed + start + len(part))
        made = to_images(sampler.images(sampler.points(seeds, numbers_of(part), 1.0)))
        images += [image for image in made if image is not None]
    if len(images) < len(labels):
        raise ValueError(f"{len(labels) - len(images)} images are not finite")
    return images


def measures(images: Sequence[Image.Image], labels: Sequence[str]) -> dict[str, Any]:
    """What the table has: distances to the held-out logos, recall and coverage of them, share of first colours."""
    real, made = features(load_images(starter.heldout_dataset())), features(images)
    distance, varied = kid(made, real), prdc(made, real)
    return {
        "set": starter.GAN_MODEL,
        "n": len(images),
        "fd_efficientnet_lite0": round(frechet_distance(made, real), 1),
        "kid_1000": round(1000 * distance.mean, 1),
        "kid_1000_ci": [round(1000 * distance.ci_low, 1), round(1000 * distance.ci_high, 1)],
        "precision": round(varied.precision, 3),
        "recall": round(varied.recall, 3),
        "density": round(varied.density, 3),
        "coverage": round(varied.coverage, 3),
        "colour_rate": round(colour_rate(images, labels), 4),
    }


def milliseconds(sampler: Sampler) -> dict[int, float]:
    """Median time an image at each batch size, from seeds to RGB images."""
    watch = Stopwatch.on(torch.device("cpu"))
    return {batch: round(1000 * _seconds(sampler, batch, watch) / batch, 2) for batch in BATCHES}


def by_colour(sampler: Sampler, rows: int = 12) -> Image.Image:
    """A contact sheet: a column a colour, a row a latent."""
    images = []
    for row in range(rows):
        points = sampler.points([row] * len(COLOURS), numbers_of(COLOURS), 1.0)
        images += [image for image in to_images(sampler.images(points)) if image is not None]
    return contact_sheet(images, columns=len(COLOURS))


def _seconds(sampler: Sampler, batch: int, watch: Stopwatch) -> float:
    labels = [COLOURS[number % len(COLOURS)] for number in range(batch)]
    times = [watch.time(lambda: generate(sampler, labels, batch=batch))[1] for _ in range(CALLS + 2)]
    return float(np.median(times[2:]))


if __name__ == "__main__":
    main()
