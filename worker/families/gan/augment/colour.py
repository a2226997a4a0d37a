"""Colour transforms of the pipe: one 4×4 matrix an image. (ADA paper, Appendix B, "color transformations")

Matrices are `[N, 4, 4]`, fp64, on homogeneous columns (red, green, blue, 1) of colours in [−1, 1].
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from worker.families.gan.augment.draws import Draws, identity
from worker.families.gan.augment.transforms import Transforms

#: Standard deviations: of brightness in the colours' own unit, of contrast and saturation in octaves. (ADA paper,
#: Appendix B)
BRIGHTNESS: Final = 0.2
CONTRAST: Final = 0.5
SATURATION: Final = 1.0


def draw_colour(draws: Draws, p: float, transforms: Transforms) -> Tensor:
    """Matrices `[N, 4, 4]`. The transforms happen in the order of `Transforms`."""
    matrices = identity(4).expand(draws.count, 4, 4)
    for transform in _forward(draws, p, transforms):
        matrices = transform @ matrices
    return matrices


def apply_colour(images: Tensor, matrices: Tensor) -> Tensor:
    """Images `[N, 3, H, W]`, each through its own matrix. What the identity would do is not computed."""
    if bool((matrices == identity(4)).all()):
        return images
    matrices = matrices.to(images.device, images.dtype)
    linear, offset = matrices[:, :3, :3], matrices[:, :3, 3:]
    return torch.baddbmm(offset, linear, images.flatten(2)).reshape(images.shape)


def _forward(draws: Draws, p: float, transforms: Transforms) -> list[Tensor]:
    brightness = brighten(draws.normal(BRIGHTNESS))
    contrast = stretch(draws.log_normal(CONTRAST))
    luma = flip_luma(draws.choice(2))
    hue = rotate_hue(draws.uniform(-math.pi, math.pi))
    saturation = saturate(draws.log_normal(SATURATION))
    return [
        draws.sometimes(brightness, p * transforms.brightness),
        draws.sometimes(contrast, p * transforms.contrast),
        draws.sometimes(luma, p * transforms.luma_flip),
        draws.sometimes(hue, p * transforms.hue),
        draws.sometimes(saturation, p * transforms.saturation),
    ]


def brighten(by: Tensor) -> Tensor:
    matrices = identity(4).repeat(by.shape[0], 1, 1)
    matrices[:, :3, 3] = by[:, None]
    return matrices


def stretch(contrast: Tensor) -> Tensor:
    """Colours away from, or towards, middle grey."""
    return _linear(contrast[:, None, None] * identity(3))


def flip_luma(flip: Tensor) -> Tensor:
    """Where flip is 1, colours are mirrored at the plane of zero luma; where it is 0, nothing happens."""
    return _linear(identity(3) - 2 * _grey() * flip[:, None, None])


def rotate_hue(angle: Tensor) -> Tensor:
    """A turn by that many radians around the axis of greys. Luma stays. (Rodrigues' formula)"""
    third = 3**-0.5
    cross = third * torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return _linear(cos * identity(3) + sin * cross + (1 - cos) * _grey())


def saturate(saturation: Tensor) -> Tensor:
    """Colours away from, or towards, the grey of the same luma."""
    return _linear(_grey() + saturation[:, None, None] * (identity(3) - _grey()))


def _grey() -> Tensor:
    """The projection onto the axis of greys: what it leaves of a colour is its luma, the plain mean of the three."""
    return torch.full((3, 3), 1 / 3, dtype=torch.float64)


def _linear(matrices: Tensor) -> Tensor:
    """From `[N, 3, 3]` to `[N, 4, 4]` without an offset."""
    whole = identity(4).repeat(matrices.shape[0], 1, 1)
    whole[:, :3, :3] = matrices
    return whole
