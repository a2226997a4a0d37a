"""What a GAN is trained on: every image of the dataset as a square of pixels, and its class.

The pixels lie in a file that is mapped into memory, so that a step reads only its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calotype.datasets import DatasetImage
from calotype.errors import JobFailed
from calotype.specs.gan_train import Resize
from worker.families.diffusion.data import fit

#: How many of what is wrong a message names.
_NAMED: Final = 3


class Archive(Protocol):
    """Where the images are; `calotype.datasets.DatasetArchive` is one."""

    items: list[DatasetImage]

    def open_image(self, file_name: str) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Images and their classes. Images `[N, 3, R, R]` are uint8 and may be mapped from a file."""

    pixels: Tensor
    #: Names of the classes, in the order of the one-hot labels; empty: no classes.
    labels: tuple[str, ...]
    #: The class of each image, int64 `[N]`; zeros where there are no classes.
    classes: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def resolution(self) -> int:
        return int(self.pixels.shape[-1])

    def images(self, numbers: Tensor, device: torch.device | None = None) -> Tensor:
        """Images of these numbers, fp32 from −1 to 1."""
        return to_unit(self.pixels[numbers].to(device))

    def one_hot(self, classes: Tensor) -> Tensor | None:
        """Labels `[N, classes]` in fp32; None where there are no classes."""
        if not self.labels:
            return None
        return torch.nn.functional.one_hot(classes, len(self.labels)).float()


def build(
    archive: Archive,
    path: Path,
    *,
    resolution: int,
    resize: Resize | None,
    conditional: bool,
    batch_size: int,
    order: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingImages:
    """Write the images of an archive to `path` and map them.

    Raises JobFailed `bad_input`, before any image is read, for fewer images than a batch, images that need a resize
    rule when none was chosen, and images without a label for a conditional model.
    """
    items = archive.items
    check(items, resize=resize, conditional=conditional, batch_size=batch_size)
    labels = _ordered({item.label for item in items if item.label is not None}, order) if conditional else ()
    shape = (len(items), 3, resolution, resolution)
    stored = np.memmap(path, dtype=np.uint8, mode="w+", shape=shape)
    for number, item in enumerate(items):
        square = to_square(archive.open_image(item.file_name), resolution, resize)
        stored[number] = np.asarray(square).transpose(2, 0, 1)
        on_progress(number + 1, len(items))
    stored.flush()
    classes = [labels.index(item.label) if labels and item.label is not None else 0 for item in items]
    return TrainingImages(pixels=torch.from_numpy(stored), labels=labels, classes=torch.tensor(classes))


def _ordered(labels: set[str], order: Sequence[str]) -> tuple[str, ...]:
    """As a model has them, where they are the same ones: an official one counts 9, 10, where 10 sorts before 9."""
    return tuple(order) if set(order) == labels else tuple(sorted(labels))


def reopen(path: Path, classes: Sequence[int], labels: Sequence[str], resolution: int) -> TrainingImages:
    """What `build` wrote, mapped in another process."""
    stored = np.memmap(path, dtype=np.uint8, mode="r+", shape=(len(classes), 3, resolution, resolution))
    return TrainingImages(pixels=torch.from_numpy(stored), labels=tuple(labels), classes=torch.tensor(classes))


def check(items: Sequence[DatasetImage], *, resize: Resize | None, conditional: bool, batch_size: int) -> None:
    """Raises JobFailed `bad_input` where the images cannot be trained on."""
    if len(items) < batch_size:
        raise bad_input(
            f"The dataset has {len(items)} images, fewer than one batch of {batch_size}. Use a smaller batch_size or "
            "a larger dataset."
        )
    if resize is None:
        _check_sizes(items)
    if conditional:
        _check_labels(items)


def to_square(image: Image.Image, resolution: int, resize: Resize | None) -> Image.Image:
    """An RGB image of resolution × resolution, by Lanczos.

    `pad` fills up with the median colour of the border, `crop` keeps the middle, `stretch` changes the proportions. A
    square needs no rule.
    """
    if image.size == (resolution, resolution):
        return image
    if resize == "pad":
        return fit(image, resolution, resolution)
    box = None
    if resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 to fp32, 0 to −1 and 255 to 1."""
    return pixels.float() / 127.5 - 1


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Images `[N, 3, H, W]` from −1 to 1 as RGB; what is beyond is clipped."""
    pixels = (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels.permute(0, 2, 3, 1).cpu()]


def bad_input(detail: str) -> JobFailed:
    return JobFailed("bad_input", "The training cannot be done", detail, retryable=False)


def _check_sizes(items: Sequence[DatasetImage]) -> None:
    sizes = sorted({(item.width, item.height) for item in items})
    if len(sizes) == 1 and sizes[0][0] == sizes[0][1]:
        return
    named = ", ".join(f"{width}×{height}" for width, height in sizes[:_NAMED])
    more = f" and {len(sizes) - _NAMED} more" if len(sizes) > _NAMED else ""
    which = "sizes" if len(sizes) > 1 else "size, which is no square"
    raise bad_input(
        f"The images have {len(sizes)} {which}: {named}{more}. Choose how they become squares: resize pad, crop or "
        "stretch."
    )


def _check_labels(items: Sequence[DatasetImage]) -> None:
    without = [item.file_name for item in items if item.label is None]
    if without:
        raise bad_input(
            f"A conditional model needs a label for every image: {len(without)} of {len(items)} have none, the first "
            f"is {without[0]}. Add labels, or set conditional to false."
        )
