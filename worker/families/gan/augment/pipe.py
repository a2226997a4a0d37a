"""The pipe: what happens to which image, and then that it happens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.families.gan.augment.colour import apply_colour, draw_colour
from worker.families.gan.augment.draws import Draws
from worker.families.gan.augment.geometry import draw_geometry
from worker.families.gan.augment.transforms import Transforms
from worker.families.gan.augment.warp import warp


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What happens to each of N images. Drawn for a whole batch, they can be cut up together with it."""

    #: `[N, 3, 3]` for `warp`.
    geometry: Tensor
    #: `[N, 4, 4]` for `apply_colour`.
    colour: Tensor

    def __getitem__(self, part: slice) -> Parameters:
        return Parameters(geometry=self.geometry[part], colour=self.colour[part])


class AugmentPipe(nn.Module):
    """Random transforms of images, each happening to a share of them that follows p.

    p is a buffer: it travels with the state. Randomness comes from a generator of the caller's on the CPU.
    """

    p: Tensor

    def __init__(self, transforms: Transforms | None = None, *, p: float = 0.0) -> None:
        super().__init__()
        self.transforms = transforms or Transforms()
        self.register_buffer("p", torch.zeros(()))
        self.set_p(p)

    def set_p(self, p: float) -> None:
        """Raises ValueError outside [0, 1]."""
        if not 0 <= p <= 1:
            raise ValueError(f"the augmentation probability is {p}; it must lie in [0, 1]")
        self.p.fill_(p)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Parameters:
        """What is to happen to that many images of (height, width)."""
        draws, p = Draws(count, generator), float(self.p)
        return Parameters(
            geometry=draw_geometry(draws, size, p, self.transforms), colour=draw_colour(draws, p, self.transforms)
        )

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images `[N, 3, H, W]` in [−1, 1], transformed. At p = 0 they are returned as they are."""
        height, width = images.shape[2:]
        return augment(images, self.draw(images.shape[0], (height, width), generator))


def augment(images: Tensor, parameters: Parameters) -> Tensor:
    """Images `[N, 3, H, W]` with their parameters, geometry first, in their dtype but at least in fp32.

    Raises ValueError for another number of channels, or of images than of parameters.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"augmentation needs RGB images [N, 3, H, W]; these have the shape {list(images.shape)}")
    if images.shape[0] != parameters.geometry.shape[0]:
        raise ValueError(f"{images.shape[0]} images came with parameters for {parameters.geometry.shape[0]}")
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    return apply_colour(warp(exact, parameters.geometry), parameters.colour)
