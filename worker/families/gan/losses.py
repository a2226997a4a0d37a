"""What generators and discriminators are trained to do, as functions of logits and images.

Every loss and penalty is one number an image, `[N]`, in fp32 or better; the caller takes the mean. Logits are `[N]` or
`[N, 1]`. Two families:

- *logistic* (StyleGAN3): the non-saturating loss, and R1 every so many steps. (Goodfellow et al. 2014, Section 3;
  Mescheder et al., arXiv 1801.04406, Equation 9; lazily: Karras et al., arXiv 1912.04958, Section 3.1)
- *relativistic* (R3GAN): real and fake are compared in pairs, and both are penalised at every step. (Huang et al., "The
  GAN is dead; long live the GAN!", arXiv 2501.05441, Section 2)
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor

#: StyleGAN3's γ at 128 pixels and a batch of 32. It grows with the number of pixels.
_GAMMA_AT_128: Final = 0.5


def logistic_generator_loss(fake_logits: Tensor) -> Tensor:
    """softplus(−D(G)): small where the discriminator takes the fake for real."""
    return functional.softplus(-_flat(fake_logits))


def logistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(−D(x)) + softplus(D(G))."""
    real, fake = _pair(real_logits, fake_logits)
    return functional.softplus(-real) + functional.softplus(fake)


def relativistic_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(−(D(G) − D(x))): small where the fake looks more real than the real image it is paired with."""
    real, fake = _pair(real_logits, fake_logits)
    return functional.softplus(real - fake)


def relativistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(−(D(x) − D(G)))."""
    real, fake = _pair(real_logits, fake_logits)
    return functional.softplus(fake - real)


def squared_gradient_norm(logits: Tensor, images: Tensor) -> Tensor:
    """‖∇D‖² for each image, `[N]`: R1 where the images are real, R2 where they are fake.

    Images `[N, …]` must require gradients and be what the logits were computed from. Where they are the images before
    augmentation, the penalty reaches through it. The result can be differentiated: the graph is kept.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return _exact(gradient).square().flatten(1).sum(1)


def gradient_penalty(logits: Tensor, images: Tensor, gamma: float) -> Tensor:
    """γ/2 · ‖∇D‖² for each image: zero-centred, so that it vanishes where real and fake are alike."""
    return gamma / 2 * squared_gradient_norm(logits, images)


def lazy_penalty(logits: Tensor, images: Tensor, gamma: float, every: int) -> Tensor:
    """The penalty for a step in which it is computed, when it is computed every so many steps: as much greater."""
    return every * gradient_penalty(logits, images, gamma)


def lazy_adam(learning_rate: float, betas: tuple[float, float], every: int) -> tuple[float, tuple[float, float]]:
    """Adam's settings for a network that takes a step of its own for the penalty after so many others.

    It then takes (every + 1)/every as many steps: the learning rate becomes smaller and the averages longer, by the
    same ratio. (Karras et al., arXiv 1912.04958, Appendix B) 0 means no lazy penalty.
    """
    if every < 0:
        raise ValueError(f"the interval of the lazy penalty is {every} steps; it must be 0 (none) or more")
    ratio = every / (every + 1) if every else 1.0
    return learning_rate * ratio, (betas[0] ** ratio, betas[1] ** ratio)


def default_gamma(resolution: int) -> float:
    """StyleGAN3's γ of R1, from 0.5 at 128 to 32 at 1024 pixels. A start: it is the first thing to tune."""
    return _GAMMA_AT_128 * (resolution / 128) ** 2


def _pair(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    real, fake = _flat(real_logits), _flat(fake_logits)
    if real.shape != fake.shape:
        raise ValueError(f"real and fake logits come in equal numbers; these are {len(real)} and {len(fake)}")
    return real, fake


def _flat(logits: Tensor) -> Tensor:
    # `[N]` minus `[N, 1]` would be a matrix of all pairs, without an error.
    if logits.dim() not in (1, 2) or logits.numel() != logits.shape[0]:
        raise ValueError(f"logits have the shape [N] or [N, 1]; these have {list(logits.shape)}")
    return _exact(logits).flatten()


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
