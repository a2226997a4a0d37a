"""The starter datasets as tensors, and the recolouring that multiplies them."""

from __future__ import annotations

import io
import json
import zipfile
from itertools import permutations
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Orders of the RGB channels; the first leaves colours as they are. White stays white under all of them.
CHANNEL_ORDERS: Final = tuple(permutations(range(3)))


def load_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a dataset's `metadata.jsonl`."""
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("metadata.jsonl").decode("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def load_images(path: Path) -> list[Image.Image]:
    """The images of a dataset, RGB, in the order of its metadata."""
    with zipfile.ZipFile(path) as archive:
        return [Image.open(io.BytesIO(archive.read(row["file_name"]))).convert("RGB") for row in load_rows(path)]


def to_tensor(images: list[Image.Image]) -> Tensor:
    """uint8 tensor (N, 3, H, W) of equally large RGB images."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def to_images(pixels: Tensor) -> list[Image.Image]:
    """RGB images of a uint8 tensor (N, 3, H, W)."""
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).contiguous().numpy()]


def to_signal(pixels: Tensor) -> Tensor:
    """uint8 0 to 255 as float32 -1 to 1, the range of the VAE."""
    return pixels.float() / 127.5 - 1.0


def to_pixels(signal: Tensor) -> Tensor:
    """Float -1 to 1 as uint8 0 to 255, clipped, rounded as diffusers' image processor rounds."""
    return ((signal.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
