"""The starter GAN without a queue: ``python -m benchmarks.gan_loop DIR``

For each line "BATCH CALLS" on standard input it makes so many images so often, from seeds to RGB images, and prints the
seconds that it took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from worker.families.gan.sampling import Sampler, make_sampler, to_images
from worker.families.gan.stored import load_generator


def main() -> None:
    sampler = make_sampler(load_generator(Path(sys.argv[1]), torch.device("cpu")).generator)
    for line in sys.stdin:
        batch, calls = (int(word) for word in line.split())
        began = time.perf_counter()
        for number in range(calls):
            _sample(sampler, number * batch, batch)
        print(time.perf_counter() - began, flush=True)


def _sample(sampler: Sampler, first_seed: int, batch: int) -> None:
    seeds = range(first_seed, first_seed + batch)
    classes = [seed % sampler.num_classes for seed in seeds] if sampler.num_classes else None
    if None in to_images(sampler.images(sampler.points(seeds, classes, 1.0))):
        raise AssertionError("the model gave no numbers")


if __name__ == "__main__":
    main()
