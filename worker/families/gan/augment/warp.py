"""An affine transform of images without aliasing. (ADA paper, Appendix B: the images are upsampled, transformed and
downsampled with an orthogonal low-pass filter)

The images are upsampled twice by the filter of the wavelet sym6, sampled bilinearly where the transform says, and
downsampled by the same filter, reversed. The filter is orthogonal to itself shifted by even numbers, so that the
identity gives the images back.

Two things are done otherwise than the paper describes, to the same end.

- *Padding.* The paper pads by reflection as far as the transforms of the batch reach. Here only the filters' margin is
  padded, and places further out are folded back into the image: the same pixels without the memory, however far out.
- *Delay.* The filter is not quite symmetric: it moves what it filters by its own centre. Identity and shifts undo that
  on the way down, but flips and turns would double it, to 0.4 pixels. So coordinates count from where the filter
  puts things.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor

from worker.families.gan.augment.draws import identity
from worker.families.gan.augment.grid_sample import grid_sample
from worker.families.gan.networks.resample import upfirdn2d

#: Scaling filter of the wavelet sym6, normalised to Σh² = 1: of the orthogonal filters with 12 taps and six vanishing
#: moments the one whose phase is nearest to linear. (Daubechies, "Ten Lectures on Wavelets", 1992, Table 6.3 up to
#: normalisation; PyWavelets gives these digits as `Wavelet("sym6").dec_lo`)
SYM6: Final = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
#: The filter's delay in samples: its centre of mass.
_DELAY: Final = sum(index * tap for index, tap in enumerate(SYM6)) / sum(SYM6)
#: Pixels beyond the border that the downsampling filter reaches. So far places are not folded back: there the padded
#: image is filtered like the rest, and the identity is exact up to the border.
_REACH: Final = len(SYM6) // 4
#: Padding in pixels: the reach, and what the upsampling filter needs around it.
_MARGIN: Final = 2 * _REACH


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Images `[N, C, H, W]`, each transformed by its matrix `[N, 3, 3]`, which says for each place of the result where
    it comes from, in pixels from the centre, x to the right and y down. Beyond the border the image is its own mirror.

    What the identity would do is not computed, and shifts by whole pixels need no filter. Raises ValueError for images
    of 6 pixels or less.
    """
    if bool((matrices == identity(3)).all()):
        return images
    height, width = images.shape[2:]
    if min(height, width) <= _MARGIN:
        raise ValueError(f"images of {width}×{height} pixels are too small to augment; {_MARGIN + 1} is the least")
    if bool((matrices - identity(3))[:, :, :2].eq(0).all()) and bool(matrices.eq(matrices.round()).all()):
        return _shifted(images, matrices[:, :2, 2].to(images.device, torch.int64))
    taps = images.new_tensor(SYM6)
    padded = functional.pad(images, (_MARGIN,) * 4, mode="reflect")
    finer = upfirdn2d(padded, taps, up=2)
    return upfirdn2d(grid_sample(finer, _grid(matrices, images, finer)), taps, down=2, flip=True)


def _shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Images moved by whole pixels `[N, 2]`, x and y, which say where each pixel comes from. The filters would change
    nothing inside; here what comes from beyond the border is the mirror image up to the last pixel."""
    count, channels, height, width = images.shape
    columns = _mirrored(torch.arange(width, device=images.device) + shifts[:, :1], width)
    rows = _mirrored(torch.arange(height, device=images.device) + shifts[:, 1:], height)
    moved = images.gather(3, columns[:, None, None, :].expand(count, channels, height, width))
    return moved.gather(2, rows[:, None, :, None].expand(count, channels, height, width))


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Indices within an axis of places on it and beyond, mirrored at the centres of its first and last pixel."""
    return (size - 1) - (torch.remainder(places, 2 * size - 2) - (size - 1)).abs()


def _grid(matrices: Tensor, images: Tensor, finer: Tensor) -> Tensor:
    """Where in the finer image each sample of the finer result comes from, as `grid_sample` wants it."""
    height, width = images.shape[2:]
    rows, columns = _offsets(height, images), _offsets(width, images)
    matrix = matrices.to(images.device, images.dtype)[:, :2, :, None, None]
    # Offsets are in half pixels, so the shift doubles.
    places = matrix[:, :, 0] * columns[None, :] + matrix[:, :, 1] * rows[:, None] + 2 * matrix[:, :, 2]
    x, y = _index(places[:, 0], width), _index(places[:, 1], height)
    last_x, last_y = finer.shape[3] - 1, finer.shape[2] - 1
    return torch.stack((2 * x / last_x - 1, 2 * y / last_y - 1), dim=-1)


def _offsets(size: int, like: Tensor) -> Tensor:
    """Places of the finer result along an axis, in half pixels from the centre. Sample 2i + k is what tap k of the
    downsampling filter reads for pixel i."""
    samples = torch.arange(2 * size + len(SYM6) - 2, device=like.device, dtype=like.dtype)
    return samples - (_DELAY + size - 1)


def _index(places: Tensor, size: int) -> Tensor:
    """From half pixels from the centre to indices of the finer image."""
    return _fold(places, size) + (size - 1 + 2 * _MARGIN + _DELAY - (len(SYM6) - 1))


def _fold(places: Tensor, size: int) -> Tensor:
    """Places beyond the reach, mirrored at the centres of the border's pixels until they lie within."""
    border = float(size - 1)
    turns = torch.remainder(places + border, 4 * border)
    folded = border - (turns - 2 * border).abs()
    return torch.where(places.abs() > border + 2 * _REACH, folded, places)
