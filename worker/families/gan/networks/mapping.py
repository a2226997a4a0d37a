"""The mapping network: from a latent z and a label to the intermediate latent w, and truncation towards its mean."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from worker.families.gan.networks.labels import checked_labels
from worker.families.gan.networks.linear import EqualizedLinear

#: Mapping layers learn a hundred times slower than the others. (Karras et al. 2019, "A Style-Based Generator
#: Architecture", Appendix C)
LR_MULTIPLIER: Final = 0.01


class MappingNetwork(nn.Module):
    """z `[N, z_dim]` and labels `[N, num_classes]` to `num_ws` equal copies of w, `[N, num_ws, w_dim]`.

    z and the label's embedding are each scaled to a mean square of 1 and joined; then follow fully connected layers
    with leaky ReLU. `w_avg` `[w_dim]` is a running mean of w, the point that truncation moves towards.
    """

    w_avg: Tensor

    def __init__(
        self, *, z_dim: int, num_classes: int, w_dim: int, num_ws: int, num_layers: int = 2, w_avg_beta: float = 0.998
    ) -> None:
        super().__init__()
        self.z_dim, self.num_classes, self.num_ws = z_dim, num_classes, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        if num_classes:
            self.embed = EqualizedLinear(num_classes, w_dim)
        widths = [z_dim + (w_dim if num_classes else 0), *[w_dim] * num_layers]
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            layer = EqualizedLinear(inputs, outputs, activation="leaky_relu", lr_multiplier=LR_MULTIPLIER)
            self.add_module(f"fc{index}", layer)
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
    ) -> Tensor:
        """w, `[N, num_ws, w_dim]`, the first `truncation_cutoff` of them (all, if None) moved towards `w_avg`.

        `truncation_psi` 1 is no truncation, 0 is the mean itself. `update_emas` moves `w_avg` towards this batch.
        Raises ValueError for shapes that do not fit, labels that are missing, and labels that have no use.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"latents have the shape [N, {self.z_dim}]; these are {list(z.shape)}")
        labels = checked_labels(labels, z.shape[0], self.num_classes, "generator")
        x = normalize_second_moment(z.to(self.w_avg.dtype))
        if labels is not None:
            x = torch.cat([x, normalize_second_moment(self.embed(labels.to(x.dtype)))], dim=1)
        for index in range(self.num_layers):
            x = self.get_submodule(f"fc{index}")(x)
        if update_emas:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        return self.truncate(x[:, None].repeat(1, self.num_ws, 1), truncation_psi, truncation_cutoff)

    def truncate(self, ws: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
        """w̄ + ψ·(w − w̄) for the first `cutoff` of w `[N, num_ws, w_dim]`: less variety, fewer failures."""
        if cutoff is not None and not 0 <= cutoff <= self.num_ws:
            raise ValueError(f"truncation reaches 0 to {self.num_ws} layers, not {cutoff}")
        if psi == 1.0:
            return ws
        cutoff = self.num_ws if cutoff is None else cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)


def normalize_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Rows of `[N, D]` scaled to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()
