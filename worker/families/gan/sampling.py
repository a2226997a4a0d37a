"""From seeds to images: points of a latent space, ways between them, and the images that they stand for.

A point is what one image of a call has of its own. StyleGAN3's are the styles of its layers, in W, where truncation,
mixing and straight lines make sense; R3GAN has no such space, its points are latents with their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.r3gan import R3GANGenerator
from worker.families.gan.stored import Generator


class Sampler(Protocol):
    """Images of one generator, computed in one dtype. Tensors are on the generator's device."""

    @property
    def num_classes(self) -> int:
        """0: unconditional."""

    def points(self, seeds: Sequence[int], classes: Sequence[int] | None, truncation_psi: float) -> Tensor:
        """One point a seed, `[N, …]`; `classes` are their numbers, None for an unconditional generator.

        The point of a seed does not depend on the others beyond floating-point rounding.
        """

    def mix(self, points: Tensor, styles: Tensor, first: int, last: int) -> Tensor:
        """Points with the layers first to last of others. Raises ValueError for an architecture without styles."""

    def between(self, one: Tensor, other: Tensor, share: float) -> Tensor:
        """The point at 0 ≤ share < 1 of the way from one point to another, `[…]`."""

    def images(self, points: Tensor) -> Tensor:
        """fp32 images `[N, 3, H, W]`, about −1 to 1, in one call of the network."""


def make_sampler(generator: Generator, dtype: torch.dtype | None = None, *, compiled: bool = False) -> Sampler:
    """How images of a generator are made; `dtype`, such as torch.bfloat16, is what its highest resolutions are
    computed in. `compiled` takes minutes at the first image, and makes later ones faster on a GPU."""
    if isinstance(generator, R3GANGenerator):
        return LatentSampler(generator, dtype, compiled=compiled)
    return StyleSampler(generator, dtype, compiled=compiled)


def draw(seed: int, z_dim: int, num_classes: int) -> tuple[Tensor, int]:
    """The latent `[z_dim]` of a seed, and the class that it draws where none is asked for.

    On the CPU, so that they do not depend on the device; the latent comes first, so that it is the same whether or
    not a class is asked for.
    """
    source = torch.Generator("cpu").manual_seed(seed)
    z = torch.randn(z_dim, generator=source)
    return z, int(torch.randint(max(1, num_classes), (), generator=source))


def classes_of(seeds: Sequence[int], generator: Generator, chosen: int | None) -> list[int] | None:
    """The class of each image: the chosen one, or what its seed draws; None for an unconditional generator."""
    config = generator.config
    if not config.num_classes:
        return None
    if chosen is not None:
        return [chosen] * len(seeds)
    return [draw(seed, config.z_dim, config.num_classes)[1] for seed in seeds]


class StyleSampler:
    """StyleGAN3. Points are w `[num_ws, w_dim]`, truncated already."""

    def __init__(self, generator: StyleGAN3Generator, dtype: torch.dtype | None, *, compiled: bool) -> None:
        self._generator, self._dtype = generator, dtype
        self._synthesis = torch.compile(generator.synthesis) if compiled else generator.synthesis

    @property
    def num_classes(self) -> int:
        return self._generator.config.num_classes

    @torch.no_grad()
    def points(self, seeds: Sequence[int], classes: Sequence[int] | None, truncation_psi: float) -> Tensor:
        mapping = self._generator.mapping
        z, labels = _inputs(seeds, classes, self._generator, mapping.w_avg.device)
        ws: Tensor = mapping(z, labels, truncation_psi=truncation_psi)
        return ws

    def mix(self, points: Tensor, styles: Tensor, first: int, last: int) -> Tensor:
        return torch.cat([points[:, :first], styles[:, first : last + 1], points[:, last + 1 :]], dim=1)

    def between(self, one: Tensor, other: Tensor, share: float) -> Tensor:
        return one.lerp(other, share)

    @torch.no_grad()
    def images(self, points: Tensor) -> Tensor:
        images: Tensor = self._synthesis(points, dtype=self._dtype)
        return images.float()


class LatentSampler:
    """R3GAN. Points are a latent and a one-hot label, `[z_dim + num_classes]`."""

    def __init__(self, generator: R3GANGenerator, dtype: torch.dtype | None, *, compiled: bool) -> None:
        self._generator, self._dtype = generator, dtype
        self._forward = torch.compile(generator) if compiled else generator

    @property
    def num_classes(self) -> int:
        return self._generator.config.num_classes

    def points(self, seeds: Sequence[int], classes: Sequence[int] | None, truncation_psi: float) -> Tensor:
        if truncation_psi != 1:
            raise ValueError(f"r3gan has no truncation: truncation_psi is 1, not {truncation_psi}")
        z, labels = _inputs(seeds, classes, self._generator, self._generator.basis.basis.device)
        return z if labels is None else torch.cat([z, labels], dim=1)

    def mix(self, points: Tensor, styles: Tensor, first: int, last: int) -> Tensor:
        raise ValueError("r3gan has no styles to mix")

    def between(self, one: Tensor, other: Tensor, share: float) -> Tensor:
        width = self._generator.config.z_dim
        return torch.cat([slerp(one[:width], other[:width], share), one[width:].lerp(other[width:], share)])

    @torch.no_grad()
    def images(self, points: Tensor) -> Tensor:
        width = self._generator.config.z_dim
        labels = points[:, width:] if self.num_classes else None
        images: Tensor = self._forward(points[:, :width], labels, dtype=self._dtype)
        return images.float()


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Between two latents `[D]` along the arc, which keeps the length that latents of a normal distribution have.
    (Shoemake 1985, "Animating Rotation with Quaternion Curves")"""
    cosine = torch.dot(one, other) / (one.norm() * other.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin().abs() < 1e-4:
        return one.lerp(other, share)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / angle.sin()


def to_images(images: Tensor) -> list[Image.Image | None]:
    """RGB images of `[N, 3, H, W]`; −1 is black and 1 is white. None for one that is not all numbers."""
    finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
    bytes_ = (images.nan_to_num() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = bytes_.permute(0, 2, 3, 1).cpu().numpy()
    return [
        Image.fromarray(np.ascontiguousarray(one)) if fine else None for one, fine in zip(pixels, finite, strict=True)
    ]


def _inputs(
    seeds: Sequence[int], classes: Sequence[int] | None, generator: Generator, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    config = generator.config
    z = torch.stack([draw(seed, config.z_dim, config.num_classes)[0] for seed in seeds]).to(device)
    if classes is None:
        return z, None
    return z, one_hot(torch.tensor(list(classes)), config.num_classes).float().to(device)
