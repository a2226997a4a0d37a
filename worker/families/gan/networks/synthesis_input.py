"""The input of StyleGAN3's synthesis: a continuous image of random waves, which can be moved and turned exactly.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423, "the paper"), Section 3.2 "Fourier
features" and "Transformed Fourier features", Appendix F.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worker.families.gan.networks.linear import EqualizedLinear


class SynthesisInput(nn.Module):
    """w `[N, w_dim]` to feature maps `[N, channels, size, size]`: sines of fixed random frequencies, moved and turned
    as w says, mixed by a learnt matrix.

    `transform` `[3, 3]` acts beside what w says: see `set_transform`. Frequencies are in cycles per side of the image,
    drawn evenly from the disc of radius `bandwidth`; phases are in turns.
    """

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, *, w_dim: int, channels: int, size: int, sampling_rate: float, bandwidth: float) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.sampling_rate, self.bandwidth = sampling_rate, bandwidth
        # √U of a uniform U makes the points of a disc equally likely.
        radius, angle = bandwidth * torch.rand(channels).sqrt(), 2 * math.pi * torch.rand(channels)
        self.weight = nn.Parameter(torch.randn(channels, channels))
        # Weights of 0 and this bias: before training, w neither moves nor turns anything.
        self.affine = EqualizedLinear(w_dim, 4, weight_std=0.0, bias_init=(1.0, 0.0, 0.0, 0.0))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1))
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def set_transform(self, *, translation: tuple[float, float] = (0.0, 0.0), rotation: float = 0.0) -> None:
        """Turn the image by `rotation` degrees, counter-clockwise around its middle, then move it by `translation`
        (right, down), in sides of the image. It stays so until it is set again; the default is no change."""
        angle = math.radians(rotation)
        cos, sin = math.cos(angle), math.sin(angle)
        right, down = translation
        # The inverse of what happens to the image: from where the picture is to where it comes from. y points down.
        turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        move = torch.tensor([[1.0, 0.0, -right], [0.0, 1.0, -down], [0.0, 0.0, 1.0]])
        self.transform.copy_(turn @ move)

    def forward(self, w: Tensor) -> Tensor:
        transforms = self._style_transforms(w) @ self.transform
        phases = self.phases + (self.freqs @ transforms[:, :2, 2:]).squeeze(2)
        freqs = self.freqs @ transforms[:, :2, :2]
        turns = self._grid() @ freqs[:, None].mT + phases[:, None, None, :]
        waves: Tensor = torch.sin(2 * math.pi * turns) * self._amplitudes(freqs)[:, None, None, :]
        return (waves @ (self.weight / math.sqrt(self.channels)).t()).permute(0, 3, 1, 2).contiguous()

    def _style_transforms(self, w: Tensor) -> Tensor:
        """`[N, 3, 3]`: a translation after a rotation, as inverses, from (cos, sin, right, down) = affine(w), divided
        by the norm of the first two. (Appendix F)"""
        affine: Tensor = self.affine(w)
        cos, sin, right, down = (affine / affine[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        one, zero = torch.ones_like(cos), torch.zeros_like(cos)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).view(-1, 3, 3)
        move = torch.stack([one, zero, -right, zero, one, -down, zero, zero, one], dim=1).view(-1, 3, 3)
        return turn @ move

    def _amplitudes(self, freqs: Tensor) -> Tensor:
        """1 within the band, falling to 0 at half the sampling rate. Only an affine map that is not a rotation moves
        frequencies there, and they would alias. freqs `[N, C, 2]`; returns `[N, C]`."""
        beyond: Tensor = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        return (1 - beyond).clamp(0, 1)

    def _grid(self) -> Tensor:
        """Middles of pixels, `[size, size, 2]` as (right, down) from the image's middle, in sides of the image."""
        place = torch.arange(self.size, dtype=self.freqs.dtype, device=self.freqs.device)
        place = (place + 0.5 - self.size / 2) / self.sampling_rate
        return torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=2)
