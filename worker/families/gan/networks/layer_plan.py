"""From the settings of a StyleGAN3 generator to the sizes, rates and filters of each of its layers.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423, "the paper"), Section 3.2,
"Flexible layer specifications": cutoffs and stop bands grow geometrically from layer to layer; rates are the powers of
two that hold them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from worker.families.gan.networks.resample import Padding
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What feature maps between two layers can carry. Frequencies are in cycles per side of the image."""

    #: Height and width in pixels, margins included.
    size: int
    #: Pixels per side of the image.
    sampling_rate: int
    cutoff: float
    #: Half the width of the band over which the filter fades.
    half_width: float
    channels: int


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer: what goes in, what comes out, and the filters between."""

    name: str
    is_torgb: bool
    is_critically_sampled: bool
    source: Signal
    target: Signal
    conv_kernel: int
    #: Pixels per side of the image where the nonlinearity acts.
    tmp_sampling_rate: int
    up_factor: int
    up_taps: int
    down_factor: int
    down_taps: int
    down_radial: bool
    #: Of the upsampled image, before the first filter.
    padding: Padding


def plan_layers(config: StyleGAN3Config) -> tuple[Signal, list[LayerPlan]]:
    """What the input makes, and the layers after it, ToRGB the last."""
    signals = [_signal(config, index) for index in range(config.num_layers + 1)]
    sources = [signals[0], *signals[:-1]]
    plans = [_layer(config, index, *ends) for index, ends in enumerate(zip(sources, signals, strict=True))]
    return signals[0], plans


def _signal(config: StyleGAN3Config, index: int) -> Signal:
    """What layer `index` gives to the next."""
    last_cutoff = config.resolution / 2
    progress = min(index / (config.num_layers - config.num_critical), 1.0)
    cutoff = config.first_cutoff * (last_cutoff / config.first_cutoff) ** progress
    last_stopband = last_cutoff * config.last_stopband_rel
    stopband = config.first_stopband * (last_stopband / config.first_stopband) ** progress
    rate = 2 ** math.ceil(math.log2(min(2 * stopband, config.resolution)))
    is_torgb = index == config.num_layers
    # The last two layers make what will be seen, without a margin.
    size = config.resolution if index >= config.num_layers - 1 else rate + 2 * config.margin
    channels = round(min(config.channel_base / 2 / cutoff, config.channel_max))
    return Signal(
        size=size,
        sampling_rate=rate,
        cutoff=cutoff,
        half_width=max(stopband, rate / 2) - cutoff,
        channels=config.image_channels if is_torgb else max(channels, 1),
    )


def _layer(config: StyleGAN3Config, index: int, source: Signal, target: Signal) -> LayerPlan:
    is_torgb = index == config.num_layers
    is_critical = index >= config.num_layers - config.num_critical
    kernel = 1 if is_torgb else config.conv_kernel
    rate = max(source.sampling_rate, target.sampling_rate) * (1 if is_torgb else config.lrelu_upsampling)
    up, down = rate // source.sampling_rate, rate // target.sampling_rate
    # ToRGB has no nonlinearity to filter around.
    up_taps = config.filter_size * up if up > 1 and not is_torgb else 1
    down_taps = config.filter_size * down if down > 1 and not is_torgb else 1
    return LayerPlan(
        name=f"L{index}_{target.size}_{target.channels}",
        is_torgb=is_torgb,
        is_critically_sampled=is_critical,
        source=source,
        target=target,
        conv_kernel=kernel,
        tmp_sampling_rate=rate,
        up_factor=up,
        up_taps=up_taps,
        down_factor=down,
        down_taps=down_taps,
        down_radial=config.radial_filters and not is_critical and down_taps > 1,
        padding=_padding(source.size + kernel - 1, target.size, up, down, up_taps + down_taps),
    )


def _padding(size_in: int, size_out: int, up: int, down: int, taps: int) -> Padding:
    """Padding of the upsampled image that makes `size_out` pixels of `size_in`.

    The filters take taps − 2 pixels away. Of what is left over, a share of up/2 more goes to the first side, since
    the zeros of upsampling all come after their pixel: so the middle stays the middle.
    """
    total = (size_out - 1) * down + 1 - size_in * up + taps - 2
    first = (total + up) // 2
    return (first, total - first, first, total - first)
