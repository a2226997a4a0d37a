"""Whether a GAN's gradients are the slopes of its losses: autograd beside finite differences, in double precision.

The losses are those of a training job, with augmentation, of networks small enough to be evaluated thousands of times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn

from calotype.gan_description import Architecture
from worker.families.gan.augment import EVERYTHING, AugmentPipe, Parameters
from worker.families.gan.data import TrainingImages
from worker.families.gan.networks.discriminator import Discriminator, DiscriminatorConfig
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.networks.stylegan3_config import stylegan3_r, stylegan3_t
from worker.families.gan.objective import Moment, Objective, StepDraw

#: Pixels a side: the smallest image that all three know.
SIZE: Final = 16
CLASSES: Final = 2
#: One group of the minibatch standard deviation.
BATCH: Final = 4
GAMMA: Final = 10.0
#: Standard deviation in pixels of the blur that configuration R begins with.
SIGMA: Final = 0.5
WIDTHS: Final[dict[str, int]] = {"num_classes": CLASSES, "channel_base": 128, "channel_max": 8}

#: Relative to the size of what is moved. The better of them counts: a step may meet the kink of a leaky ReLU, where R1
#: jumps, which a ten times smaller one will hardly meet too; a wrong gradient is wrong at both.
STEPS: Final = (1e-6, 1e-7)
#: Slopes smaller than this share of the whole gradient are taken relative to it: their differences are rounding.
NEGLIGIBLE: Final = 1e-3

Loss = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What came of one loss."""

    architecture: Architecture
    #: Whose gradient, of which loss.
    what: str
    #: Tensors of parameters that were moved, each along one direction.
    tensors: int
    #: The largest relative error among them.
    error: float


def checks(architecture: Architecture, most_tensors: int | None = None) -> list[Check]:
    """Every parameter tensor of both networks, or so many of each, against every loss that trains it."""
    generator, discriminator = small_networks(architecture)
    objective = Objective(
        generator,
        discriminator,
        _images(),
        relativistic=architecture == "r3gan",
        dtype=None,
        device=torch.device("cpu"),
    )
    draw, moment = _draw(), Moment(gamma=GAMMA, sigma=SIGMA)
    penalties = " with R1 and R2" if architecture == "r3gan" else ""
    losses: dict[str, tuple[nn.Module, Loss]] = {
        "generator's loss": (generator, lambda: objective.generator(draw, moment).values.mean()),
        f"discriminator's loss{penalties}": (
            discriminator,
            lambda: objective.discriminator(draw, moment).values.mean(),
        ),
        "R1 alone": (discriminator, lambda: objective.penalty(draw, moment).values.mean()),
    }
    return [
        Check(architecture=architecture, what=what, tensors=len(errors), error=max(errors))
        for what, (network, loss) in losses.items()
        if (errors := relative_errors(loss, list(network.parameters()), most_tensors))
    ]


def relative_errors(loss: Loss, parameters: Sequence[Tensor], most: int | None = None) -> list[float]:
    """For each parameter the relative difference between autograd's slope and the one that is measured.

    `most` takes so many of them, evenly spread.
    """
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True)
    random = torch.Generator().manual_seed(1)
    directions = [_direction(*pair, random) for pair in zip(parameters, gradients, strict=True)]
    slopes = [float((g * d).sum()) for g, d in zip(gradients, directions, strict=True)]
    least = NEGLIGIBLE * sum(slope**2 for slope in slopes) ** 0.5
    every = 1 if most is None else max(1, len(parameters) // most)
    moved = islice(zip(parameters, directions, slopes, strict=True), 0, None, every)
    return [
        min(abs(measured_slope(loss, parameter, direction, step) - slope) for step in STEPS) / max(abs(slope), least)
        for parameter, direction, slope in moved
    ]


def measured_slope(loss: Loss, parameter: Tensor, direction: Tensor, step: float) -> float:
    """The central difference of a loss along a direction of one parameter, which is put back."""
    before = parameter.detach().clone()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.copy_(before + sign * step * direction)
        values.append(float(loss().detach()))
    with torch.no_grad():
        parameter.copy_(before)
    return (values[0] - values[1]) / (2 * step)


def _direction(parameter: Tensor, gradient: Tensor, random: torch.Generator) -> Tensor:
    """The gradient's own direction, along which the slope is far from zero, and a random one, without which an error
    at right angles to the gradient would not show."""
    other = torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
    direction = _unit(gradient.detach()) + _unit(other) / 2
    return direction * max(1.0, float(parameter.detach().norm()))


def _unit(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm().clamp_min(1e-300)
    return unit


def small_networks(architecture: Architecture) -> tuple[Any, Any]:
    """A generator and a discriminator in double precision, with nothing left at the zero it begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _networks(architecture)
        for network in networks:
            network.double()
            for parameter in network.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return networks


def _networks(architecture: Architecture) -> tuple[nn.Module, nn.Module]:
    if architecture == "r3gan":
        shared = R3GANConfig(resolution=SIZE, z_dim=8, blocks_per_stage=1, group_width=4, **WIDTHS)
        return R3GANGenerator(shared), R3GANDiscriminator(shared)
    configure = stylegan3_r if architecture == "stylegan3-r" else stylegan3_t
    config = configure(SIZE, z_dim=8, w_dim=8, num_layers=6, **WIDTHS)
    return StyleGAN3Generator(config), Discriminator(DiscriminatorConfig(resolution=SIZE, **WIDTHS))


class _ExactImages(TrainingImages):
    """Images in double precision, so that what is differentiated by them is too."""

    def images(self, numbers: Tensor, device: torch.device | None = None) -> Tensor:
        return super().images(numbers, device).double()


def _images() -> TrainingImages:
    random = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    return _ExactImages(pixels=pixels, labels=("one", "other"), classes=torch.arange(BATCH) % CLASSES)


def _draw() -> StepDraw:
    """Every transform happens to every image."""
    random = torch.Generator().manual_seed(3)
    latents = torch.randn(2, BATCH, 8, generator=random, dtype=torch.float64)
    real, fake, real_again, fake_again = islice(_augmentations(random), 4)
    return StepDraw(
        numbers=torch.arange(BATCH),
        discriminator_latents=latents[0],
        generator_latents=latents[1],
        real=real,
        fake=fake,
        real_again=real_again,
        fake_again=fake_again,
    )


def _augmentations(random: torch.Generator) -> Iterator[Parameters]:
    pipe = AugmentPipe(EVERYTHING, p=1.0)
    while True:
        yield pipe.draw(BATCH, (SIZE, SIZE), random)
