"""The generator that is kept: a running mean of the one that is trained.

Karras et al., "Progressive Growing of GANs" (arXiv 1710.10196): the trained weights swing around what they
are drawn to, and their exponential moving average gives better images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Final, Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

#: Half-life at a batch of 32, in thousand images. Other batches scale it.
HALF_LIFE_KIMG: Final = 10.0
#: The half-life is at most this share of the images seen so far, so that the mean forgets the random start.
RAMP_UP: Final = 0.05


def half_life(batch_size: int, kimg_at_32: float = HALF_LIFE_KIMG) -> float:
    """Images after which what was in the mean counts half: batch/32 · 10 kimg."""
    return 1000 * kimg_at_32 * batch_size / 32


def decay(images: int, batch_size: int, half_life_images: float, ramp_up: float | None = RAMP_UP) -> float:
    """What the mean keeps of itself over one batch, 0.5^(batch/half-life).

    Images are those seen before this batch: for the first one the decay is 0, and the mean a copy.
    """
    images_until_half = half_life_images if ramp_up is None else min(half_life_images, images * ramp_up)
    return float(0.5 ** (batch_size / images_until_half)) if images_until_half > 0 else 0.0


class Ema(Generic[Model]):
    """A copy of a model whose parameters follow the model's as a running mean, and whose buffers equal its own.

    The copy is in evaluation mode and needs no gradients. Its state is `model.state_dict()`.
    """

    def __init__(self, source: Model) -> None:
        self.model: Model = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, decay: float) -> None:
        """mean ← decay·mean + (1 − decay)·source. Raises ValueError for a model with other names or shapes."""
        mean, new = dict(self.model.named_parameters()), dict(source.named_parameters())
        buffers, new_buffers = dict(self.model.named_buffers()), dict(source.named_buffers())
        if _shapes(mean) != _shapes(new) or _shapes(buffers) != _shapes(new_buffers):
            raise ValueError("the running mean is of a model with other parameters or buffers than this one")
        for name, parameter in mean.items():
            parameter.lerp_(new[name].to(parameter.dtype), 1 - decay)
        for name, buffer in buffers.items():
            buffer.copy_(new_buffers[name])


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
