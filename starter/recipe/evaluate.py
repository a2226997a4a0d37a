"""Measure a pipeline against the held-out logos with the product's own metric; the table of README.md.

    python -m starter.recipe.evaluate --pipeline DIR [--guidance 2 --guidance 3] [--references] [--sheet FILE]

One image per held-out caption, seeds 0, 1, 2, ... The distance is over EfficientNet-lite0 features, which nothing here
was trained on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

import starter
from starter.colours import COLOURS
from starter.recipe.data import load_images, load_rows, to_images, to_pixels, to_signal, to_tensor
from starter.recipe.pictures import colour_rate, contact_sheet
from starter.recipe.untyped import StableDiffusion3Pipeline
from starter.recipe.vae import decode, encode
from worker.benchmark.quality import Features, features, frechet_distance, kid


def main() -> None:
    """Print one line of JSON for every set of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=starter.diffusion_dir())
    parser.add_argument("--guidance", type=float, action="append", default=[])
    parser.add_argument("--steps", type=int, default=starter.DIFFUSION_STEPS)
    parser.add_argument("--count", type=int, default=None, help="images (default: one per held-out logo)")
    parser.add_argument("--references", action="store_true", help="also the floor, blur, noise and the autoencoder")
    parser.add_argument("--sheet", type=Path, default=None, help="write a contact sheet of the last guidance")
    options = parser.parse_args()
    pipeline = StableDiffusion3Pipeline.from_pretrained(options.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    real = load_images(starter.heldout_dataset())
    real_features = features(real)
    if options.references:
        for name, images in references(pipeline, real):
            show(name, features(images), real_features)
    rows = load_rows(starter.heldout_dataset())
    prompts, labels = ([row[key] for row in rows][: options.count] for key in ("text", "label"))
    for guidance in options.guidance or [starter.DIFFUSION_GUIDANCE]:
        started = time.monotonic()
        images = generate(pipeline, prompts, steps=options.steps, guidance=guidance)
        each = (time.monotonic() - started) / len(images)
        show(f"guidance {guidance}", features(images), real_features, hits=colour_rate(images, labels), seconds=each)
        if options.sheet:
            contact_sheet(images[:96]).save(options.sheet)


def generate(
    pipeline: Any, prompts: Sequence[str], *, steps: int, guidance: float, batch: int = 32
) -> list[Image.Image]:
    """One image per prompt, the n-th from seed n, whatever the batch size."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        seeds = range(start, start + len(part))
        with torch.autocast("cpu", torch.bfloat16):
            images += pipeline(
                part,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                max_sequence_length=starter.T5_TOKENS,
                height=starter.DIFFUSION_SIZE,
                width=starter.DIFFUSION_SIZE,
            ).images
    return images


def references(pipeline: Any, real: list[Image.Image]) -> list[tuple[str, list[Image.Image]]]:
    """Sets that say what a distance means: other real logos, blurred and decoded real ones, and noise."""
    train = load_images(starter.train_dataset())
    order = np.random.default_rng(0).permutation(len(train))
    again = decode(pipeline.vae, encode(pipeline.vae, to_signal(to_tensor(real))))
    noise = np.random.default_rng(0).integers(0, 256, (len(real), 64, 64, 3), dtype=np.uint8)
    blurred = [
        (f"real, blurred, sigma {sigma}", [image.filter(ImageFilter.GaussianBlur(sigma)) for image in real])
        for sigma in (1, 2, 4)
    ]
    return [
        ("real training logos", [train[row] for row in order[: len(real)]]),
        ("real, through the autoencoder", to_images(to_pixels(again))),
        *blurred,
        ("colour noise", [Image.fromarray(array) for array in noise]),
    ]


def show(name: str, found: Features, real: Features, hits: float | None = None, seconds: float | None = None) -> None:
    """One line of JSON: the distances, the colour rate and the time."""
    distance = kid(found, real)
    line = {
        "set": name,
        "n": len(found),
        "fd_efficientnet_lite0": round(frechet_distance(found, real), 1),
        "kid_1000": round(1000 * distance.mean, 1),
        "colour_rate": hits,
        "seconds_per_image": seconds,
    }
    print(json.dumps({key: value for key, value in line.items() if value is not None}), flush=True)


def grid_prompts() -> list[str]:
    """Prompts for a sheet that people judge: every colour with every common shape."""
    return [f"{colour} {shape} logo" for colour in COLOURS for shape in ("round", "solid square", "thin", "wide")]


if __name__ == "__main__":
    main()
