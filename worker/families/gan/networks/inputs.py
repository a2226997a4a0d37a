"""Images that discriminators are given."""

from __future__ import annotations

from torch import Tensor


def check_images(images: Tensor, channels: int, resolution: int) -> None:
    """Raises ValueError unless images have the shape `[N, channels, resolution, resolution]`."""
    if images.dim() != 4 or images.shape[1:] != (channels, resolution, resolution):
        raise ValueError(
            f"images have the shape [N, {channels}, {resolution}, {resolution}]; these are {list(images.shape)}"
        )
