"""Bilinear sampling of images that differentiates as often as one likes.

R1 is a gradient with respect to the images *before* augmentation, and its own gradient is needed. PyTorch's
`grid_sample` has a second derivative only in recent releases. But sampling is linear in the images: its derivative is
its adjoint, which spreads values instead of fetching them, and the adjoint's derivative is sampling again.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as functional
from torch import Tensor

#: `grid_sample`'s numbers for what the text calls bilinear and border.
_BILINEAR: Final = 0
_BORDER: Final = 1


def grid_sample(images: Tensor, grid: Tensor) -> Tensor:
    """Images `[N, C, H, W]` at the places of a grid `[N, h, w, 2]`: `[N, C, h, w]`.

    Places are (x, y), from −1 at the centre of the first pixel to 1 at the centre of the last; beyond them the border
    repeats. The grid gets no gradient.
    """
    return _Sample.apply(images, grid)  # type: ignore[no-untyped-call, no-any-return]


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradient, grid, ctx.shape), None  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """The adjoint of `_Sample`: from values `[N, C, h, w]` at the places of the grid to images of that shape."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # Only the gradient of the grid, which the mask leaves out, would look at the images: any of the shape will do.
        images = values.new_zeros(()).expand(shape)
        spread: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            values.contiguous(), images, grid, _BILINEAR, _BORDER, True, (True, False)
        )[0]
        return spread

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(gradient, grid), None, None  # type: ignore[no-untyped-call]
