"""Every training logo in all orders of its colour channels, each named by the colour that it then has first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from starter.colours import COLOURS, first_colour
from starter.recipe.data import CHANNEL_ORDERS, load_images, load_rows, to_images, to_tensor
from worker.families.gan.data import TrainingImages, to_unit

#: The classes, in the order that a training job gives them.
LABELS: Final = tuple(sorted(COLOURS))
#: The class of each word, in the order of `COLOURS`.
NUMBERS: Final = torch.tensor([LABELS.index(word) for word in COLOURS])
#: How often each logo appears in its own colours in an epoch; recoloured ones appear once per order of the channels.
#: Own colours weigh more, because generated logos should have the colours of real ones.
ORIGINALS: Final = 6


@dataclass(frozen=True, kw_only=True)
class Recolourings(TrainingImages):
    """Logos in several orders of their channels; `pixels` holds each logo once."""

    #: The logo of each image, int64 `[N]`, and the order of its channels, int64 `[N, 3]`.
    logos: Tensor
    orders: Tensor

    def __len__(self) -> int:
        return len(self.logos)

    def images(self, numbers: Tensor, device: torch.device | None = None) -> Tensor:
        """Images of these numbers, fp32 from −1 to 1."""
        logos = self.pixels[self.logos[numbers]]
        orders = self.orders[numbers][:, :, None, None]
        return to_unit(logos.gather(1, orders.expand_as(logos)).to(device))


def logos(path: Path) -> TrainingImages:
    """The images of a dataset as they are, with their labels."""
    classes = torch.tensor([LABELS.index(row["label"]) for row in load_rows(path)])
    return TrainingImages(pixels=to_tensor(load_images(path)), labels=LABELS, classes=classes)


def recoloured(own: TrainingImages, originals: int = ORIGINALS) -> Recolourings:
    """Each image in all orders of its channels; its own one counts as so many images."""
    count = len(own)
    orders = torch.tensor(CHANNEL_ORDERS)
    classes = [own.classes, *(_classes(own.pixels[:, list(order)]) for order in CHANNEL_ORDERS[1:])]
    # Of the table (order, logo): the first order, in which nothing changes, comes as often as it counts.
    rows = torch.cat([torch.zeros(originals - 1, dtype=torch.int64), torch.arange(len(orders))])
    return Recolourings(
        pixels=own.pixels,
        labels=own.labels,
        classes=torch.stack(classes)[rows].flatten(),
        logos=torch.arange(count).repeat(len(rows)),
        orders=orders[rows].repeat_interleave(count, dim=0),
    )


def numbers_of(labels: Sequence[str]) -> list[int]:
    """Classes of colour words."""
    return [LABELS.index(label) for label in labels]


def _classes(pixels: Tensor) -> Tensor:
    """The first colour of each image of ink on white."""
    found = [first_colour(image) for image in to_images(pixels)]
    return torch.from_numpy(np.array(numbers_of([str(colour) for colour in found])))
