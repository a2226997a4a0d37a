"""Geometric transforms of the pipe: one affine matrix an image. (ADA paper, Appendix B, "pixel blitting"
and "general geometric transformations")

Matrices are `[N, 3, 3]`, fp64, on homogeneous columns (x, y, 1) in pixels from the centre of the image, x to the right
and y down.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from worker.families.gan.augment.draws import Draws, identity
from worker.families.gan.augment.transforms import Transforms

#: Largest integer shift and standard deviation of the fractional one, of the image's size. (ADA paper, Appendix B)
SHIFT: Final = 0.125
#: Standard deviation of both scales, in octaves. (ADA paper, Appendix B)
SCALE: Final = 0.2


def draw_geometry(draws: Draws, size: tuple[int, int], p: float, transforms: Transforms) -> Tensor:
    """Matrices `[N, 3, 3]` that say for each place of the result where in the image it comes from.

    Size is (height, width). The transforms happen in the order of `Transforms`.
    """
    matrices = identity(3).expand(draws.count, 3, 3)
    for transform in _forward(draws, size, p, transforms):
        matrices = transform @ matrices
    origins: Tensor = torch.linalg.inv(matrices)
    return origins


def _forward(draws: Draws, size: tuple[int, int], p: float, transforms: Transforms) -> list[Tensor]:
    height, width = size
    one = torch.ones(draws.count, dtype=torch.float64)
    flip = scale2d(1 - 2 * draws.choice(2), one)
    turn = rotate2d(math.pi / 2 * draws.choice(4))
    whole = translate2d(
        torch.round(draws.uniform(-SHIFT, SHIFT) * width), torch.round(draws.uniform(-SHIFT, SHIFT) * height)
    )
    larger, wider = draws.log_normal(SCALE), draws.log_normal(SCALE)
    before, after = rotate2d(draws.uniform(-math.pi, math.pi)), rotate2d(draws.uniform(-math.pi, math.pi))
    fraction = translate2d(draws.normal(SHIFT) * width, draws.normal(SHIFT) * height)
    # Two turns of this probability each leave a share of 1 − p without any. (ADA paper, Appendix B)
    rotating = 1 - math.sqrt(1 - min(1.0, p * transforms.rotate))
    return [
        draws.sometimes(flip, p * transforms.x_flip),
        draws.sometimes(turn, p * transforms.rotate90),
        draws.sometimes(whole, p * transforms.integer_shift),
        draws.sometimes(scale2d(larger, larger), p * transforms.scale),
        draws.sometimes(before, rotating),
        draws.sometimes(scale2d(wider, 1 / wider), p * transforms.anisotropic_scale),
        draws.sometimes(after, rotating),
        draws.sometimes(fraction, p * transforms.fractional_shift),
    ]


def translate2d(x: Tensor, y: Tensor) -> Tensor:
    return _matrices(one(x), zero(x), x, zero(x), one(x), y)


def scale2d(x: Tensor, y: Tensor) -> Tensor:
    return _matrices(x, zero(x), zero(x), zero(x), y, zero(x))


def rotate2d(angle: Tensor) -> Tensor:
    """A turn against the clock, as one sees it, by that many radians. (y points down)"""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _matrices(cos, sin, zero(angle), -sin, cos, zero(angle))


def zero(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def one(like: Tensor) -> Tensor:
    return torch.ones_like(like)


def _matrices(*upper_rows: Tensor) -> Tensor:
    """From six tensors `[N]`, which are the two upper rows, to `[N, 3, 3]`."""
    last = (zero(upper_rows[0]), zero(upper_rows[0]), one(upper_rows[0]))
    return torch.stack((*upper_rows, *last), dim=-1).reshape(-1, 3, 3)
