"""R3GAN: a generator and a discriminator of modern convolutional blocks and nothing else.

Huang et al., "The GAN is dead; long live the GAN! A Modern GAN Baseline" (arXiv 2501.05441, "the paper"), in the
section "A Roadmap to a New Baseline". Gone are StyleGAN's mapping network, style modulation, noise, equalised learning
rate and minibatch standard deviation.

What the paper leaves open was chosen as follows; each is named again where it is done.

- Feature maps at resolutions that the paper did not train: `R3GANConfig.channel_base`.
- Conditioning: a linear embedding of the label, as wide as z, is joined to z; the discriminator adds the projection of
  the image's features onto another embedding (Miyato and Koyama, arXiv 1802.05637), divided by √width.
- Biases: in the two widened convolutions of a block, at the image and at the logit, all starting at zero.
- Everything outside the residual branches starts with variance 1/fan-in, the embeddings of labels with 1.
- Resampling: the filter [1, 2, 1], zeros beyond the border.
- The four highest resolutions can compute in another dtype.

Not the paper's, and off unless asked for: `patch` and `palette` of `R3GANConfig`.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from worker.families.gan.networks.inputs import check_images
from worker.families.gan.networks.labels import checked_labels
from worker.families.gan.networks.palette import PaletteHead
from worker.families.gan.networks.r3gan_blocks import Downsample, PlainConvolution, ResidualBlock, Upsample
from worker.families.gan.networks.r3gan_config import R3GANConfig

#: How many of the highest resolutions compute in half precision.
LOW_PRECISION_STAGES: Final = 4


class R3GANGenerator(nn.Module):
    """Latents `[N, z_dim]` and labels `[N, num_classes]` to images `[N, channels, resolution, resolution]`, about −1
    to 1. Its only randomness is its latents, from a normal distribution."""

    def __init__(self, config: R3GANConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _embedding(config.num_classes, config.z_dim) if config.num_classes else None
        inputs = config.z_dim * (2 if config.num_classes else 1)
        self.basis = Basis(inputs, config.channels(4))
        for lower, resolution in zip([None, *config.stages[:-1]], config.stages, strict=True):
            if lower:
                self.add_module(f"up{resolution}", Upsample(config.channels(lower), config.channels(resolution)))
            self.add_module(f"stage{resolution}", _stage(config, resolution))
        self.image = _head(config, inputs)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """Images in the parameters' dtype. `dtype`, such as torch.bfloat16, is what the four highest resolutions are
        computed in. Raises ValueError for latents or labels of another shape."""
        config = self.config
        if z.dim() != 2 or z.shape[1] != config.z_dim:
            raise ValueError(f"latents have the shape [N, {config.z_dim}]; these are {list(z.shape)}")
        labels = checked_labels(labels, z.shape[0], config.num_classes, "generator")
        exact = self.basis.basis.dtype
        z = z.to(exact)
        if self.embed is not None and labels is not None:
            z = torch.cat([z, self.embed(labels.to(exact))], dim=1)
        x = self.basis(z)
        for resolution in config.stages:
            x = x.to(_dtype_at(config, resolution, dtype) or exact)
            if resolution > 4:
                x = self.get_submodule(f"up{resolution}")(x)
            x = self.get_submodule(f"stage{resolution}")(x)
        if isinstance(self.image, PaletteHead):
            image: Tensor = self.image(x, z)
        else:
            image = functional.pixel_shuffle(self.image(x), config.patch)
        return image.to(exact)


class R3GANDiscriminator(nn.Module):
    """Images `[N, channels, resolution, resolution]` and labels `[N, num_classes]` to logits `[N, 1]`. What they mean
    is only their difference between two images."""

    def __init__(self, config: R3GANConfig) -> None:
        super().__init__()
        self.config = config
        highest = config.channels(config.stages[-1])
        self.image = PlainConvolution(config.image_channels * config.patch**2, highest, bias=True)
        for resolution in reversed(config.stages):
            self.add_module(f"stage{resolution}", _stage(config, resolution))
            if resolution > 4:
                lower = resolution // 2
                self.add_module(f"down{lower}", Downsample(config.channels(resolution), config.channels(lower)))
        self.head = Head(config)

    def forward(self, images: Tensor, labels: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """Logits in the parameters' dtype; `dtype` as in the generator. Raises ValueError for images or labels of
        another shape."""
        config = self.config
        check_images(images, config.image_channels, config.resolution)
        labels = checked_labels(labels, images.shape[0], config.num_classes, "discriminator")
        exact = self.image.weight.dtype
        x = images.to(_dtype_at(config, config.resolution, dtype) or exact)
        x = self.image(functional.pixel_unshuffle(x, config.patch))
        for resolution in reversed(config.stages):
            x = x.to(_dtype_at(config, resolution, dtype) or exact)
            x = self.get_submodule(f"stage{resolution}")(x)
            if resolution > 4:
                x = self.get_submodule(f"down{resolution // 2}")(x)
        logits: Tensor = self.head(x.to(exact), labels)
        return logits


class Basis(nn.Module):
    """z `[N, inputs]` to feature maps `[N, C, 4, 4]`: learned ones, each as strong as a linear layer says. (The paper,
    configuration D)"""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.randn(channels, 4, 4))
        self.strength = _linear(inputs, channels)

    def forward(self, z: Tensor) -> Tensor:
        strength: Tensor = self.strength(z)
        return self.basis * strength[:, :, None, None]


class Head(nn.Module):
    """Feature maps `[N, C, 4, 4]` to logits `[N, 1]`: a depthwise 4×4 convolution takes away the places, a linear layer
    the channels. (The paper, configuration D)"""

    def __init__(self, config: R3GANConfig) -> None:
        super().__init__()
        channels = config.channels(4)
        #: The depthwise convolution: with one place left of each map it is a weighted sum.
        self.basis = nn.Parameter(torch.randn(channels, 4, 4) / 4)
        self.logit = _linear(channels, 1, bias=True)
        self.embed = _embedding(config.num_classes, channels) if config.num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        features = (x * self.basis).sum(dim=(2, 3))
        logits: Tensor = self.logit(features)
        if self.embed is not None and labels is not None:
            projection = features * self.embed(labels.to(x.dtype))
            logits = logits + projection.sum(dim=1, keepdim=True) / features.shape[1] ** 0.5
        return logits


def _stage(config: R3GANConfig, resolution: int) -> nn.Sequential:
    """The residual blocks of a resolution."""
    return nn.Sequential(
        *(
            ResidualBlock(
                config.channels(resolution),
                expansion=config.expansion,
                group_width=config.group_width,
                kernel=config.kernel,
                blocks=config.blocks_per_stage * len(config.stages),
            )
            for _ in range(config.blocks_per_stage)
        )
    )


def _head(config: R3GANConfig, inputs: int) -> PlainConvolution | PaletteHead:
    """What makes an image of the highest stage's feature maps and, for a palette, of the latents with their labels."""
    channels = config.channels(config.stages[-1])
    if config.palette:
        return PaletteHead(
            inputs, channels, colours=config.palette, patch=config.patch, image_channels=config.image_channels
        )
    return PlainConvolution(channels, config.image_channels * config.patch**2, bias=True)


def _linear(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    """Weights of variance 1/inputs, biases of zero."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _embedding(num_classes: int, width: int) -> nn.Linear:
    """Weights of variance 1: a label is one-hot, so that it takes one of them for each of its numbers."""
    layer = nn.Linear(num_classes, width, bias=False)
    nn.init.normal_(layer.weight)
    return layer


def _dtype_at(config: R3GANConfig, resolution: int, dtype: torch.dtype | None) -> torch.dtype | None:
    return dtype if resolution * 2**LOW_PRECISION_STAGES > config.resolution else None
