"""A leaky ReLU between two filters: a nonlinearity that makes no frequencies above the sampling rate.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423, "the paper" below), Section 2: a
pointwise nonlinearity makes frequencies without bound. So it is computed at a higher rate, and a low-pass filter takes
away what the output's rate cannot carry.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from worker.families.gan.networks.resample import Padding, upfirdn2d


def filtered_lrelu(
    x: Tensor,
    up_filter: Tensor | None,
    down_filter: Tensor | None,
    bias: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Padding = (0, 0, 0, 0),
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip: bool = False,
) -> Tensor:
    """Images `[N, C, H, W]` plus bias `[C]`, upsampled and filtered (gain up², so that amplitudes stay), through
    gain·leaky_relu, clamped to ±clamp, filtered and downsampled, in the dtype of x.

    Padding is that of the upsampled image, before the first filter. `layer_plan` works out how much keeps the middle
    of the image where it is.
    """
    if bias is not None:
        if bias.shape != x.shape[1:2]:
            raise ValueError(f"the bias has the shape {list(bias.shape)}; images {list(x.shape)} need [{x.shape[1]}]")
        x = x + bias.to(x.dtype)[None, :, None, None]
    x = upfirdn2d(x, up_filter, up=up, padding=padding, gain=float(up**2), flip=flip)
    x = leaky_relu(x, slope=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, down_filter, down=down, flip=flip)


def leaky_relu(x: Tensor, *, slope: float = 0.2, gain: float = 2**0.5, clamp: float | None = None) -> Tensor:
    """gain·leaky_relu(x), clamped to ±clamp. A slope of 1 leaves the gain and the clamp."""
    x = functional.leaky_relu(x, slope) if slope != 1.0 else x
    x = x * gain if gain != 1.0 else x
    return x.clamp(-clamp, clamp) if clamp is not None else x
