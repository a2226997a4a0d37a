"""Resampling of images by finite impulse response (FIR) filters: upsample, pad, filter, downsample.

Everything is made of PyTorch's own convolutions, so that it differentiates as often as they do (R1 needs a second
derivative), runs in the dtype of its input and on its device. A filter is a tensor `[taps]`, applied along both axes
(separable), or `[height, width]`, or None, which stands for a single tap of 1.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

#: Pixels added at (left, right, top, bottom) of the upsampled image. Negative numbers crop.
Padding = tuple[int, int, int, int]


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Padding = (0, 0, 0, 0),
    gain: float = 1.0,
    flip: bool = False,
) -> Tensor:
    """Images `[N, C, H, W]` resampled by up/down, in the dtype of x.

    1. Each pixel is followed by up − 1 zeros, along both axes.
    2. The image is padded with zeros, or cropped where padding is negative.
    3. It is convolved with gain·f, keeping only what the filter covers whole. This is a true convolution; `flip`
       turns the filter round, which makes it a correlation.
    4. Every down-th pixel is kept, the first among them.

    The height of the result is (H·up + top + bottom − taps)//down + 1, and so for the width.

    Raises ValueError for an input that is not `[N, C, H, W]`, a filter of no or of more than two dimensions, rates
    below 1, and an image that is smaller than the filter.
    """
    taps = x.new_ones(1) if f is None else f
    _check(x, taps, up, down)
    taps = taps.flip(tuple(range(taps.dim()))) if flip else taps
    left, right, top, bottom = padding
    if f is None and up == 1:
        _check_size(x, taps[None], (1, 1), padding)
        return _scaled(_pad(x, padding)[:, :, ::down, ::down], gain)
    if taps.dim() == 2:
        return _resample(x, gain * taps, (up, up), (down, down), padding)
    # Rows first, then columns: 2·taps products a pixel instead of taps².
    x = _resample(x, gain * taps[None, :], (1, up), (1, down), (left, right, 0, 0))
    return _resample(x, taps[:, None], (up, 1), (down, 1), (0, 0, top, bottom))


def filter_padding(taps: int, *, up: int = 1, down: int = 1) -> Padding:
    """Padding with which a filter of that many taps neither moves the image nor changes its size beyond the rates:
    the result of `upfirdn2d` is H·up/down high, where down divides that.

    The centre of the filter comes to lie on the centre of the up pixels that one became, respectively of the down
    pixels that become one. Where that is between two pixels the first side has one pixel more.
    """
    if up > 1 and down > 1:
        raise ValueError(f"padding is for upsampling or for downsampling, not for both at once (up {up}, down {down})")
    first, second = (taps + up - down) // 2, (taps - max(up, down)) // 2
    return (first, second, first, second)


def _check(x: Tensor, f: Tensor, up: int, down: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"images have the shape [N, C, H, W]; these are {list(x.shape)}")
    if f.dim() not in (1, 2) or f.numel() == 0:
        raise ValueError(f"a filter has the shape [taps] or [height, width]; this one is {list(f.shape)}")
    if up < 1 or down < 1:
        raise ValueError(f"rates are at least 1; up is {up}, down is {down}")


def _resample(x: Tensor, f: Tensor, up: tuple[int, int], down: tuple[int, int], padding: Padding) -> Tensor:
    """`upfirdn2d` for a filter `[height, width]` and rates (vertical, horizontal)."""
    _check_size(x, f, up, padding)
    channels = x.shape[1]
    # `expand` copies nothing; the convolutions are depthwise, which is many times faster than folding the channels
    # into the batch. The filters are few numbers: they are rounded to the dtype of x last.
    kernel = f.to(x.dtype).expand(channels, 1, *f.shape)
    if up == (1, 1):
        return functional.conv2d(_pad(x, padding), kernel.flip((2, 3)), stride=down, groups=channels)
    # A transposed convolution with a stride skips the products with the zeros between the pixels. It keeps what the
    # filter covers only in part, taps − 1 pixels on each side, and nothing of the zeros after the last pixel.
    spread = functional.conv_transpose2d(x, kernel, stride=up, groups=channels)
    left, right, top, bottom = padding
    rows, columns = f.shape
    cut = (
        left - (columns - 1),
        right - (columns - 1) + up[1] - 1,
        top - (rows - 1),
        bottom - (rows - 1) + up[0] - 1,
    )
    return _pad(spread, cut)[:, :, :: down[0], :: down[1]]


def _check_size(x: Tensor, f: Tensor, up: tuple[int, int], padding: Padding) -> None:
    left, right, top, bottom = padding
    size = (x.shape[2] * up[0] + top + bottom, x.shape[3] * up[1] + left + right)
    if size[0] < f.shape[0] or size[1] < f.shape[1]:
        raise ValueError(
            f"the upsampled and padded image is {size[0]}×{size[1]}, smaller than the filter, "
            f"which is {f.shape[0]}×{f.shape[1]}"
        )


def _scaled(x: Tensor, gain: float) -> Tensor:
    return x * gain if gain != 1.0 else x


def _pad(x: Tensor, padding: Padding) -> Tensor:
    return functional.pad(x, padding) if any(padding) else x
