"""Images of few flat colours on white paper.

A drawing such as a logo divides the paper into areas and gives each a colour. A network that writes red, green and blue
has to learn anew for every colour that an area is even and that its edge is sharp; here both follow from how an image
is put together.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from worker.families.gan.networks.r3gan_blocks import PlainConvolution

#: Units between the latents and the colours.
_WIDTH: Final = 128
#: Areas begin unsure of their colour, but sure enough to have some.
_GAIN: Final = 1.0


class PaletteHead(nn.Module):
    """Feature maps `[N, C, H, W]` and what they were made of, `[N, inputs]`, to images `[N, channels, H·patch,
    W·patch]` from −1 to 1.

    The colours of an image come from its latents and labels. Each pixel is their mixture with white, which is 1 in all
    channels, in shares that add up to 1: between two areas that is the edge's antialiasing.
    """

    def __init__(self, inputs: int, channels: int, *, colours: int, patch: int, image_channels: int) -> None:
        super().__init__()
        self.patch, self.image_channels = patch, image_channels
        self.shares = PlainConvolution(channels, (colours + 1) * patch**2, kernel=3, bias=True, gain=_GAIN)
        self.hidden = nn.Linear(inputs, _WIDTH)
        self.colours = nn.Linear(_WIDTH, colours * image_channels)
        for layer in (self.hidden, self.colours):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        shares = self.mixture(x).to(source.dtype)[:, 1:]
        image = 1 + torch.bmm((self.palette(source) - 1).transpose(1, 2), shares.flatten(2))
        return image.reshape(len(image), self.image_channels, *shares.shape[2:])

    def mixture(self, x: Tensor) -> Tensor:
        """Of how much of white and of each colour the pixels are made, fp32 `[N, 1 + colours, H·patch, W·patch]`."""
        logits = functional.pixel_shuffle(self.shares(x), self.patch).float()
        if self.patch > 1:
            # The pixels of a patch come from other weights than their neighbours: without the mean of each with the
            # next, areas begin as chequers, and to learn not to make them takes long.
            logits = functional.avg_pool2d(functional.pad(logits, (0, 1, 0, 1), mode="replicate"), 2, stride=1)
        return logits.softmax(dim=1)

    def palette(self, source: Tensor) -> Tensor:
        """The colours `[N, colours, channels]` of the images made of these."""
        hidden = functional.leaky_relu(self.hidden(source), 0.2)
        return torch.tanh(self.colours(hidden)).reshape(len(hidden), -1, self.image_channels)
