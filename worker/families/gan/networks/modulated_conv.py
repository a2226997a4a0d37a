"""A convolution whose input channels are scaled, image by image, by a style."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool = True,
    input_gain: Tensor | None = None,
    padding: int = 0,
) -> Tensor:
    """Images `[N, I, H, W]` convolved with weight `[O, I, k, k]` scaled by styles `[N, I]`; `[N, O, H', W']` in the
    dtype of x.

    `demodulate` scales each output channel to the variance that it would have if x had a variance of 1. (Karras et
    al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", Equations 1 and 3) `input_gain`, a scalar, is
    applied after that and therefore not undone by it.

    Scaling weights by channel is the same as scaling what goes in and what comes out. The latter needs one
    convolution for the batch rather than one for each image.
    """
    if weight.dim() != 4 or x.shape[1] != weight.shape[1] or styles.shape != x.shape[:2]:
        raise ValueError(
            f"weights {list(weight.shape)} and styles {list(styles.shape)} do not fit images {list(x.shape)}"
        )
    gain = None
    if demodulate:
        weight, styles = _unit_norm(weight), styles * styles.square().mean().rsqrt()
        gain = _demodulation(weight, styles)
    if input_gain is not None:
        styles = styles * input_gain
    x = functional.conv2d(x * _per_channel(styles, x), weight.to(x.dtype), padding=padding)
    return x if gain is None else x * _per_channel(gain, x)


def _unit_norm(weight: Tensor) -> Tensor:
    """Weights with a norm of 1 per output channel: demodulation does not depend on it, and half precision then
    cannot overflow."""
    return weight * torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True))


def _demodulation(weight: Tensor, styles: Tensor, eps: float = 1e-8) -> Tensor:
    """1/√(Σ (s·w)² + ε/fan-in), `[N, O]`, for weights of norm 1."""
    power = styles.square() @ weight.square().sum(dim=(2, 3)).t()
    return torch.rsqrt(power + eps / weight[0].numel())


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, :, None, None]
