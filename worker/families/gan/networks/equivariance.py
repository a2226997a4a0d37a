"""How exactly a StyleGAN3 generator's image moves and turns when its input does: EQ-T and EQ-R, in dB.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423, "the paper"), Section 3 and Appendix E.
A generator without aliasing gives the moved image when its input is moved, wherever the pixel grid lies; aliasing ties
detail to the grid, and both numbers fall.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from worker.families.gan.networks.filters import kaiser_beta
from worker.families.gan.networks.generator import StyleGAN3Generator

#: Span of image values, −1 to 1. (The paper, Section 3)
DYNAMIC_RANGE: Final = 2.0

#: Inputs move by up to this, in sides of the image. (Appendix E.1)
MAX_TRANSLATION: Final = 1 / 8

#: Reach of the filter that turns images, in pixels; half the width of its transition and its cutoff, in cycles per
#: pixel. It ends at 0.5, so that neither the corners of an image's square spectrum nor its copies get through.
FILTER_RADIUS: Final = 8
FILTER_HALF_WIDTH: Final = 0.12
FILTER_CUTOFF: Final = 0.5 - FILTER_HALF_WIDTH


@torch.no_grad()
def translation_equivariance(
    generator: StyleGAN3Generator, z: Tensor, labels: Tensor | None = None, *, source: torch.Generator
) -> float:
    """EQ-T: PSNR in dB between the image of a moved input and the moved image, over latents z `[N, z_dim]`.

    Each image moves by its own whole number of pixels, drawn from `source` evenly up to `MAX_TRANSLATION`; pixels that
    come from outside are left out. (The paper, Section 3; Appendix E.1)
    """
    side = generator.config.resolution
    reach = round(side * MAX_TRANSLATION)
    differences = []
    for latent, label in _one_by_one(z, labels):
        right, down = torch.randint(-reach, reach + 1, (2,), generator=source).tolist()
        moved = _draw(generator, latent, label, translation=(right / side, down / side))
        expected, inside = shift(_draw(generator, latent, label), right, down)
        differences.append((moved - expected)[..., inside])
    return _decibels(differences)


@torch.no_grad()
def rotation_equivariance(
    generator: StyleGAN3Generator, z: Tensor, labels: Tensor | None = None, *, source: torch.Generator
) -> float:
    """EQ-R: PSNR in dB between the image of a turned input and the turned image, over latents z `[N, z_dim]`.

    Each image turns by its own angle, drawn from `source` evenly from the circle. Turning cannot keep the corners of a
    square spectrum, so both images go through a low-pass filter first. The paper's keeps what lies in both squares,
    turned and unturned; ours the disc within them, which is the same for every angle. Pixels that the filter does not
    cover whole are left out. (Appendix E.3)
    """
    differences = []
    for latent, label in _one_by_one(z, labels):
        degrees = 360 * float(torch.rand((), generator=source))
        turned, inside = rotate(_draw(generator, latent, label, rotation=degrees), 0.0)
        expected, inside_before = rotate(_draw(generator, latent, label), degrees)
        differences.append((turned - expected)[..., inside & inside_before])
    return _decibels(differences)


def shift(images: Tensor, right: int, down: int) -> tuple[Tensor, Tensor]:
    """Images `[..., H, W]` moved by whole pixels, and where `[H, W]` they show what was inside before."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - down
    columns = torch.arange(width, device=images.device) - right
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return images.roll((down, right), dims=(-2, -1)), inside


def rotate(images: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Images `[..., H, W]` turned counter-clockwise around their middle and low-pass filtered (radial jinc, Kaiser
    window, `FILTER_CUTOFF`), and where `[H, W]` that filter lay inside the image."""
    height, width = images.shape[-2:]
    rows, columns = _places_before(height, width, degrees)
    inside = _within(rows, height) & _within(columns, width)
    reach = torch.arange(2 * FILTER_RADIUS) - FILTER_RADIUS + 1
    turned = []
    # Row by row: a row's filters take `[W, 2·radius, 2·radius]` numbers.
    for y, x in zip(rows, columns, strict=True):
        near_y, near_x = y.floor().long()[:, None] + reach, x.floor().long()[:, None] + reach
        kernel = _kernel(torch.hypot((near_y - y[:, None])[:, :, None], (near_x - x[:, None])[:, None, :]))
        near_y, near_x = near_y.clamp(0, height - 1)[:, :, None], near_x.clamp(0, width - 1)[:, None, :]
        turned.append((images[..., near_y, near_x] * kernel.to(images)).sum((-2, -1)))
    return torch.stack(turned, dim=-2), inside.to(images.device)


def _places_before(height: int, width: int, degrees: float) -> tuple[Tensor, Tensor]:
    """Where each pixel's middle was before turning, rows and columns `[H, W]`, in pixels; y points down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64)[None, :] - (width - 1) / 2
    return sin * x + cos * y + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2


def _within(place: Tensor, size: int) -> Tensor:
    return (place >= FILTER_RADIUS - 1) & (place <= size - FILTER_RADIUS)


def _kernel(radius: Tensor) -> Tensor:
    """The filter's weights at distances in pixels, `[W, K, K]`, each pixel's adding up to 1."""
    phase = (2 * math.pi * FILTER_CUTOFF * radius).clamp_min(1e-9)
    jinc = 2 * torch.special.bessel_j1(phase) / phase
    beta = kaiser_beta(2 * FILTER_RADIUS, 2 * FILTER_HALF_WIDTH / 0.5)
    window = torch.special.i0(beta * (1 - (radius / FILTER_RADIUS).square()).clamp_min(0).sqrt())
    kernel: Tensor = jinc * window * (radius < FILTER_RADIUS)
    return kernel / kernel.sum((-2, -1), keepdim=True)


def _one_by_one(z: Tensor, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    for index in range(z.shape[0]):
        yield z[index : index + 1], None if labels is None else labels[index : index + 1]


def _draw(
    generator: StyleGAN3Generator,
    z: Tensor,
    labels: Tensor | None,
    *,
    translation: tuple[float, float] = (0.0, 0.0),
    rotation: float = 0.0,
) -> Tensor:
    """Images of inputs that are moved and turned; the generator's own transform is as before afterwards."""
    transform = generator.synthesis.input.transform
    before = transform.clone()
    try:
        generator.synthesis.input.set_transform(translation=translation, rotation=rotation)
        images: Tensor = generator(z, labels)
    finally:
        transform.copy_(before)
    return images


def _decibels(differences: list[Tensor]) -> float:
    """10·log₁₀(range² / mean square) over all pixels of all images. (The paper, Section 3)"""
    error = float(torch.cat([one.float().flatten() for one in differences]).square().mean())
    return 10 * math.log10(DYNAMIC_RANGE**2 / error) if error > 0 else math.inf
