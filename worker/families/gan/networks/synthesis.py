"""StyleGAN3's synthesis network: from the w of each layer to an image."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from worker.families.gan.networks.layer_plan import LayerPlan, plan_layers
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config
from worker.families.gan.networks.synthesis_input import SynthesisInput
from worker.families.gan.networks.synthesis_layer import SynthesisLayer

#: Only layers of a rate above resolution/2⁴ compute in half precision: the others cost little and keep their
#: precision. (Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", Appendix D)
LOW_PRECISION_RATES: Final = 4


class SynthesisNetwork(nn.Module):
    """ws `[N, num_ws, w_dim]`, one each for the input, the layers and ToRGB, to images `[N, channels, resolution,
    resolution]`, about −1 to 1. Layers are submodules by the names of their plans."""

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        self.config = config
        first, plans = plan_layers(config)
        self.plans: tuple[LayerPlan, ...] = tuple(plans)
        self.input = SynthesisInput(
            w_dim=config.w_dim,
            channels=first.channels,
            size=first.size,
            sampling_rate=first.sampling_rate,
            bandwidth=first.cutoff,
        )
        for plan in plans:
            self.add_module(plan.name, SynthesisLayer(config, plan))

    def forward(self, ws: Tensor, *, dtype: torch.dtype | None = None, update_emas: bool = False) -> Tensor:
        """Images in the parameters' dtype. `dtype`, such as torch.bfloat16, is what feature maps of the four highest
        rates are computed in. Raises ValueError for ws of another shape."""
        config = self.config
        if ws.shape[1:] != (config.num_ws, config.w_dim):
            raise ValueError(f"ws have the shape [N, {config.num_ws}, {config.w_dim}]; these are {list(ws.shape)}")
        first, *others = ws.unbind(dim=1)
        x: Tensor = self.input(first)
        for plan, w in zip(self.plans, others, strict=True):
            low = plan.target.sampling_rate * 2**LOW_PRECISION_RATES > config.resolution
            layer = self.get_submodule(plan.name)
            x = layer(x, w, dtype=dtype if low else None, update_emas=update_emas)
        return x.to(ws.dtype) * config.output_scale
