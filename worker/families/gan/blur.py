"""A blur that fades out: the discriminator first sees only what is coarse.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423), Appendix F: with configuration R all
images are blurred at first, which keeps the discriminator from winning early on details.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from worker.families.gan.networks.resample import upfirdn2d

#: Standard deviations of the Gaussian that its filter reaches.
_REACH = 3.0
#: Below this many pixels it would only cost time.
_LEAST_SIGMA = 0.1


def blur(images: Tensor, sigma: float) -> Tensor:
    """Images `[N, C, H, W]` under a Gaussian of that standard deviation in pixels; the border is mirrored."""
    if sigma < _LEAST_SIGMA:
        return images
    reach = min(math.ceil(_REACH * sigma), min(images.shape[2:]) - 1)
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    taps = torch.exp(-(places / sigma).square() / 2)
    return upfirdn2d(functional.pad(images, (reach,) * 4, mode="reflect"), taps / taps.sum())
