"""The training loop of a GAN's two networks.

How a recipe uses it::

    trainer = Trainer(generator, discriminator, images, settings, device=device)    # images: see data.py
    if (folder / "trainer.json").exists():
        trainer.load(folder)                               # goes on exactly where save() was called
    while trainer.step_count < settings.steps:
        trainer.step()
    trainer.ema.model                                      # the generator to keep

A step is the discriminator's, then its lazy penalty where one is due, then the generator's. Everything random in it is
drawn on the CPU for the whole batch before anything is computed, from one generator and one sampler. So a step does not
depend on how it is split into micro-batches or among devices, and replaying a part of it means using the same draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from calotype.errors import JobFailed
from calotype.specs.gan_train import Augment
from worker.failures import is_out_of_memory
from worker.families.diffusion.data import EpochSampler
from worker.families.diffusion.memory import free_memory
from worker.families.gan import state
from worker.families.gan.ada import (
    RESUME_SPEED_KIMG,
    SPEED_KIMG,
    AdaptiveController,
    Controller,
    ScheduledController,
)
from worker.families.gan.augment import AugmentPipe, Transforms
from worker.families.gan.data import TrainingImages
from worker.families.gan.ema import RAMP_UP, Ema, decay
from worker.families.gan.losses import lazy_adam
from worker.families.gan.networks.discriminator import Discriminator
from worker.families.gan.objective import Losses, Moment, Objective, StepDraw
from worker.families.gan.replicas import Alone, Replicas
from worker.families.gan.schedule import Ramp
from worker.families.gan.splitting import Split
from worker.families.gan.statistics import RunningMeans
from worker.families.gan.stored import AnyDiscriminator, Generator

#: By how much the watch for mode collapse raises the augmentation's least p.
AUGMENTATION_RAISE: Final = 0.1
#: Images at once on a CPU at first: it gains nothing from more, and shows no life until they are through.
CPU_IMAGES: Final = 8


class Diverged(JobFailed):
    """A loss or a gradient is no number; the networks are as they were before."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All that decides, with the images and the first weights, what a training makes."""

    steps: int
    #: Images a step, whatever fits into memory at once.
    batch_size: int
    seed: int
    #: Compares real and fake in pairs, and penalises both within the discriminator's step. (R3GAN)
    relativistic: bool
    generator_lr: Ramp
    discriminator_lr: Ramp
    #: Adam's second beta; the first is 0.
    beta2: Ramp
    #: γ of R1, and of R2 where relativistic; 0: no penalty.
    gamma: Ramp
    #: Steps between two penalties.
    penalty_every: int
    #: Half-life of the running mean of the generator, images.
    ema_half_life: float
    #: Whether the model was trained before: then the mean is not begun anew, and augmentation adapts faster.
    transferred: bool = False
    #: Standard deviation of a blur of what the discriminator sees, pixels; usually 0 at all times.
    sigma: Ramp = field(default_factory=lambda: Ramp(start=0.0, end=0.0, kimg=0.0))
    augment: Augment = "none"
    #: `ada` starts with the first p, `fixed` follows the whole ramp.
    augment_p: Ramp = field(default_factory=lambda: Ramp(start=0.0, end=0.0, kimg=0.0))
    transforms: Transforms = field(default_factory=Transforms)
    mixed_precision: Literal["no", "bf16"] = "no"


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """Mean losses of a step; the penalty's is None where none was due, or where it is part of the discriminator's."""

    discriminator: float
    penalty: float | None
    generator: float


class Trainer:
    """Trains two networks against each other; see the top of the module."""

    def __init__(
        self,
        generator: Generator,
        discriminator: AnyDiscriminator,
        images: TrainingImages,
        settings: TrainSettings,
        *,
        averaged: Generator | None = None,
        device: torch.device | None = None,
        replicas: Replicas | None = None,
        log: Callable[[str], None] = lambda message: None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """`averaged` is the running mean that a model brings with it; a copy of the generator where None. `pulse` is
        called before each part of a batch; what it raises leaves the step unfinished.

        Raises ValueError for a batch that cannot be divided among the replicas.
        """
        self.device = device or torch.device("cpu")
        self.generator: Generator = generator.to(self.device).train().requires_grad_(True)
        self.discriminator: AnyDiscriminator = discriminator.to(self.device).train().requires_grad_(True)
        self.ema: Ema[Generator] = Ema(self.generator if averaged is None else averaged.to(self.device))
        self.images, self.settings, self.log, self._pulse = images, settings, log, pulse
        self.replicas = replicas or Alone()
        self.split = Split.of(
            settings.batch_size, _group_size(discriminator), ranks=self.replicas.count, rank=self.replicas.rank
        )
        if self.device.type == "cpu":
            self.split = self.split.of_at_most(CPU_IMAGES)
        self.optimizers = {"generator": _adam(self.generator), "discriminator": _adam(self.discriminator)}
        self.pipe = AugmentPipe(settings.transforms)
        self.controller = _controller(settings)
        #: The augmentation's p is at least this; raised by the watch for mode collapse.
        self.least_p = 0.0
        self.sampler = EpochSampler(len(images), settings.seed)
        self.random = torch.Generator().manual_seed(settings.seed)
        self.step_count = 0
        #: Of each step; the lazy penalty's are apart.
        self.losses: dict[str, list[float]] = {"discriminator": [], "penalty": [], "generator": []}
        self._means = RunningMeans(self.generator)
        self._objective = Objective(
            self.generator,
            self.discriminator,
            images,
            relativistic=settings.relativistic,
            dtype=torch.bfloat16 if settings.mixed_precision == "bf16" else None,
            device=self.device,
        )

    @property
    def images_seen(self) -> int:
        """Real images that the discriminator was shown, repetitions counted."""
        return self.step_count * self.settings.batch_size

    @property
    def p(self) -> float:
        """How often images are augmented in the next step."""
        return max(self.controller.p, self.least_p)

    def step(self) -> StepLosses:
        """One step of both networks.

        Raises Diverged, and JobFailed `out_of_memory` where not even the smallest part fits. A step that raises has
        not been made, but one of the networks may have been moved by it: the state is then not to be saved.
        """
        self.replicas.announce("step")
        draw, moment = self._draw(), self._moment()
        found = StepLosses(
            discriminator=self._train_discriminator(draw, moment),
            penalty=self._penalise(draw),
            generator=self._train_generator(draw, moment),
        )
        self._update_average()
        self.controller.end_batch()
        self.step_count += 1
        self._note(found)
        return found

    def raise_augmentation(self) -> float:
        """Augment more often from now on, whatever the feedback says; returns the least p that now holds."""
        self.replicas.announce("raise_augmentation")
        self.least_p = min(1.0, self.p + AUGMENTATION_RAISE)
        return self.least_p

    def save(self, directory: Path) -> None:
        """Write all that `load` needs to go on bitwise equally: safetensors and JSON, replaced as a whole."""
        state.save(self, directory)

    def load(self, directory: Path) -> None:
        """Go on from a saved state. Raises ValueError where it belongs to other settings or images."""
        self.replicas.announce("load", str(directory))
        state.load(self, directory)

    def _draw(self) -> StepDraw:
        count, side = self.settings.batch_size, self.images.resolution
        self.pipe.set_p(self.p)
        numbers = self.sampler.take(count)
        latents = torch.randn(2, count, self.generator.config.z_dim, generator=self.random)
        real, fake, real_again, fake_again = (self.pipe.draw(count, (side, side), self.random) for _ in range(4))
        return StepDraw(
            numbers=numbers,
            discriminator_latents=latents[0],
            generator_latents=latents[1],
            real=real,
            fake=fake,
            real_again=real_again,
            fake_again=fake_again,
        )

    def _moment(self) -> Moment:
        settings, seen = self.settings, self.images_seen
        due = self._penalty_is_due and settings.relativistic
        gamma = settings.gamma.at(seen) * settings.penalty_every if due else 0.0
        return Moment(gamma=gamma, sigma=settings.sigma.at(seen))

    @property
    def _penalty_is_due(self) -> bool:
        return self.step_count % self.settings.penalty_every == 0

    def _train_discriminator(self, draw: StepDraw, moment: Moment) -> float:
        loss, signs = self._gradients("discriminator", lambda part: self._objective.discriminator(part, moment), draw)
        self._apply("discriminator")
        self.controller.observe(self.replicas.add_up(signs))
        return loss

    def _penalise(self, draw: StepDraw) -> float | None:
        """The lazy penalty's own step, where the loss is logistic. (Karras et al., arXiv 1912.04958, Appendix B)"""
        settings = self.settings
        gamma = settings.gamma.at(self.images_seen) * settings.penalty_every
        if settings.relativistic or not self._penalty_is_due or gamma == 0:
            return None
        moment = Moment(gamma=gamma, sigma=settings.sigma.at(self.images_seen))
        loss, _ = self._gradients("discriminator", lambda part: self._objective.penalty(part, moment), draw)
        self._apply("discriminator")
        return loss

    def _train_generator(self, draw: StepDraw, moment: Moment) -> float:
        # Gradients of the discriminator would be computed and thrown away.
        self.discriminator.requires_grad_(False)
        try:
            loss, _ = self._gradients("generator", lambda part: self._objective.generator(part, moment), draw)
        finally:
            self.discriminator.requires_grad_(True)
        self._apply("generator")
        self._means.apply(self.replicas.add_up)
        return loss

    def _gradients(self, name: str, losses: Callable[[StepDraw], Losses], draw: StepDraw) -> tuple[float, Tensor]:
        """Leave the gradients of the batch's mean loss in a network, in finer parts where memory runs out.

        Returns that loss, and the signs of this device's logits.
        """
        while True:
            self.optimizers[name].zero_grad(set_to_none=True)
            found = self._accumulate(losses, draw, gather=name == "generator")
            if found is not None:
                break
            # Outside of the except block: until it ends, the traceback keeps the failed pass's tensors alive.
            self._shrink()
            free_memory()
        loss, signs = found
        return self._finish_gradients(name, loss), signs

    def _accumulate(
        self, losses: Callable[[StepDraw], Losses], draw: StepDraw, *, gather: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Forward and backward over this device's share, part by part. None where any device ran out of memory.

        Gives the share's part of the loss, and the signs of its images at their places in the batch.
        """
        total, failed = torch.zeros((), device=self.device), False
        signs = torch.zeros(self.settings.batch_size, device=self.device)
        try:
            with self._means.gathering() if gather else _nothing():
                for part in self.split.slices():
                    self._pulse()
                    found = losses(draw[part])
                    # A sum over the batch size, not a mean of means: so it does not depend on the split.
                    loss = found.values.sum() / self.settings.batch_size
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += loss.detach()
                    if found.signs is not None:
                        signs[part] = found.signs
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        # All must agree whether to try again.
        failures = self.replicas.add_up(torch.tensor(float(failed), device=self.device))
        return None if float(failures) else (total, signs)

    def _finish_gradients(self, name: str, loss: Tensor) -> float:
        gradients = [parameter.grad for parameter in self._parameters(name) if parameter.grad is not None]
        self.replicas.add_up_in_place([*gradients, loss])
        norm = nn.utils.get_total_norm(gradients)
        value = float(loss)
        if math.isfinite(value) and math.isfinite(float(norm)):
            return value
        self.optimizers[name].zero_grad(set_to_none=True)
        raise Diverged(
            "numerical_error",
            "The training diverged",
            f"The {name}'s loss is {value} and its gradient's norm {float(norm)} at step {self.step_count + 1}. Try "
            "smaller learning rates, a larger r1_gamma or mixed_precision no.",
            retryable=False,
        )

    def _apply(self, name: str) -> None:
        """Adam's step with the gradients that are there, by the schedules."""
        settings, seen = self.settings, self.images_seen
        ramp = settings.generator_lr if name == "generator" else settings.discriminator_lr
        rate, betas = ramp.at(seen), (0.0, settings.beta2.at(seen))
        if name == "discriminator" and not settings.relativistic and settings.gamma.at(seen) > 0:
            rate, betas = lazy_adam(rate, betas, settings.penalty_every)
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rate, betas
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def learning_rate(self, name: str) -> float:
        """Of the last step of "generator" or "discriminator"."""
        return float(self.optimizers[name].param_groups[0]["lr"])

    def _update_average(self) -> None:
        settings = self.settings
        share = decay(
            self.images_seen,
            settings.batch_size,
            settings.ema_half_life,
            None if settings.transferred else RAMP_UP,
        )
        self.ema.update(self.generator, share)

    def _note(self, found: StepLosses) -> None:
        self.losses["discriminator"].append(found.discriminator)
        self.losses["generator"].append(found.generator)
        if found.penalty is not None:
            self.losses["penalty"].append(found.penalty)

    def _shrink(self) -> None:
        """At most half as many images at once from now on; the batch stays what it is."""
        finer = self.split.finer()
        before = self.split.micro_batch_size
        if finer is None:
            raise JobFailed(
                "out_of_memory",
                "Out of memory",
                f"Not even {before} images at a time fit into memory. Use a smaller resolution or channel_base, or a "
                "larger device.",
                retryable=False,
            )
        self.split = finer
        self.log(
            f"out of memory with {before} images at once: step {self.step_count + 1} is replayed with "
            f"{finer.micro_batch_size}; the batch size stays {self.settings.batch_size}"
        )

    def _parameters(self, name: str) -> Iterator[nn.Parameter]:
        return (self.generator if name == "generator" else self.discriminator).parameters()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _adam(network: nn.Module) -> torch.optim.Adam:
    """Rate and betas are set at each step."""
    return torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.99), eps=1e-8, fused=True)


def _group_size(discriminator: AnyDiscriminator) -> int:
    """How many images a network may look at together."""
    return discriminator.config.group_size if isinstance(discriminator, Discriminator) else 1


def _controller(settings: TrainSettings) -> Controller:
    if settings.augment == "ada":
        return AdaptiveController(
            settings.batch_size,
            p=settings.augment_p.start,
            speed_kimg=RESUME_SPEED_KIMG if settings.transferred else SPEED_KIMG,
        )
    return ScheduledController(settings.batch_size, settings.augment_p)
