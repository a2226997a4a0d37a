"""One layer of StyleGAN3's synthesis: a modulated convolution and a filtered leaky ReLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worker.families.gan.networks.filtered_lrelu import filtered_lrelu
from worker.families.gan.networks.filters import lowpass_filter
from worker.families.gan.networks.layer_plan import LayerPlan, Signal
from worker.families.gan.networks.linear import EqualizedLinear
from worker.families.gan.networks.modulated_conv import modulated_conv2d
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config


class SynthesisLayer(nn.Module):
    """Feature maps `[N, I, source.size²]` and w `[N, w_dim]` to `[N, O, target.size²]`, as its plan says.

    The convolution is scaled by 1/√`magnitude_ema`, the running mean of the input's squares, so that layers see about
    unit variance without a normalisation that would depend on the image. (Karras et al., "Alias-Free Generative
    Adversarial Networks", Section 3.2) ToRGB has neither demodulation nor nonlinearity.
    """

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, config: StyleGAN3Config, plan: LayerPlan) -> None:
        super().__init__()
        self.plan, self.clamp, self.magnitude_ema_beta = plan, config.clamp, config.magnitude_ema_beta
        inputs, outputs, kernel = plan.source.channels, plan.target.channels, plan.conv_kernel
        self.affine = EqualizedLinear(config.w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("magnitude_ema", torch.ones([]))
        self.register_buffer("up_filter", _filter(plan.up_taps, plan.source, plan))
        self.register_buffer("down_filter", _filter(plan.down_taps, plan.target, plan, radial=plan.down_radial))

    def forward(self, x: Tensor, w: Tensor, *, dtype: torch.dtype | None = None, update_emas: bool = False) -> Tensor:
        """`dtype` is what feature maps are computed in, the parameters' where None. `update_emas` moves
        `magnitude_ema` towards this batch before it is used. Raises ValueError for feature maps of another shape."""
        source = self.plan.source
        if x.shape[1:] != (source.channels, source.size, source.size):
            expected = f"[N, {source.channels}, {source.size}, {source.size}]"
            raise ValueError(f"layer {self.plan.name} takes {expected}; it was given {list(x.shape)}")
        if update_emas:
            self._update_magnitude(x)
        x = x.to(self.weight.dtype if dtype is None else dtype)
        x = modulated_conv2d(
            x,
            self.weight,
            self._styles(w),
            demodulate=not self.plan.is_torgb,
            input_gain=self.magnitude_ema.rsqrt(),
            # Wider than "same": the pixels beyond the border are computed like all others, and cropped later.
            padding=self.plan.conv_kernel - 1,
        )
        return self._activate(x)

    def _styles(self, w: Tensor) -> Tensor:
        styles: Tensor = self.affine(w)
        # ToRGB is not demodulated: what demodulation would do for weights of unit variance is done here.
        return styles / math.sqrt(self.weight[0].numel()) if self.plan.is_torgb else styles

    def _activate(self, x: Tensor) -> Tensor:
        plan = self.plan
        return filtered_lrelu(
            x,
            self.up_filter,
            self.down_filter,
            self.bias,
            up=plan.up_factor,
            down=plan.down_factor,
            padding=plan.padding,
            gain=1.0 if plan.is_torgb else 2**0.5,
            slope=1.0 if plan.is_torgb else 0.2,
            clamp=self.clamp,
        )

    @torch.no_grad()
    def _update_magnitude(self, x: Tensor) -> None:
        now = x.to(self.magnitude_ema.dtype).square().mean()
        self.magnitude_ema.copy_(now.lerp(self.magnitude_ema, self.magnitude_ema_beta))


def _filter(taps: int, signal: Signal, plan: LayerPlan, *, radial: bool = False) -> Tensor | None:
    if taps == 1:
        return None
    return lowpass_filter(
        taps,
        cutoff=signal.cutoff,
        width=2 * signal.half_width,
        sampling_rate=plan.tmp_sampling_rate,
        radial=radial,
    )
