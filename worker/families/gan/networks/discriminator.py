"""The residual discriminator of StyleGAN2, which StyleGAN3 uses as it is.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958, "the paper"), Figure 7c and
Appendix B; class-conditional as in "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676,
"the ADA paper"), Appendix D. Keys and shapes of the state are those of the published weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from worker.families.gan.networks.filtered_lrelu import leaky_relu
from worker.families.gan.networks.inputs import check_images
from worker.families.gan.networks.labels import checked_labels
from worker.families.gan.networks.linear import EqualizedLinear
from worker.families.gan.networks.mapping import LR_MULTIPLIER, normalize_second_moment
from worker.families.gan.networks.minibatch_std import append_minibatch_std
from worker.families.gan.networks.resample import filter_padding, upfirdn2d

#: Only the four highest resolutions compute in half precision. (ADA paper, Appendix D)
LOW_PRECISION_BLOCKS: Final = 4
#: Low-pass filter before pixels are dropped, along each axis: binomial, and centred between two pixels.
_BLUR: Final = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Settings of a discriminator. Raises ValueError for what no discriminator can be built of."""

    #: Height and width of the images in pixels, a power of two.
    resolution: int
    #: Width of the labels; 0 is an unconditional discriminator.
    num_classes: int = 0
    image_channels: int = 3
    #: Feature maps at a resolution: channel_base/resolution, at most channel_max.
    channel_base: int = 32768
    channel_max: int = 512
    #: Fully connected layers between a label's embedding and what the image's features are compared with.
    mapping_layers: int = 8
    #: Images over which the minibatch standard deviation is taken.
    group_size: int = 4
    #: Feature maps are clamped to ± this. (ADA paper, Appendix D)
    clamp: float = 256.0

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"the resolution is a power of two, at least 8, not {self.resolution}")
        if min(self.image_channels, self.channel_max, self.group_size, self.channel_base // self.resolution) < 1:
            raise ValueError(
                f"image_channels, channel_max, group_size and channel_base/resolution are positive: {self}"
            )

    def channels(self, resolution: int) -> int:
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def block_resolutions(self) -> list[int]:
        """Resolutions that the blocks read, from the image's down to 8."""
        return [2**power for power in range(self.resolution.bit_length() - 1, 2, -1)]


class Discriminator(nn.Module):
    """Images `[N, channels, resolution, resolution]` and labels `[N, num_classes]` to logits `[N, 1]`, higher where an
    image seems real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        for resolution in config.block_resolutions:
            self.add_module(f"b{resolution}", DiscriminatorBlock(config, resolution))
        if config.num_classes:
            self.mapping = LabelMapping(config.num_classes, config.channels(4), config.mapping_layers)
        self.b4 = DiscriminatorHead(config)

    def forward(self, images: Tensor, labels: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """Logits in the parameters' dtype. `dtype`, such as torch.bfloat16, is what the four highest resolutions are
        computed in. Raises ValueError for images or labels of another shape."""
        config = self.config
        check_images(images, config.image_channels, config.resolution)
        labels = checked_labels(labels, images.shape[0], config.num_classes, "discriminator")
        exact = self.b4.out.weight.dtype
        x = images
        for index, resolution in enumerate(config.block_resolutions):
            x = x.to(dtype if dtype and index < LOW_PRECISION_BLOCKS else exact)
            x = self.get_submodule(f"b{resolution}")(x)
        features: Tensor = self.b4(x.to(exact))
        if labels is None:
            return features
        target: Tensor = self.mapping(labels.to(exact))
        logits: Tensor = (features * target).sum(dim=1, keepdim=True) / config.channels(4) ** 0.5
        return logits


class DiscriminatorBlock(nn.Module):
    """Halves height and width: two convolutions beside a linear way around them. The first block reads the image."""

    def __init__(self, config: DiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        width, next_width = config.channels(resolution), config.channels(resolution // 2)
        # Not used. Published states carry the filter in every block and every convolution.
        self.register_buffer("resample_filter", _blur_filter())
        self.fromrgb: Convolution | None = None
        if resolution == config.resolution:
            self.fromrgb = Convolution(config.image_channels, width, kernel=1, clamp=config.clamp)
        self.conv0 = Convolution(width, width, clamp=config.clamp)
        self.conv1 = Convolution(width, next_width, down=2, clamp=config.clamp)
        self.skip = Convolution(width, next_width, kernel=1, down=2, bare=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        # The sum of two signals of variance ½ has variance 1. (The paper, Section 4.1)
        around: Tensor = self.skip(x, gain=0.5**0.5)
        through: Tensor = self.conv1(self.conv0(x), gain=0.5**0.5)
        return around + through


class DiscriminatorHead(nn.Module):
    """Feature maps `[N, C, 4, 4]` to one number an image, or to C numbers that a label is compared with."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels(4)
        self.group_size = config.group_size
        self.conv = Convolution(width + 1, width, clamp=config.clamp)
        self.fc = EqualizedLinear(width * 16, width, activation="leaky_relu")
        self.out = EqualizedLinear(width, width if config.num_classes else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(append_minibatch_std(x, self.group_size))
        logits: Tensor = self.out(self.fc(x.flatten(1)))
        return logits


class LabelMapping(nn.Module):
    """Labels `[N, num_classes]` to what features are compared with, `[N, width]`: an embedding, and layers that learn
    slowly."""

    def __init__(self, num_classes: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.embed = EqualizedLinear(num_classes, width)
        for index in range(num_layers):
            layer = EqualizedLinear(width, width, activation="leaky_relu", lr_multiplier=LR_MULTIPLIER)
            self.add_module(f"fc{index}", layer)

    def forward(self, labels: Tensor) -> Tensor:
        x = normalize_second_moment(self.embed(labels))
        for index in range(self.num_layers):
            x = self.get_submodule(f"fc{index}")(x)
        return x


class Convolution(nn.Module):
    """`[N, inputs, H, W]` → `[N, outputs, H/down, W/down]` with equalised learning rate, then bias and leaky ReLU; or
    bare, without either. The weights are rounded to the dtype of what they are applied to."""

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        down: int = 1,
        clamp: float | None = None,
        bare: bool = False,
    ) -> None:
        super().__init__()
        self.down, self.clamp, self.kernel = down, clamp, kernel
        self.weight_gain = (inputs * kernel**2) ** -0.5
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = None if bare else nn.Parameter(torch.zeros(outputs))
        self.register_buffer("resample_filter", _blur_filter())

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        x = self._downsampled(x, weight) if self.down > 1 else functional.conv2d(x, weight, padding=self.kernel // 2)
        if self.bias is None:
            return x * gain
        x = x + self.bias.to(x.dtype)[None, :, None, None]
        return leaky_relu(x, gain=2**0.5 * gain, clamp=self.clamp * gain if self.clamp else None)

    def _downsampled(self, x: Tensor, weight: Tensor) -> Tensor:
        blur, reach = self.resample_filter, self.kernel // 2
        left, right, top, bottom = filter_padding(blur.shape[0], down=self.down)
        padding = (left + reach, right + reach, top + reach, bottom + reach)
        if self.kernel == 1:
            # A pointwise convolution costs a quarter after pixels are dropped, and gives the same.
            return functional.conv2d(upfirdn2d(x, blur, down=self.down, padding=padding), weight)
        return functional.conv2d(upfirdn2d(x, blur, padding=padding), weight, stride=self.down)


def _blur_filter() -> Tensor:
    """`[4, 4]`, its coefficients sum to 1."""
    blur = torch.tensor(_BLUR) / sum(_BLUR)
    return torch.outer(blur, blur)
