"""StyleGAN3: the generator as a whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from worker.families.gan.networks.mapping import MappingNetwork
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config
from worker.families.gan.networks.synthesis import SynthesisNetwork


class StyleGAN3Generator(nn.Module):
    """Latents `[N, z_dim]` and labels `[N, num_classes]` to images `[N, channels, resolution, resolution]`.

    Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423). Keys and shapes of the state are
    those of the published weights. Its only randomness is its latents: there is no noise input.
    """

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        self.config = config
        self.synthesis = SynthesisNetwork(config)
        self.mapping = MappingNetwork(
            z_dim=config.z_dim,
            num_classes=config.num_classes,
            w_dim=config.w_dim,
            num_ws=config.num_ws,
            num_layers=config.mapping_layers,
        )

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        dtype: torch.dtype | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Images, about −1 to 1. Options as those of `MappingNetwork.forward` and `SynthesisNetwork.forward`.

        Autocast has no effect here: it would round the input's phases to bf16, which moves the image by pixels.
        Precision is chosen by `dtype` instead.
        """
        with _without_autocast(z.device):
            ws = self.mapping(
                z,
                labels,
                truncation_psi=truncation_psi,
                truncation_cutoff=truncation_cutoff,
                update_emas=update_emas,
            )
            images: Tensor = self.synthesis(ws, dtype=dtype, update_emas=update_emas)
        return images


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    # The meta device, on which operations are counted, knows no autocast.
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
