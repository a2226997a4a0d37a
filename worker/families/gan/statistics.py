"""Running means inside the StyleGAN3 generator, when a batch is computed in parts.

A layer's `magnitude_ema` and the mapping's `w_avg` follow the batch. Were they moved part by part, a split batch would
be another step than a whole one. So what they need is gathered over the parts and applied once, after the step: each
step computes with the means as the step before left them, where the networks' own `update_emas` would use its own
batch's. They move by 1/1000 a step, and the difference is of that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.mapping import MappingNetwork
from worker.families.gan.networks.synthesis_layer import SynthesisLayer


class RunningMeans:
    """Gathers and applies what the running means of a generator need; nothing where it has none (R3GAN)."""

    def __init__(self, generator: nn.Module) -> None:
        modules = list(generator.modules()) if isinstance(generator, StyleGAN3Generator) else []
        self._layers = [module for module in modules if isinstance(module, SynthesisLayer)]
        self._mappings = [module for module in modules if isinstance(module, MappingNetwork)]
        self._sums: dict[nn.Module, Tensor] = {}
        self._images: dict[nn.Module, int] = {}

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Inside, each call of the generator counts; what was gathered before is forgotten."""
        self._sums, self._images = {}, {}
        hooks = [layer.register_forward_pre_hook(self._see_layer) for layer in self._layers]
        hooks += [mapping.register_forward_hook(self._see_mapping) for mapping in self._mappings]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def apply(self, add_up: Callable[[Tensor], Tensor] = lambda total: total) -> None:
        """Move the means towards the images gathered. `add_up` adds a tensor up over all devices."""
        for module, total in self._sums.items():
            count = add_up(total.new_tensor(self._images[module]))
            now = add_up(total) / count
            if isinstance(module, SynthesisLayer):
                module.magnitude_ema.copy_(now.lerp(module.magnitude_ema, module.magnitude_ema_beta))
            elif isinstance(module, MappingNetwork):
                module.w_avg.copy_(now.lerp(module.w_avg, module.w_avg_beta))
        self._sums, self._images = {}, {}

    def _see_layer(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        maps: Tensor = arguments[0].detach().float()
        self._add(module, maps.square().mean() * len(maps), len(maps))

    def _see_mapping(self, module: nn.Module, arguments: tuple[Any, ...], ws: Tensor) -> None:
        self._add(module, ws.detach()[:, 0].sum(dim=0), len(ws))

    def _add(self, module: nn.Module, total: Tensor, images: int) -> None:
        before = self._sums.get(module)
        self._sums[module] = total if before is None else before + total
        self._images[module] = self._images.get(module, 0) + images
