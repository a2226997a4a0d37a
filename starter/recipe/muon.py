"""AdamW whose steps are orthogonal matrices where a weight is one: fewer steps for the same loss.

Keller Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale that lets both kinds of
steps share a learning rate is Liu et al. 2025, "Muon is Scalable for LLM Training" (arXiv 2502.16982, Equation 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: Coefficients of the quintic iteration that pushes all singular values towards 1. (Jordan et al.)
_QUINTIC = (3.4445, -4.7750, 2.0315)


class MuonAdamW(torch.optim.AdamW):
    """AdamW, except for `matrices`: those move by their orthogonalised momentum."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        *,
        momentum: float = 0.95,
        **settings: Any,
    ) -> None:
        super().__init__(parameters, **settings)
        self.momentum = momentum
        self._stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            self._stacks[matrix.shape].append(matrix)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; gradients of the matrices are consumed."""
        rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for shape, stack in self._stacks.items():
            moved = orthogonal(torch.stack([self._momentum(matrix) for matrix in stack]))
            scale = 0.2 * max(shape) ** 0.5
            for matrix, direction in zip(stack, moved, strict=True):
                matrix.mul_(1 - rate * decay).add_(direction, alpha=-rate * scale)
                matrix.grad = None
        super().step()

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        """Nesterov momentum of a matrix, kept under the name that AdamW uses, so that checkpoints hold it."""
        gradient = matrix.grad if matrix.grad is not None else torch.zeros_like(matrix)
        average = self.state[matrix].setdefault("exp_avg", torch.zeros_like(matrix))
        average.lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, R, C) with their singular values moved near 1, by five Newton-Schulz steps in bf16."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = (x.mT if tall else x).float()
    return found


def hidden_matrices(transformer: nn.Module) -> list[nn.Parameter]:
    """The attention and feed-forward weights of an SD3 transformer; all its other weights stay with AdamW."""
    return [
        weight
        for name, weight in transformer.named_parameters()
        if weight.ndim == 2 and name.startswith("transformer_blocks.") and ("attn" in name or ".ff" in name)
    ]
