"""The training loop for SD3-type denoisers: full training and adapters, at any size.

How a recipe uses it::

    denoiser = SD3Transformer2DModel(...)                    # whatever has requires_grad is trained
    samples = TrainingSamples.of(      # data.py; tensors in memory, float16 is enough
        latents,                       # [N, C, H, W]: (mean - shift) * scale, see cache.encode_images
        prompt_embeds, pooled,         # [P, T, D], [P, E]: see cache.encode_captions
        caption_rows,                  # int64 [N] or [N, K]: captions that sample i chooses from at each step
        empty_row,                     # the row of the caption ""
    )
    settings = TrainSettings(
        steps=12_000, batch_size=48, learning_rate=1e-3, seed=0, lr_warmup_steps=200, lr_schedule="cosine",
        lr_decay_start=0.5, ema_decay=0.998, caption_dropout=0.12, mixed_precision="bf16",
    )
    trainer = Trainer(denoiser, samples, settings)
    if (folder / "trainer.json").exists():
        trainer.load(folder)                               # goes on exactly where save() was called
    trainer.run(
        on_step=lambda step, loss: ...,                    # after every step
        check=lambda: ...,                                 # before every step; raise to stop between two
        on_checkpoint=lambda step: trainer.save(folder),   # every checkpoint_every steps, not after the last
    )
    with trainer.averaged_weights():                       # the EMA where there is one
        denoiser.save_pretrained(...)

Everything random in a step is drawn on the CPU for the whole batch before the model runs, from one generator
and one sampler. So a step does not depend on how it is split into micro-batches, and replaying it means using
the same draw again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from calotype.errors import JobFailed
from worker.failures import is_out_of_memory
from worker.families.diffusion import flow, state
from worker.families.diffusion.data import EpochSampler, TrainingSamples
from worker.families.diffusion.memory import free_memory

Precision = Literal["no", "bf16", "fp16"]
Schedule = Literal["constant", "cosine"]

_AUTOCAST: Final[dict[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: fp16 gradients are scaled by this at first, and by twice as much after so many steps without overflow.
_FIRST_LOSS_SCALE: Final = 2.0**16
_LOSS_SCALE_PATIENCE: Final = 2000


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All that decides, with the samples and the first weights, what a training makes."""

    #: Optimizer steps in all.
    steps: int
    #: Samples a step, whatever fits into memory at once.
    batch_size: int
    learning_rate: float
    seed: int
    #: Samples at once; gradients are accumulated over a batch. None: begin with the whole batch. Halved when
    #: out of memory.
    micro_batch_size: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    lr_warmup_steps: int = 0
    lr_schedule: Schedule = "constant"
    #: With a cosine schedule: the fraction of the steps after which the rate begins to fall.
    lr_decay_start: float = 0.0
    #: Where the cosine ends, relative to `learning_rate`.
    lr_final: float = 0.0
    #: Share of the average that stays at each step; None: no average is kept.
    ema_decay: float | None = None
    gradient_checkpointing: bool = False
    mixed_precision: Precision = "no"
    caption_dropout: float = 0.1
    loss: flow.Loss = "velocity"
    weighting: flow.Weighting = "none"
    timestep_sampling: flow.TimestepSampling = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    #: The scheduler's shift, so that training sees the noise levels of inference.
    shift: float = 1.0
    #: Steps between checkpoints; None: none.
    checkpoint_every: int | None = None

    def learning_rate_at(self, step: int) -> float:
        """The rate of the step with index `step` (from 0): linear warm-up times constant or cosine decay."""
        warmup = min(1.0, (step + 1) / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0
        if self.lr_schedule == "constant":
            return self.learning_rate * warmup
        start = self.lr_decay_start * self.steps
        along = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        decay = self.lr_final + (1 - self.lr_final) * 0.5 * (1 + math.cos(math.pi * along))
        return self.learning_rate * warmup * decay

    def ema_decay_at(self, step: int) -> float:
        """min(decay, (1 + step)/(10 + step)): a young average forgets sooner. (diffusers' EMAModel)"""
        return min(self.ema_decay or 0.0, (1 + step) / (10 + step))


@dataclass(frozen=True, kw_only=True)
class StepDraw:
    """Everything random about one step, on the CPU: the whole batch, before it is split."""

    clean: Tensor
    noise: Tensor
    sigmas: Tensor
    captions: Tensor


class Trainer:
    """Trains the parameters of a denoiser that require gradients; see the top of the module."""

    def __init__(
        self,
        denoiser: nn.Module,
        samples: TrainingSamples,
        settings: TrainSettings,
        *,
        device: torch.device | None = None,
        log: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.denoiser = denoiser
        self.samples = samples
        self.settings = settings
        self.device = device or next(denoiser.parameters()).device
        self.log = log
        self.parameters = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.ema = None if settings.ema_decay is None else {n: p.detach().clone() for n, p in self.parameters.items()}
        self.sampler = EpochSampler(len(samples), settings.seed)
        self.random = torch.Generator().manual_seed(settings.seed)
        self.micro_batch_size = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
        self.loss_scale = _FIRST_LOSS_SCALE if settings.mixed_precision == "fp16" else 1.0
        self.steps_since_overflow = 0
        self.step_count = 0
        self.losses: list[float] = []
        denoiser.train()
        if settings.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()  # type: ignore[operator]  # of diffusers' ModelMixin

    def run(
        self,
        *,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
        check: Callable[[], None] = lambda: None,
        on_checkpoint: Callable[[int], None] = lambda step: None,
    ) -> float:
        """Train from where the state is to `settings.steps`; return the seconds it took, callbacks included.

        Raises JobFailed `numerical_error` or `out_of_memory`, and whatever a callback raises; the state is
        that of the last complete step then, and can be saved.
        """
        started = time.perf_counter()
        while self.step_count < self.settings.steps:
            check()
            loss = self.step()
            on_step(self.step_count, loss)
            every = self.settings.checkpoint_every
            if every and self.step_count % every == 0 and self.step_count < self.settings.steps:
                on_checkpoint(self.step_count)
        return time.perf_counter() - started

    def step(self) -> float:
        """One optimizer step over a whole batch; returns the batch's mean loss."""
        before = self.random.get_state(), self.sampler.position
        try:
            loss = self._gradients(self._draw())
        except BaseException:
            # The step has not happened: a state saved now must draw the same batch again.
            self.random.set_state(before[0])
            self.sampler.position = before[1]
            self.optimizer.zero_grad(set_to_none=True)
            raise
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step_count)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step_count += 1
        self.losses.append(loss)
        return loss

    def save(self, directory: Path) -> None:
        """Write all that `load` needs to go on bitwise equally: safetensors and JSON, replaced as a whole."""
        state.save(self, directory)

    def load(self, directory: Path) -> None:
        """Go on from a saved state. Raises ValueError where it belongs to other settings or samples."""
        state.load(self, directory)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the denoiser has its averaged weights, in evaluation mode; without an average, its own."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()} if self.ema else {}
        self._put(self.ema or {})
        self.denoiser.eval()
        try:
            yield
        finally:
            self._put(own)
            self.denoiser.train()

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.parameters[name].copy_(weight)

    def _draw(self) -> StepDraw:
        settings, samples = self.settings, self.samples
        chosen = self.sampler.take(settings.batch_size)
        captions = samples.choose_captions(chosen, settings.caption_dropout, self.random)
        clean = samples.draw_latents(chosen, self.random)
        sigmas = flow.sample_sigmas(
            len(chosen),
            self.random,
            sampling=settings.timestep_sampling,
            logit_mean=settings.logit_mean,
            logit_std=settings.logit_std,
            shift=settings.shift,
        )
        noise = torch.randn(clean.shape, generator=self.random)
        return StepDraw(clean=clean, noise=noise, sigmas=sigmas, captions=captions)

    def _gradients(self, draw: StepDraw) -> float:
        """Leave clipped gradients of the batch's mean loss in the parameters, shrinking as needed."""
        random_state = state.model_random_state(self.device)
        while True:
            try:
                loss = self._accumulate(draw)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                loss = None
            if loss is not None and self._finish_gradients(loss):
                return loss
            self.optimizer.zero_grad(set_to_none=True)
            if loss is None:
                # Outside of the except block: until it ends, the traceback keeps the failed step's tensors alive.
                self._shrink()
                free_memory()
            state.set_model_random_state(random_state, self.device)

    def _accumulate(self, draw: StepDraw) -> float:
        """Forward and backward over the batch, a micro-batch at a time; returns the mean loss."""
        size, total = self.settings.batch_size, torch.zeros((), device=self.device)
        for start in range(0, size, self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            # A sum over the batch size, not a mean of means: the last part may be smaller.
            loss = self._losses(draw, part).sum() / size
            (loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total)

    def _losses(self, draw: StepDraw, part: slice) -> Tensor:
        clean, noise, sigmas = (t[part].to(self.device) for t in (draw.clean, draw.noise, draw.sigmas))
        captions = draw.captions[part]
        precision = _AUTOCAST.get(self.settings.mixed_precision)
        with torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            velocity: Any = self.denoiser(
                hidden_states=flow.add_noise(clean, noise, sigmas),
                encoder_hidden_states=self.samples.prompt_embeds[captions].float().to(self.device),
                pooled_projections=self.samples.pooled[captions].float().to(self.device),
                timestep=flow.timesteps(sigmas),
                return_dict=False,
            )[0]
        return flow.flow_loss(
            velocity, clean, noise, sigmas, loss=self.settings.loss, weighting=self.settings.weighting
        )

    def _finish_gradients(self, loss: float) -> bool:
        """Unscale, check and clip; False where fp16 overflowed and the step is to be replayed with a smaller
        scale.

        Replayed, not skipped as by torch's GradScaler: every sample is trained on.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.loss_scale)
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm))
        if math.isfinite(loss) and math.isfinite(norm):
            self._grow_loss_scale()
            return True
        if math.isfinite(loss) and self.settings.mixed_precision == "fp16" and self.loss_scale >= 2.0:
            self.loss_scale, self.steps_since_overflow = self.loss_scale / 2, 0
            return False
        raise JobFailed(
            "numerical_error",
            "The training diverged",
            f"Loss {loss} and gradient norm {norm} at step {self.step_count + 1}. "
            "Try a smaller learning rate, a longer warm-up or mixed_precision bf16 or no.",
            retryable=False,
        )

    def _grow_loss_scale(self) -> None:
        if self.settings.mixed_precision != "fp16":
            return
        self.steps_since_overflow += 1
        if self.steps_since_overflow >= _LOSS_SCALE_PATIENCE:
            self.loss_scale, self.steps_since_overflow = self.loss_scale * 2, 0

    def _shrink(self) -> None:
        """Half as many samples at once from now on; the batch stays what it is."""
        if self.micro_batch_size == 1:
            raise JobFailed(
                "out_of_memory",
                "Out of memory",
                "Not even one sample at a time fits into memory. "
                "Turn on gradient_checkpointing, or use a smaller resolution or a larger device.",
                retryable=False,
            )
        before, self.micro_batch_size = self.micro_batch_size, (self.micro_batch_size + 1) // 2
        self.log(
            f"out of memory with {before} samples at once: step {self.step_count + 1} is replayed with "
            f"{self.micro_batch_size}; the batch size stays {self.settings.batch_size}"
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.ema is None:
            return
        weight = 1.0 - self.settings.ema_decay_at(self.step_count)
        torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), weight)
