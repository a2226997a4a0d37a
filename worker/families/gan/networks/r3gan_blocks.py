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
from worker.families.gan.networks.resample import Padding, upfirdn2d

_SLOPE: Final = 0.2
#: √(2/(1 + slope²)): with it a leaky ReLU passes on the variance it was given. (He et al. 2015, Section 2.2)
_ACTIVATION_GAIN: Final = (2 / (1 + _SLOPE**2)) ** 0.5
#: Triangle: upsampling by 2 puts the mean of two neighbours between them, which is bilinear interpolation.
_TRIANGLE: Final = (0.25, 0.5, 0.25)
#: With these, pixel i of the small image lies on pixel 2i of the large one, both ways.
_UP_PADDING: Final[Padding] = (1, 1, 1, 1)
_DOWN_PADDING: Final[Padding] = (1, 0, 1, 0)


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
    """`[N, inputs, H, W]` → `[N, outputs, 2H, 2W]`: bilinear, with a 1×1 convolution before it where the channels
    change. (The paper, configuration D: resampling is bilinear and kept apart from the convolutions)"""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.channels = PlainConvolution(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(self.channels(x), x.new_tensor(_TRIANGLE), up=2, padding=_UP_PADDING, gain=4.0)


class Downsample(nn.Module):
    """`[N, inputs, H, W]` → `[N, outputs, H/2, W/2]`: the adjoint of bilinear upsampling, with a 1×1 convolution after
    it where the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.channels = PlainConvolution(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        resampled: Tensor = self.channels(upfirdn2d(x, x.new_tensor(_TRIANGLE), down=2, padding=_DOWN_PADDING))
        return resampled
