"""The handler of `diffusion.train`: a dataset and a model in, an adapter or a new version of the model out.

A training survives what happens to its worker. Checkpoints hold the whole state (see `state.py`) and the
validation images made so far; a worker that shuts down writes one more at the step it is at. Latents and text
embeddings are not in them: making them again is cheaper than storing them.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from calotype.datasets import DatasetArchive, DatasetImage
from calotype.errors import JobFailed
from calotype.keys import batch_limit
from calotype.registry import ModelVersion
from calotype.specs import DiffusionTrain, DiffusionTrainInput
from worker.context import HandlerResult, JobContext, NewModel, Output, ShuttingDown
from worker.families.diffusion import cache, lora
from worker.families.diffusion.data import TrainingSamples, with_label
from worker.families.diffusion.load import LORA, Loaded, inference_dtype, open_pipeline
from worker.families.diffusion.memory import device_name, free_memory, peak_memory_bytes, reset_peak_memory
from worker.families.diffusion.reporting import Report
from worker.families.diffusion.sampling import generate_images
from worker.families.diffusion.stored import save_full_version
from worker.families.diffusion.trainer import Trainer, TrainSettings
from worker.families.parts import in_parts

#: Validation images are made at the end and at the checkpoints that pass a quarter, half and three quarters.
_VALIDATION_ROUNDS: Final = 4

#: The loss curve in the result has at most this many points.
_CURVE_POINTS: Final = 400


@dataclass(kw_only=True)
class Training:
    """One job's training and what it is made of."""

    ctx: JobContext
    spec: DiffusionTrainInput
    version: ModelVersion
    pipeline: Any
    samples: TrainingSamples
    trainer: Trainer

    @property
    def validation(self) -> Path:
        """Where validation images gather."""
        return self.ctx.workdir / "validation"


def run(ctx: JobContext) -> HandlerResult:
    """Train, keep checkpoints, publish validation images, register the result."""
    spec = ctx.spec
    if not isinstance(spec, DiffusionTrain):
        raise TypeError(f"diffusion.train was given a {type(spec).__name__}")
    started = time.perf_counter()
    training = _prepare(ctx, spec)
    resumed_from = _resume(training)
    prepared = time.perf_counter()
    with ctx.tracked(training.trainer.step_count):
        try:
            _train(training)
            trained = time.perf_counter()
            _validate(training)
        except ShuttingDown:
            # Another worker goes on from this very step, or has only the last images to make.
            _checkpoint(training)
            raise
    directory = _save_model(training)
    seconds = {
        "prepare_seconds": round(prepared - started, 3),
        "train_seconds": round(trained - prepared, 3),
        "seconds": round(time.perf_counter() - started, 3),
    }
    result = _result(training, resumed_from) | seconds
    return HandlerResult(_outputs(training) + ctx.tracked_outputs(), result, _new_model(training, directory))


def _prepare(ctx: JobContext, request: DiffusionTrain) -> Training:
    """Everything that comes before the first step."""
    spec = request.input
    _refuse_fp16_without_gpu(ctx, spec)
    version = ctx.resolve(request.model)
    if version.architecture == LORA:
        raise _bad(f"{version.ref} is an adapter of {version.base}; train on {version.base} instead.")
    # Training is the largest user of memory there is; what earlier jobs left loaded makes way.
    ctx.models.clear()
    reset_peak_memory(ctx.device)
    pipeline = open_pipeline(ctx.models.directory(version), version, inference_dtype(ctx.device))
    # Latents are what everything learns from: the VAE encodes in fp32, as in diffusers' training scripts.
    pipeline.vae.to(torch.float32)
    pipeline.to(ctx.device)
    samples = _encode(ctx, spec, version, pipeline)
    _make_trainable(pipeline, spec, ctx.device)
    settings = train_settings(spec, shift=float(pipeline.scheduler.config.shift))
    trainer = Trainer(pipeline.transformer, samples, settings, device=ctx.device, log=ctx.log)
    return Training(ctx=ctx, spec=spec, version=version, pipeline=pipeline, samples=samples, trainer=trainer)


def train_settings(spec: DiffusionTrainInput, *, shift: float) -> TrainSettings:
    """A request as the trainer understands it."""
    return TrainSettings(
        steps=spec.steps,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        seed=_seed(spec),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        lr_warmup_steps=spec.lr_warmup_steps,
        lr_schedule=spec.lr_schedule,
        ema_decay=spec.ema_decay,
        gradient_checkpointing=spec.gradient_checkpointing,
        mixed_precision=spec.mixed_precision,
        caption_dropout=spec.caption_dropout,
        loss=spec.loss,
        timestep_sampling=spec.timestep_sampling,
        logit_mean=spec.logit_mean,
        logit_std=spec.logit_std,
        shift=shift,
        checkpoint_every=spec.checkpoint_every,
    )


def _encode(ctx: JobContext, spec: DiffusionTrainInput, version: ModelVersion, pipeline: Any) -> TrainingSamples:
    def on_progress(done: int, total: int) -> None:
        ctx.progress(done, total, "encoding")
        ctx.check()

    with ctx.dataset(spec.dataset) as archive:
        return cache.build(
            pipeline,
            [_sample(archive, item) for item in with_label(archive.items, spec.label)],
            ctx.workdir / "cache",
            resolution=_resolution(spec),
            max_text_tokens=version.parameters.get("max_text_tokens"),
            on_progress=on_progress,
        )


def _sample(archive: DatasetArchive, item: DatasetImage) -> cache.Sample:
    """An image that nobody described is described by its label, and one without a label not at all."""
    return cache.Sample(
        digest=item.sha256,
        caption=item.text or item.label or "",
        open=lambda: archive.open_image(item.file_name),
    )


def _make_trainable(pipeline: Any, spec: DiffusionTrainInput, device: torch.device) -> None:
    """Decide which weights learn and in which precision; the other components leave a GPU meanwhile."""
    if device.type == "cuda":  # not tested here: no GPU
        for component in _others(pipeline):
            component.to("cpu")
        free_memory()
    if spec.method == "lora":
        pipeline.transformer.to(torch.float32 if spec.mixed_precision == "no" else pipeline.transformer.dtype)
        lora.add(
            pipeline.transformer,
            rank=spec.rank,
            alpha=spec.alpha,
            use_dora=spec.use_dora,
            seed=_seed(spec),
        )
    else:
        # Weights that learn are kept in fp32 whatever the layers compute in: half precision rounds small
        # updates away.
        pipeline.transformer.to(torch.float32).requires_grad_(True)


def _others(pipeline: Any) -> list[torch.nn.Module]:
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return [module for module in modules if module is not pipeline.transformer]


def _resume(training: Training) -> int | None:
    """Go on from the job's checkpoint; returns its step, None at the beginning."""
    found = training.ctx.load_checkpoint()
    if found is None:
        return None
    path, step = found
    try:
        training.trainer.load(path / "state")
    except (OSError, ValueError, KeyError) as error:
        # Rather hours again than a result that is not what was asked for.
        training.ctx.log(f"the checkpoint of step {step} does not fit ({error}): starting again")
        return None
    if (path / "validation").is_dir():
        shutil.copytree(path / "validation", training.validation, dirs_exist_ok=True)
    training.ctx.log(f"resumed at step {step}")
    return step


def _train(training: Training) -> None:
    ctx, trainer = training.ctx, training.trainer
    report = Report(ctx, trainer)
    ctx.log(f"training on {len(training.samples)} images, from step {trainer.step_count} to {training.spec.steps}")

    def on_step(step: int, loss: float) -> None:
        ctx.progress(step, training.spec.steps, "training")
        report.step(step, loss)

    def on_checkpoint(step: int) -> None:
        if validates_at(training.spec, step):
            _validate(training)
        _checkpoint(training)

    trainer.run(on_step=on_step, check=ctx.check, on_checkpoint=on_checkpoint)


def _checkpoint(training: Training) -> None:
    directory = training.ctx.workdir / "checkpoint-out"
    training.trainer.save(directory / "state")
    if training.validation.is_dir():
        shutil.copytree(training.validation, directory / "validation", dirs_exist_ok=True)
    training.ctx.save_checkpoint(directory, training.trainer.step_count)


def validates_at(spec: DiffusionTrainInput, step: int) -> bool:
    """Whether this checkpoint is the first one past another quarter of the training."""
    before = max(0, step - spec.checkpoint_every)
    return step * _VALIDATION_ROUNDS // spec.steps > before * _VALIDATION_ROUNDS // spec.steps


def _validate(training: Training) -> None:
    """An image of each validation prompt, with averaged weights where an average is kept."""
    prompts = training.spec.validation_prompts
    if not prompts:
        return
    side, step = _resolution(training.spec), training.trainer.step_count
    training.validation.mkdir(exist_ok=True)
    images: list[Image.Image] = []
    with training.trainer.averaged_weights(), _ready_to_generate(training) as loaded:
        in_parts(
            range(len(prompts)),
            batch_limit(side, side),
            lambda numbers: images.extend(_validation_images(training, loaded, numbers)),
            log=training.ctx.log,
        )
    training.ctx.log(f"made {len(images)} validation images at step {step}")
    paths = [training.validation / f"step-{step:07d}-{number:02d}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    training.ctx.tracked_images("validation", paths, step)


def _validation_images(training: Training, loaded: Loaded, numbers: Sequence[int]) -> list[Image.Image]:
    spec, parameters = training.spec, training.version.parameters
    return generate_images(
        loaded,
        [spec.validation_prompts[number] for number in numbers],
        [_seed(spec) + number for number in numbers],
        width=_resolution(spec),
        height=_resolution(spec),
        steps=int(parameters.get("default_steps", 28)),
        guidance_scale=float(parameters.get("default_guidance_scale", 4.0)),
        on_step=lambda done, total: training.ctx.check(),
    )


@contextlib.contextmanager
def _ready_to_generate(training: Training) -> Iterator[Loaded]:
    """The pipeline under training as one to generate with."""
    device, pipeline = training.ctx.device, training.pipeline
    tokens = cache.t5_tokens(pipeline, training.version.parameters.get("max_text_tokens"))
    dtype = inference_dtype(device)
    on_gpu = device.type == "cuda"
    if on_gpu:  # not tested here: no GPU
        for component in _others(pipeline):
            component.to(device)
    try:
        # The VAE and full weights under training are fp32, the rest is not: autocast joins them.
        with torch.autocast(device.type, dtype=dtype, enabled=on_gpu):
            yield Loaded(pipeline=pipeline, device=device, dtype=dtype, t5_tokens=tokens)
    finally:
        if on_gpu:
            for component in _others(pipeline):
                component.to("cpu")
            free_memory()


def _save_model(training: Training) -> Path:
    directory = training.ctx.workdir / "model"
    transformer = training.pipeline.transformer
    with training.trainer.averaged_weights():
        if training.spec.method == "lora":
            directory.mkdir()
            lora.save(transformer, directory)
        else:
            save_full_version(transformer, training.ctx.models.directory(training.version), directory)
    return directory


def _new_model(training: Training, directory: Path) -> NewModel:
    spec, version = training.spec, training.version
    is_lora = spec.method == "lora"
    parameters = dict(version.parameters)
    parameters["default_width"] = parameters["default_height"] = _resolution(spec)
    if is_lora:
        parameters |= {"rank": spec.rank, "alpha": spec.alpha or spec.rank, "use_dora": spec.use_dora}
    return NewModel(
        name=spec.output_model,
        family="diffusion",
        architecture=LORA if is_lora else version.architecture,
        base=version.ref if is_lora else None,
        licence=version.licence,
        parameters=parameters,
        source={
            "type": "train",
            "method": spec.method,
            "model": version.ref,
            "dataset": spec.dataset,
            "steps": spec.steps,
        },
        directory=directory,
    )


def _outputs(training: Training) -> list[Output]:
    if not training.validation.is_dir():
        return []
    side, seed = _resolution(training.spec), _seed(training.spec)
    return [
        Output(
            f"validation-{path.name}",
            path,
            "image/png",
            width=side,
            height=side,
            seed=seed + int(path.stem.rpartition("-")[2]),
        )
        for path in sorted(training.validation.glob("step-*.png"))
    ]


def _result(training: Training, resumed_from: int | None) -> dict[str, Any]:
    trainer, spec = training.trainer, training.spec
    return {
        "model": training.version.ref,
        "method": spec.method,
        "steps": trainer.step_count,
        "batch_size": spec.batch_size,
        "micro_batch_size": trainer.micro_batch_size,
        "samples": len(training.samples),
        "trained_parameters": sum(p.numel() for p in trainer.parameters.values()),
        "resumed_from": resumed_from,
        "loss": loss_curve(trainer.losses),
        "final_loss": _mean(trainer.losses[-max(1, len(trainer.losses) // 10) :]),
        "peak_memory_bytes": peak_memory_bytes(training.ctx.device),
        "device": device_name(training.ctx.device),
    }


def loss_curve(losses: list[float]) -> list[dict[str, float]]:
    """Mean losses of equal stretches of the training: at most 400 points, each with its stretch's last step."""
    width = max(1, -(-len(losses) // _CURVE_POINTS))
    stretches = [losses[start : start + width] for start in range(0, len(losses), width)]
    ends = [min(len(losses), (number + 1) * width) for number in range(len(stretches))]
    return [{"step": end, "loss": round(_mean(part), 6)} for end, part in zip(ends, stretches, strict=True)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _resolution(spec: DiffusionTrainInput) -> int:
    if spec.resolution is None:
        raise ValueError("the spec is not complete: submission fills in the resolution")
    return spec.resolution


def _seed(spec: DiffusionTrainInput) -> int:
    if spec.seed is None:
        raise ValueError("the spec is not complete: submission draws the seed")
    return spec.seed


def _refuse_fp16_without_gpu(ctx: JobContext, spec: DiffusionTrainInput) -> None:
    if spec.mixed_precision == "fp16" and ctx.device.type != "cuda":
        raise _bad("mixed_precision fp16 needs a GPU; this worker has none. Use bf16 or no.")


def _bad(detail: str) -> JobFailed:
    return JobFailed("bad_input", "The training cannot be done", detail, retryable=False)
