"""Looking at a generator while it trains: its images, and their features beside those of real ones.

Latents are drawn once, from the seed: what two looks differ in is the generator. Of the real images a random order is
drawn in the same way, and the first of them are the real sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from worker.benchmark.backbone import EFFICIENTNET_LITE0, Backbone
from worker.benchmark.quality import Features, features, frechet_distance
from worker.families.gan.data import TrainingImages, to_pictures, to_unit
from worker.families.gan.stored import Generator
from worker.families.gan.trainer import CPU_IMAGES, Diverged
from worker.families.parts import in_parts

#: Images made at once at first.
_AT_ONCE: Final = 32
#: What the seed is moved by for latents, classes and real images, so that none draws what a training step draws.
_LATENTS, _CLASSES, _REAL = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D


class Evaluation:
    """Images and features of a generator, and of the training's real images."""

    def __init__(
        self,
        images: TrainingImages,
        *,
        seed: int,
        device: torch.device,
        backbone: str | Backbone = EFFICIENTNET_LITE0,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """`pulse` is called every few images and may raise to give up."""
        self._images, self._device, self._backbone, self._pulse = images, device, backbone, pulse
        self._seed = seed
        self._at_once = CPU_IMAGES if device.type == "cpu" else _AT_ONCE
        self._real: Features | None = None

    def pictures(self, generator: Generator, count: int) -> Iterator[Image.Image]:
        """The first `count` images of the generator, of classes in the dataset's proportions.

        Raises Diverged, and JobFailed `out_of_memory` where not even one image fits.
        """
        latents, classes = self._latents(count, generator.config.z_dim), self._classes(count)
        return self._made(generator, latents, classes)

    def class_by_class(self, generator: Generator, rows: int, columns: int) -> list[Image.Image]:
        """Rows of images: a row has one latent, and where there are classes each column one of them."""
        names = len(self._images.labels)
        across = min(columns, names) if names else columns
        latents = self._latents(rows * columns, generator.config.z_dim)
        if not names:
            return list(self._made(generator, latents, torch.zeros(len(latents), dtype=torch.int64)))
        return list(
            self._made(generator, latents[:rows].repeat_interleave(across, dim=0), torch.arange(across).repeat(rows))
        )

    def generated(self, generator: Generator, count: int) -> Features:
        """Features of `pictures`, float64 `(count, D)`."""
        return self._features(self.pictures(generator, count))

    def real(self, count: int) -> Features:
        """Features of the first `count` real images of the random order, or of all where there are fewer."""
        if self._real is None or len(self._real) < min(count, len(self._images)):
            order = torch.randperm(len(self._images), generator=self._random(_REAL))[:count]
            self._real = self._features(self._picture(number) for number in order.tolist())
        return self._real[:count]

    def frechet(self, generator: Generator, count: int) -> float:
        """Fréchet distance of so many generated images to as many real ones, or to all; to six digits."""
        return float(f"{frechet_distance(self.generated(generator, count), self.real(count)):.6g}")

    def _features(self, pictures: Iterator[Image.Image]) -> Features:
        return features(pictures, self._backbone, device=self._device, on_batch=lambda done: self._pulse())

    def _picture(self, number: int) -> Image.Image:
        return to_pictures(to_unit(self._images.pixels[number : number + 1]))[0]

    def _latents(self, count: int, width: int) -> Tensor:
        return torch.randn(count, width, generator=self._random(_LATENTS))

    def _classes(self, count: int) -> Tensor:
        numbers = torch.randint(len(self._images), (count,), generator=self._random(_CLASSES))
        return self._images.classes[numbers]

    def _random(self, apart: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._seed ^ apart) % 2**63)

    def _made(self, generator: Generator, latents: Tensor, classes: Tensor) -> Iterator[Image.Image]:
        for start in range(0, len(latents), _AT_ONCE):
            made: list[Image.Image] = []
            in_parts(
                range(start, min(len(latents), start + _AT_ONCE)),
                self._at_once,
                lambda numbers: made.extend(self._call(generator, latents[numbers], classes[numbers])),  # noqa: B023
                log=self._shrink,
            )
            yield from made

    @torch.no_grad()
    def _call(self, generator: Generator, latents: Tensor, classes: Tensor) -> list[Image.Image]:
        self._pulse()
        labels = self._images.one_hot(classes)
        images = generator(latents.to(self._device), None if labels is None else labels.to(self._device))
        if not bool(torch.isfinite(images).all()):
            raise Diverged(
                "numerical_error",
                "The training diverged",
                "The generator's images are not finite. Try smaller learning rates, a larger r1_gamma or "
                "mixed_precision no.",
                retryable=False,
            )
        return to_pictures(images)

    def _shrink(self, message: str) -> None:
        self._at_once = (self._at_once + 1) // 2
