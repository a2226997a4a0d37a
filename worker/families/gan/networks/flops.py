"""The arithmetic of a StyleGAN3 generator, in floating-point operations: a multiply-add counts as two."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.layer_plan import LayerPlan, plan_layers
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config


def forward_flops(config: StyleGAN3Config) -> int:
    """What one image takes here: matrix products and convolutions, filters among them. Nothing is computed: tensors
    on the meta device have shapes only. No measured time can be below this, divided by the device's peak."""
    # Not built there: its filters are computed, not only allocated.
    generator = StyleGAN3Generator(config).to("meta")
    latents = torch.empty(1, config.z_dim, device="meta")
    labels = torch.empty(1, config.num_classes, device="meta") if config.num_classes else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        generator(latents, labels)
    total: int = counter.get_total_flops()
    return total


def dense_flops(config: StyleGAN3Config) -> int:
    """What the convolutions and filters of one image would take if filters also multiplied the zeros between upsampled
    pixels and computed the pixels that decimation drops: the convention of published figures."""
    _, plans = plan_layers(config)
    return sum(_convolution(plan) + _filters(plan) for plan in plans)


def _convolution(plan: LayerPlan) -> int:
    products = plan.source.channels * plan.target.channels * plan.conv_kernel**2
    return 2 * products * (plan.source.size + plan.conv_kernel - 1) ** 2


def _filters(plan: LayerPlan) -> int:
    if plan.up_taps == plan.down_taps == 1:
        return 0
    first, last, _, _ = plan.padding
    padded = (plan.source.size + plan.conv_kernel - 1) * plan.up_factor + first + last
    upsampled = padded - plan.up_taps + 1
    filtered = upsampled - plan.down_taps + 1
    up = plan.up_taps * upsampled * (padded + upsampled)
    radial = plan.down_taps**2 * filtered**2
    separable = plan.down_taps * filtered * (upsampled + filtered)
    return 2 * plan.target.channels * (up + (radial if plan.down_radial else separable))
