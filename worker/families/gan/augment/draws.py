"""Random numbers of the pipe, and the choice which images a transform happens to.

Numbers come in fp64 from a generator of the caller's on the CPU, the same count whatever p and the factors are: an
image's parameters depend on the generator's state and on nothing else, so that a run that is resumed repeats them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """`count` independent numbers at a time, shape `[count]`, fp64."""

    count: int
    generator: torch.Generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(self.count, generator=self.generator, dtype=torch.float64)

    def normal(self, std: float) -> Tensor:
        return std * torch.randn(self.count, generator=self.generator, dtype=torch.float64)

    def log_normal(self, octaves: float) -> Tensor:
        """2^x, x normal with a standard deviation of that many octaves."""
        return torch.exp2(self.normal(octaves))

    def choice(self, count: int) -> Tensor:
        """0, 1 … count − 1, equally often."""
        return torch.floor(self.uniform(0, count))

    def sometimes(self, matrices: Tensor, probability: float) -> Tensor:
        """Matrices `[count, K, K]`, of which a share of 1 − probability is replaced by the identity."""
        chosen = self.uniform() < probability
        return torch.where(chosen[:, None, None], matrices, identity(matrices.shape[-1]))


def identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
