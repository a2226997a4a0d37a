"""A fully connected layer whose learning rate does not depend on its width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from worker.families.gan.networks.filtered_lrelu import leaky_relu

Activation = Literal["linear", "leaky_relu"]


class EqualizedLinear(nn.Module):
    """`[N, inputs]` → `[N, outputs]`: W·x/√inputs + b, both times `lr_multiplier`, then the activation.

    Weights are stored with unit variance and scaled when used, so that Adam, which moves each by about the learning
    rate, changes all layers by like shares (equalised learning rate; Karras et al. 2018, "Progressive Growing of
    GANs", Section 4.1). What is stored is divided by `lr_multiplier`, so that the layer starts the same and learns
    that much slower.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        activation: Activation = "linear",
        lr_multiplier: float = 1.0,
        weight_std: float = 1.0,
        bias_init: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.activation = activation
        self.weight_gain = lr_multiplier / inputs**0.5
        self.bias_gain = lr_multiplier
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (weight_std / lr_multiplier))
        start = torch.as_tensor(bias_init, dtype=torch.float32).expand(outputs)
        self.bias = nn.Parameter(start / lr_multiplier)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"this layer takes [N, {self.inputs}]; it was given {list(x.shape)}")
        x = torch.addmm(self.bias * self.bias_gain, x, (self.weight * self.weight_gain).t())
        return leaky_relu(x) if self.activation == "leaky_relu" else x
