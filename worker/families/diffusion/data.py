"""What a diffusion model is trained on: which samples, in which order, at which size, with which captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calotype.errors import JobFailed


class Labelled(Protocol):
    """Anything with an optional label; dataset items are."""

    @property
    def label(self) -> str | None: ...


Item = TypeVar("Item", bound=Labelled)


def with_label(items: Sequence[Item], label: str | None) -> list[Item]:
    """The items that carry `label`, or all if it is None. Raises JobFailed `bad_input` when none is left."""
    chosen = [item for item in items if label is None or item.label == label]
    if chosen:
        return chosen
    labels = sorted({item.label for item in items if item.label is not None})
    known = f"its labels are {', '.join(labels[:20])}" if labels else "it has no labels"
    raise JobFailed(
        "bad_input",
        "Nothing to train on",
        f"No image of the dataset has the label {label!r}; {known}.",
        retryable=False,
    )


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """An RGB image at exactly `width` × `height`, undistorted and with nothing cut off.

    The rule: resample with Lanczos until one side fits, pad the other evenly with the median colour of the
    image's border. Padding rather than cropping, because a cropped logo is another logo; the median of the
    border, because it is the paper of most brand images.
    """
    if image.size == (width, height):
        return image
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = image.resize(inner, Image.Resampling.LANCZOS)
    if inner == (width, height):
        return scaled
    padded = Image.new("RGB", (width, height), _border_colour(image))
    padded.paste(scaled, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return padded


def _border_colour(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(value) for value in np.median(border, axis=0))
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class TrainingSamples:
    """Latents and text embeddings of a training set, in memory or memory-mapped: gathering copies only what a
    batch needs.

    A sample points at a latent and at one or more captions; both tables may be shared between samples. All
    floating tensors may be stored in half precision; batches are fp32.
    """

    #: Posterior means of the latents, (mean − shift)·scale: `[L, C, H, W]`.
    mean: Tensor
    #: Posterior deviations times scale, the same shape; None: the mean is the sample.
    std: Tensor | None = None
    #: Token embeddings per caption: `[P, T, D]`.
    prompt_embeds: Tensor
    #: Pooled embeddings per caption: `[P, E]`.
    pooled: Tensor
    #: Row of `mean` for each sample, int64 `[N]`.
    latent_rows: Tensor
    #: Rows of `prompt_embeds` a sample chooses from at each step, int64 `[N, K]`; repeat a row to weight it.
    caption_rows: Tensor
    #: The row of the empty caption, which stands in where a caption is dropped.
    empty_row: int

    @classmethod
    def of(
        cls, latents: Tensor, prompt_embeds: Tensor, pooled: Tensor, caption_rows: Tensor, empty_row: int
    ) -> TrainingSamples:
        """One latent a sample: `latents[i]` has the captions `caption_rows[i]` (int64, `[N]` or `[N, K]`)."""
        return cls(
            mean=latents,
            prompt_embeds=prompt_embeds,
            pooled=pooled,
            latent_rows=torch.arange(len(latents)),
            caption_rows=caption_rows if caption_rows.dim() == 2 else caption_rows[:, None],
            empty_row=empty_row,
        )

    def __len__(self) -> int:
        return len(self.latent_rows)

    def choose_captions(self, samples: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
        """A caption row for each of the samples, int64 `[B]`: one of its own, or with probability `dropout`
        the empty one.

        Without dropout the model never learns what guidance subtracts. (Ho & Salimans, arXiv 2207.12598,
        Algorithm 1)
        """
        choices = self.caption_rows[samples]
        # Both numbers are always drawn, so that the stream behind them does not depend on the settings.
        column = torch.rand(len(samples), generator=generator).mul(choices.shape[1]).long()
        dropped = torch.rand(len(samples), generator=generator) < dropout
        rows = choices.gather(1, column.clamp_max(choices.shape[1] - 1)[:, None])[:, 0]
        return torch.where(dropped, torch.full_like(rows, self.empty_row), rows)

    def draw_latents(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Clean latents of the samples, drawn from the VAE's posterior: fp32 `[B, C, H, W]`."""
        rows = self.latent_rows[samples]
        mean = self.mean[rows].float()
        if self.std is None:
            return mean
        return mean + self.std[rows].float() * torch.randn(mean.shape, generator=generator)


class EpochSampler:
    """Sample numbers in an order that only the seed decides: every sample once, newly shuffled, then again.

    Its whole state is `position`, the samples drawn so far: the permutation of an epoch is recomputed from
    seed and epoch. A batch may reach over the end of an epoch, so that every batch is full.
    """

    def __init__(self, size: int, seed: int, position: int = 0) -> None:
        if size < 1:
            raise ValueError("there is nothing to sample from")
        self.size = size
        self.seed = seed
        self.position = position
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """The next `count` sample numbers, int64 `[count]`."""
        parts = []
        while count > 0:
            epoch, start = divmod(self.position, self.size)
            part = self._permutation(epoch)[start : start + count]
            parts.append(part)
            self.position += len(part)
            count -= len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # Fibonacci hashing keeps the seeds of neighbouring epochs, and of neighbouring jobs, far apart.
            mixed = (self.seed + 1) * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9
            generator = torch.Generator().manual_seed(mixed % 2**63)
            self._order, self._epoch = torch.randperm(self.size, generator=generator), epoch
        return self._order
