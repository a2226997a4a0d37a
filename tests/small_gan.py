"""Generators small enough for tests, as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from calotype.gan_description import GanDescription
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.r3gan import R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.networks.stylegan3_config import stylegan3_t
from worker.families.gan.stored import Generator, save_version

RESOLUTION = 16
LABELS = ["red", "green", "blue"]
#: Of the StyleGAN3 one: its layers, its input and ToRGB.
STYLE_LAYERS = 6


def small_generator(architecture: str = "stylegan3-t", *, classes: int = len(LABELS), seed: int = 0) -> Generator:
    """Freshly drawn: its images are noise, but each is its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "r3gan":
            return R3GANGenerator(R3GANConfig(resolution=RESOLUTION, num_classes=classes, **_R3GAN))
        generator = StyleGAN3Generator(stylegan3_t(RESOLUTION, num_classes=classes, **_STYLEGAN3))
        # Of its untrained mapping, so that truncation has a point to move to.
        generator.mapping.w_avg.normal_()
        return generator


def save_small_gan(folder: Path, architecture: str = "stylegan3-t", **settings: Any) -> GanDescription:
    """A version as training writes it."""
    generator = small_generator(architecture, **settings)
    labels = LABELS[: generator.config.num_classes] or None
    return save_version(folder, generator, labels=labels, provenance={"type": "train"})


_STYLEGAN3: dict[str, Any] = {
    "z_dim": 16, "w_dim": 16, "channel_base": 128, "channel_max": 16, "num_layers": STYLE_LAYERS - 2,
}  # fmt: skip
_R3GAN: dict[str, Any] = {"z_dim": 16, "channel_base": 256, "channel_max": 16, "blocks_per_stage": 1}
