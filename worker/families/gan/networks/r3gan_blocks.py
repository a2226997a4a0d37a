"""What R3GAN's two networks are built of: one kind of residual block, and resampling between stages.

Huang et al., "The GAN is dead; long live the GAN! A Modern GAN Baseline" (arXiv 2501.05441, "the paper"), in the
section "A Roadmap to a New Baseline", configurations D and E.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from worker.families.gan.networks.filtered_lrelu import leaky_relu

_SLOPE: Final = 0.2
#: √(2/(1 + slope²)): with it a leaky ReLU passes on the variance it was given. (He et al. 2015, Section 2.2)
_ACTIVATION_GAIN: Final = (2 / (1 + _SLOPE**2)) ** 0.5


class PlainConvolution(nn.Module):
    """Convolution that keeps height and width, with weights of a variance of (gain²)/fan-in.

    The weights are rounded to the dtype of what they are applied to.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 1, groups: int = 1, bias: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.groups, self.padding = groups, kernel // 2
        fan_in = inputs // groups * kernel**2
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, kernel, kernel) * (gain / fan_in**0.5))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.conv2d(x, self.weight.to(x.dtype), bias, padding=self.padding, groups=self.groups)


class ResidualBlock(nn.Module):
    """x + a bottleneck turned inside out: 1×1 to more channels, 3×3 in groups, 1×1 back, with leaky ReLU after the
    first two. (The paper, configuration E; grouped as in Xie et al. 2017, "Aggregated Residual Transformations")

    There is no normalisation. Instead, as in fix-up, the last convolution starts at zero and the two others are smaller
    by blocks^(−1/4), blocks being the number of residual blocks in the network. (Zhang et al. 2019, Section 3)
    """

    def __init__(self, channels: int, *, expansion: int, group_width: int, kernel: int, blocks: int) -> None:
        super().__init__()
        wide = channels * expansion
        gain = _ACTIVATION_GAIN * blocks**-0.25
        self.widen = PlainConvolution(channels, wide, bias=True, gain=gain)
        self.spatial = PlainConvolution(wide, wide, kernel=kernel, groups=wide // group_width, bias=True, gain=gain)
        self.narrow = PlainConvolution(wide, channels, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        inner = leaky_relu(self.widen(x), slope=_SLOPE, gain=1.0)
        inner = leaky_relu(self.spatial(inner), slope=_SLOPE, gain=1.0)
        narrow: Tensor = self.narrow(inner)
        return x + narrow


class Upsample(nn.Module):
    """`[N, inputs, H, W]` → `[N, outputs, 2H, 2W]`: bilinear, pixel i becoming pixel 2i, with a 1×1 convolution before
    it where the channels change. (The paper, configuration D: resampling is bilinear and kept apart from the
    convolutions)"""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.channels = PlainConvolution(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # Each pixel twice, then the mean of two neighbours: a pixel itself, then what lies between it and the next.
        # As a filter that is the triangle [1, 2, 1]/2; means take two thirds of the time that convolutions do.
        doubled = functional.interpolate(self.channels(x), scale_factor=2.0, mode="nearest")
        return functional.avg_pool2d(functional.pad(doubled, (0, 1, 0, 1)), 2, stride=1)


class Downsample(nn.Module):
    """`[N, inputs, H, W]` → `[N, outputs, H/2, W/2]`: the adjoint of bilinear upsampling, with a 1×1 convolution after
    it where the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.channels = PlainConvolution(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        means = functional.avg_pool2d(functional.pad(x, (1, 0, 1, 0)), 2, stride=1)
        resampled: Tensor = self.channels(functional.avg_pool2d(means, 2))
        return resampled
