"""GANs of the real classes at 16 pixels, so small that a step takes tens of milliseconds, and images for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from worker.families.gan.data import TrainingImages
from worker.families.gan.networks.discriminator import Discriminator, DiscriminatorConfig
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.networks.stylegan3_config import stylegan3_r, stylegan3_t
from worker.families.gan.schedule import Ramp
from worker.families.gan.trainer import Trainer, TrainSettings

SIDE = 16
ARCHITECTURES = ("stylegan3-t", "stylegan3-r", "r3gan")


def networks(architecture: str, classes: int = 0, seed: int = 0) -> tuple[Any, Any]:
    """A generator and a discriminator."""
    torch.manual_seed(seed)
    if architecture == "r3gan":
        shared = R3GANConfig(
            resolution=SIDE, num_classes=classes, z_dim=8, channel_base=256, channel_max=16, group_width=8
        )
        return R3GANGenerator(shared), R3GANDiscriminator(shared)
    configure = stylegan3_r if architecture == "stylegan3-r" else stylegan3_t
    config = configure(
        SIDE, num_classes=classes, z_dim=8, w_dim=8, channel_base=128, channel_max=8, num_layers=4, num_critical=2
    )
    judge = DiscriminatorConfig(resolution=SIDE, num_classes=classes, channel_base=128, channel_max=8, mapping_layers=2)
    return StyleGAN3Generator(config), Discriminator(judge)


def images(count: int = 24, labels: tuple[str, ...] = ()) -> TrainingImages:
    """Squares of one colour with a spot."""
    random = torch.Generator().manual_seed(9)
    pixels = torch.randint(0, 256, (count, 3, 1, 1), generator=random, dtype=torch.uint8).repeat(1, 1, SIDE, SIDE)
    pixels[:, :, 4:9, 3:12] = torch.randint(0, 256, (count, 3, 1, 1), generator=random, dtype=torch.uint8)
    return TrainingImages(pixels=pixels, labels=labels, classes=torch.arange(count) % max(1, len(labels)))


def constant(value: float) -> Ramp:
    return Ramp(start=value, end=value, kimg=0.0)


def settings(architecture: str, **changes: Any) -> TrainSettings:
    """Eight images a step; a penalty every second step."""
    plain = TrainSettings(
        steps=8,
        batch_size=8,
        seed=1,
        relativistic=architecture == "r3gan",
        generator_lr=constant(0.0025),
        discriminator_lr=constant(0.002),
        beta2=constant(0.99),
        gamma=constant(0.5),
        penalty_every=2,
        ema_half_life=100.0,
        augment="ada",
        augment_p=constant(0.5),
    )
    return replace(plain, **changes)


def trainer(architecture: str, *, classes: int = 0, seed: int = 0, count: int = 24, **changes: Any) -> Trainer:
    """A trainer of fresh networks."""
    names = tuple("abcdefgh"[:classes])
    generator, discriminator = networks(architecture, classes, seed)
    options = {name: changes.pop(name) for name in ("replicas", "log", "pulse", "averaged") if name in changes}
    return Trainer(generator, discriminator, images(count, names), settings(architecture, **changes), **options)
