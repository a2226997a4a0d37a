"""What a part of a batch adds to the loss of a network: the passes through both, augmented and blurred.

Every function takes a draw that was cut to the part, and gives the losses of its images, to be summed and divided by
the size of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.families.gan import losses
from worker.families.gan.ada import signs
from worker.families.gan.augment import Parameters, augment
from worker.families.gan.blur import blur
from worker.families.gan.data import TrainingImages


@dataclass(frozen=True, kw_only=True)
class StepDraw:
    """Everything random about one step, on the CPU: the whole batch, or what a part of it has."""

    #: Of the real images, int64 `[N]`. Fakes are of their classes.
    numbers: Tensor
    #: `[N, z_dim]`, for the fakes that each network learns from.
    discriminator_latents: Tensor
    generator_latents: Tensor
    #: What happens to the real and the fake images of the discriminator's pass, and of the one after it: the lazy
    #: penalty's real images or, with a relativistic loss, those of the generator's pass.
    real: Parameters
    fake: Parameters
    real_again: Parameters
    fake_again: Parameters

    def __getitem__(self, part: slice) -> StepDraw:
        return StepDraw(**{name: value[part] for name, value in self.__dict__.items()})


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a step computes with, as the schedules have it."""

    #: γ of the gradient penalty, times the steps that it stands for; 0: none in this step.
    gamma: float
    #: Standard deviation of the blur, pixels.
    sigma: float


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a part gives, one number an image."""

    values: Tensor
    #: Whether the discriminator takes the real images for real: see `ada.signs`.
    signs: Tensor | None = None


class Objective:
    """The losses of the two networks, logistic or relativistic."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        images: TrainingImages,
        *,
        relativistic: bool,
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self._generator, self._discriminator, self._images = generator, discriminator, images
        self._relativistic, self._dtype, self._device = relativistic, dtype, device

    def discriminator(self, draw: StepDraw, moment: Moment) -> Losses:
        """The discriminator's losses; with a relativistic loss R1 and R2 are part of them."""
        with torch.no_grad():
            fake = self._fakes(draw, draw.discriminator_latents)
        real = self._reals(draw)
        penalised = self._relativistic and moment.gamma > 0
        if penalised:
            real, fake = real.requires_grad_(), fake.requires_grad_()
        real_logits = self._judged(real, draw, draw.real, moment)
        fake_logits = self._judged(fake, draw, draw.fake, moment)
        if not self._relativistic:
            values = losses.logistic_discriminator_loss(real_logits, fake_logits)
            return Losses(values=values, signs=signs(real_logits))
        values = losses.relativistic_discriminator_loss(real_logits, fake_logits)
        if penalised:
            values = values + losses.gradient_penalty(real_logits, real, moment.gamma)
            values = values + losses.gradient_penalty(fake_logits, fake, moment.gamma)
        return Losses(values=values, signs=signs(real_logits, fake_logits))

    def penalty(self, draw: StepDraw, moment: Moment) -> Losses:
        """R1 alone, for a step of its own: of the images before they are augmented."""
        real = self._reals(draw).requires_grad_()
        logits = self._judged(real, draw, draw.real_again, moment)
        return Losses(values=losses.gradient_penalty(logits, real, moment.gamma))

    def generator(self, draw: StepDraw, moment: Moment) -> Losses:
        """The generator's losses. The discriminator must not require gradients."""
        fake = self._fakes(draw, draw.generator_latents)
        fake_logits = self._judged(fake, draw, draw.fake_again, moment)
        if not self._relativistic:
            return Losses(values=losses.logistic_generator_loss(fake_logits))
        with torch.no_grad():
            real_logits = self._judged(self._reals(draw), draw, draw.real_again, moment)
        return Losses(values=losses.relativistic_generator_loss(real_logits, fake_logits))

    def _reals(self, draw: StepDraw) -> Tensor:
        return self._images.images(draw.numbers, self._device)

    def _fakes(self, draw: StepDraw, latents: Tensor) -> Tensor:
        images: Tensor = self._generator(latents.to(self._device), self._labels(draw), dtype=self._dtype)
        return images

    def _judged(self, images: Tensor, draw: StepDraw, parameters: Parameters, moment: Moment) -> Tensor:
        seen = blur(augment(images, parameters), moment.sigma)
        logits: Tensor = self._discriminator(seen, self._labels(draw), dtype=self._dtype)
        return logits

    def _labels(self, draw: StepDraw) -> Tensor | None:
        labels = self._images.one_hot(self._images.classes[draw.numbers])
        return None if labels is None else labels.to(self._device)
