"""What R3GAN's networks are made of: their settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class R3GANConfig:
    """Settings that the generator and the discriminator share; they are nearly mirror images. (Huang et al., arXiv
    2501.05441, "the paper", "A Roadmap to a New Baseline", configuration E)

    Raises ValueError for what no network can be built of.
    """

    #: Height and width of the image in pixels, a power of two, at least 16.
    resolution: int
    z_dim: int = 64
    #: Width of the labels; 0 is an unconditional model.
    num_classes: int = 0
    image_channels: int = 3
    #: Feature maps at a resolution: channel_base/resolution, at most channel_max. The paper names no rule for sizes it
    #: did not train; this one, from StyleGAN2, gives its widths at 256 pixels.
    channel_base: int = 49152
    channel_max: int = 768
    blocks_per_stage: int = 2
    #: How many times wider a residual block is inside.
    expansion: int = 2
    #: Channels in a group of the 3×3 convolutions.
    group_width: int = 16
    kernel: int = 3
    #: Pixels a side for which one place of the highest stage stands, a power of two: with 2 both networks spare
    #: themselves the stage at the image's own resolution, which takes the most time. The paper has 1.
    patch: int = 1
    #: Colours that the generator chooses for an image, each of whose pixels mixes them with white: for flat drawings on
    #: white paper, such as logos. 0, as in the paper: pixels are free.
    palette: int = 0

    def __post_init__(self) -> None:
        if self.resolution < 16 or self.resolution & (self.resolution - 1):
            raise ValueError(f"the resolution is a power of two, at least 16, not {self.resolution}")
        counts = (self.z_dim, self.image_channels, self.channel_max, self.blocks_per_stage, self.expansion)
        if min(*counts, self.group_width, self.kernel, self.channel_base // self.resolution) < 1:
            raise ValueError(f"every count of a model is positive, and channel_base/resolution too: {self}")
        if min(self.num_classes, self.palette) < 0 or self.kernel % 2 == 0:
            raise ValueError(
                f"num_classes ({self.num_classes}) and palette ({self.palette}) are not negative and kernel "
                f"({self.kernel}) is odd"
            )
        if self.patch < 1 or self.patch & (self.patch - 1) or self.patch * 8 > self.resolution:
            raise ValueError(f"patch ({self.patch}) is a power of two, at most {self.resolution // 8}")
        for resolution in self.stages:
            if self.channels(resolution) * self.expansion % self.group_width:
                raise ValueError(
                    f"{self.channels(resolution)} channels at {resolution}×{resolution}, times {self.expansion}, do "
                    f"not divide into groups of {self.group_width}: change channel_base, channel_max or group_width"
                )

    @property
    def stages(self) -> list[int]:
        """Resolutions of the stages, from 4 up to the image's, or to that of its patches."""
        return [2**power for power in range(2, (self.resolution // self.patch).bit_length())]

    def channels(self, resolution: int) -> int:
        return min(self.channel_base // resolution, self.channel_max)
