"""What a StyleGAN3 generator is made of: its settings, and the two configurations of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StyleGAN3Config:
    """Settings of a generator. (Karras et al., "Alias-Free Generative Adversarial Networks", arXiv 2106.12423,
    "the paper", Section 3.2)

    Frequencies are in cycles per side of the image. Raises ValueError for what no generator can be built of.
    """

    #: Height and width of the image in pixels, a power of two.
    resolution: int
    z_dim: int = 512
    w_dim: int = 512
    #: Width of the labels; 0 is an unconditional generator.
    num_classes: int = 0
    image_channels: int = 3
    mapping_layers: int = 2
    #: Feature maps of a layer: channel_base/(2·cutoff), at most channel_max.
    channel_base: int = 32768
    channel_max: int = 512
    #: Layers between the input and ToRGB.
    num_layers: int = 14
    #: Layers at the end whose cutoff is half their rate: sharp images cost some aliasing there.
    num_critical: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    #: Stop band of the last layer, relative to its cutoff.
    last_stopband_rel: float = 2**0.3
    #: Pixels beyond each border, so that borders cannot tell a layer where it is.
    margin: int = 10
    output_scale: float = 0.25
    #: Side of the convolutions. With 1, no layer knows a direction (configuration R).
    conv_kernel: int = 3
    #: Taps of a filter per unit of its rate.
    filter_size: int = 6
    #: By how much the rate rises around the nonlinearity.
    lrelu_upsampling: int = 2
    #: Radial down filters, where a layer is not critically sampled (configuration R).
    radial_filters: bool = False
    #: Feature maps are clamped to ± this.
    clamp: float = 256.0
    #: How much of the running mean of feature maps' squares stays at each update.
    magnitude_ema_beta: float = 0.999

    def __post_init__(self) -> None:
        _check_resolution(self)
        _check_counts(self)

    @property
    def num_ws(self) -> int:
        """How many w a synthesis takes: one each for the input, the layers and ToRGB."""
        return self.num_layers + 2


def stylegan3_t(resolution: int, **settings: Any) -> StyleGAN3Config:
    """Configuration T: equivariant to translation. (The paper, Section 3.2, "Flexible layer specifications")"""
    return StyleGAN3Config(resolution=resolution, **settings)


def stylegan3_r(resolution: int, **settings: Any) -> StyleGAN3Config:
    """Configuration R: equivariant to rotation as well, by 1×1 convolutions, radial filters and twice the feature
    maps. (The paper, Section 3.2, "Rotation equivariance")"""
    defaults = {"conv_kernel": 1, "radial_filters": True, "channel_base": 65536, "channel_max": 1024}
    return StyleGAN3Config(resolution=resolution, **(defaults | settings))


def _check_resolution(config: StyleGAN3Config) -> None:
    resolution = config.resolution
    if resolution < 1 or resolution & (resolution - 1):
        raise ValueError(f"the resolution is a power of two, such as 64, 128 or 256; {resolution} is none")
    last_cutoff = resolution / 2
    if last_cutoff <= config.first_cutoff or last_cutoff * config.last_stopband_rel <= config.first_stopband:
        raise ValueError(
            f"a resolution of {resolution} is too small: cutoffs rise from {config.first_cutoff:g} to half the "
            f"resolution and stop bands from {config.first_stopband:.3g}; take a larger one"
        )


def _check_counts(config: StyleGAN3Config) -> None:
    lowest = {
        "z_dim": 1, "w_dim": 1, "num_classes": 0, "image_channels": 1, "mapping_layers": 1, "channel_base": 1,
        "channel_max": 1, "num_critical": 0, "margin": 0, "filter_size": 1, "lrelu_upsampling": 1,
    }  # fmt: skip
    for name, least in lowest.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is at least {least}, not {getattr(config, name)}")
    if config.num_layers <= config.num_critical:
        raise ValueError(f"{config.num_critical} critical layers leave none of {config.num_layers}")
    if config.conv_kernel < 1 or config.conv_kernel % 2 == 0:
        raise ValueError(f"conv_kernel is odd, so that it has a middle, not {config.conv_kernel}")
