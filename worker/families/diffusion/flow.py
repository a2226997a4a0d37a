"""Rectified-flow matching as SD3 trains it: noise levels, noising, losses.

A noise level σ lies in (0, 1]: 0 is the clean latent, 1 is pure noise. Sources: Esser et al., "Scaling
Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv 2403.03206, "SD3 paper" below), and
diffusers 0.42 where its convention matters to people who compare losses.

Everything here is fp32 whatever the model computes in: bf16 has 8 bits of mantissa, and of the 1000 timesteps
of the scheduler only 355 survive a round trip through it.
"""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

import torch
from torch import Tensor

TimestepSampling = Literal["logit_normal", "uniform", "mode"]
Weighting = Literal["none", "sigma_sqrt", "cosmap"]
Loss = Literal["velocity", "diffusers_compat"]

#: The denoiser is told σ·1000, as in `FlowMatchEulerDiscreteScheduler` with its default
#: `num_train_timesteps`.
NUM_TRAIN_TIMESTEPS: Final = 1000

#: The scheduler's smallest level before shifting. Below it nothing is ever denoised, and σ⁻² has no bound.
MIN_SIGMA: Final = 1.0 / NUM_TRAIN_TIMESTEPS

#: Scale k of mode sampling. (SD3 paper, Equation 20; diffusers' default)
MODE_SCALE: Final = 1.29


def sample_sigmas(
    count: int,
    generator: torch.Generator,
    *,
    sampling: TimestepSampling = "logit_normal",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    shift: float = 1.0,
) -> Tensor:
    """Noise levels to train at, fp32 `[count]` in [MIN_SIGMA, 1], drawn before the scheduler's shift and
    shifted here.

    - logit_normal: sigmoid(N(mean, std)) (SD3 paper, Equation 19). A positive mean means *more* noise, as in
      the paper. The diffusers scripts draw the same u but use it as an index into timesteps that descend, so
      that there a positive mean means less noise: a mean taken from such a script changes its sign.
    - mode: 1 − u − k·(cos²(πu/2) − 1 + u), u uniform (SD3 paper, Equation 20).
    - uniform: u.
    """
    if sampling == "logit_normal":
        normal = torch.randn(count, generator=generator, dtype=torch.float32, device=generator.device)
        levels = torch.sigmoid(normal * logit_std + logit_mean)
    else:
        uniform = torch.rand(count, generator=generator, dtype=torch.float32, device=generator.device)
        levels = mode_levels(uniform) if sampling == "mode" else uniform
    return shift_sigmas(levels.clamp(MIN_SIGMA, 1.0), shift)


def mode_levels(uniform: Tensor, scale: float = MODE_SCALE) -> Tensor:
    """Mode sampling: uniform numbers in [0, 1] to noise levels in [0, 1]. (SD3 paper, Equation 20)"""
    return 1 - uniform - scale * (torch.cos(math.pi * uniform / 2) ** 2 - 1 + uniform)


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """σ = s·σ'/(1 + (s − 1)·σ'): more noise for larger images, which lose less of their signal to it.

    SD3 paper, Equation 23 with s = √(m/n); `FlowMatchEulerDiscreteScheduler(shift=s)` does the same at
    inference.
    """
    return sigmas if shift == 1.0 else shift * sigmas / (1 + (shift - 1) * sigmas)


def timesteps(sigmas: Tensor) -> Tensor:
    """What the denoiser is told about noise levels: 1000·σ, fp32."""
    return sigmas.float() * NUM_TRAIN_TIMESTEPS


def add_noise(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_t = (1 − σ)·x0 + σ·ε for latents `[B, C, H, W]` and levels `[B]`. (SD3 paper, Equation 13)"""
    level = _per_sample(sigmas, clean)
    return (1.0 - level) * clean + level * noise


def flow_loss(
    velocity: Tensor,
    clean: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    *,
    loss: Loss = "velocity",
    weighting: Weighting = "none",
) -> Tensor:
    """One loss per sample, fp32 `[B]`: the weighted mean square error of the predicted velocity `[B, C, H,
    W]`.

    - velocity: w(σ)·‖v − (ε − x0)‖², conditional flow matching along straight paths. (SD3 paper, Section 2)
    - diffusers_compat: w(σ)·‖(x_t − σ·v) − x0‖², what `train_dreambooth_sd3.py` computes by default
      (`precondition_outputs=1`). Since x_t − x0 = σ·(ε − x0) that is exactly σ² times the velocity loss: low
      noise counts little. It is here so that runs can be compared with that script's, not because it is
      better.
    """
    error = _error(velocity.float(), clean.float(), noise.float(), sigmas.float(), loss)
    per_sample = error.square().flatten(1).mean(1)
    return per_sample * loss_weights(sigmas, weighting)


def loss_weights(sigmas: Tensor, weighting: Weighting) -> Tensor:
    """w(σ), fp32 `[B]`: 1; σ⁻² (sigma_sqrt); 2/(π·(1 − 2σ + 2σ²)) (cosmap, SD3 paper, Equation 21)."""
    if weighting not in get_args(Weighting):
        raise ValueError(f"no weighting {weighting!r}; there are {', '.join(get_args(Weighting))}")
    sigmas = sigmas.float()
    if weighting == "sigma_sqrt":
        return sigmas**-2.0
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    return torch.ones_like(sigmas)


def _error(velocity: Tensor, clean: Tensor, noise: Tensor, sigmas: Tensor, loss: Loss) -> Tensor:
    if loss == "velocity":
        return velocity - (noise - clean)
    # Written as the script writes it rather than as σ·(v − (ε − x0)), so that rounding agrees as well.
    noisy = add_noise(clean, noise, sigmas)
    return noisy - _per_sample(sigmas, clean) * velocity - clean


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.float().view(-1, *[1] * (like.dim() - 1))
