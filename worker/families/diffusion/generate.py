"""Text to image and image to image: the pipeline call, and the handler of `diffusion.generate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
)
from PIL import Image

from calotype.errors import JobFailed
from calotype.specs import DiffusionGenerate, DiffusionGenerateInput
from worker.context import HandlerResult, JobContext, Output
from worker.failures import is_out_of_memory
from worker.families.diffusion.cache import encode_captions
from worker.families.diffusion.init_image import open_init_image
from worker.families.diffusion.load import Loaded, load_pipeline
from worker.families.diffusion.memory import (
    device_name,
    free_memory,
    peak_memory_bytes,
    reset_peak_memory,
)

T = TypeVar("T")

#: Called after each denoising step with (steps done, steps in all); may raise to stop.
OnStep = Callable[[int, int], None]

#: Images at once to begin with: so many, as long as they have no more pixels together than the second number.
_LARGEST_BATCH: Final = 16
_BATCH_PIXELS: Final = 8 * 1024 * 1024

_DEFAULT_STRENGTH: Final = 0.6

_SCHEDULERS: Final[dict[str, Any]] = {
    "flow-match-euler": FlowMatchEulerDiscreteScheduler,
    "flow-match-heun": FlowMatchHeunDiscreteScheduler,
}


def generate_images(
    loaded: Loaded,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    width: int,
    height: int,
    steps: int,
    guidance_scale: float,
    negative_prompt: str = "",
    scheduler: str | None = None,
    init_images: Sequence[Image.Image] | None = None,
    strength: float | None = None,
    on_step: OnStep = lambda done, total: None,
) -> list[Image.Image]:
    """One pipeline call: an RGB image for each prompt and seed, all at once.

    Every image has a generator of its own, seeded with its seed, so that it does not depend on the others in
    the call beyond floating-point rounding; the generators live on the CPU, so that it does not depend on the
    device either. With `init_images`, of the size asked for, it is image to image.

    Raises JobFailed `numerical_error`, and the device's own error when out of memory.
    """
    runner = _runner(loaded, scheduler, image_to_image=init_images is not None)
    extra = {}
    if init_images is not None:
        extra = {"image": list(init_images), "strength": _DEFAULT_STRENGTH if strength is None else strength}

    def after_step(pipeline: Any, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        total = pipeline.num_timesteps
        if step + 1 == total and not bool(torch.isfinite(tensors["latents"]).all()):
            raise _not_finite()
        on_step(step + 1, total)
        return tensors

    result = runner(
        **_text(loaded, prompts, negative_prompt if guidance_scale > 1 else None),
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        max_sequence_length=loaded.t5_tokens,
        callback_on_step_end=after_step,
        **extra,
    )
    return list(result.images)


def _text(loaded: Loaded, prompts: Sequence[str], negative_prompt: str | None) -> dict[str, torch.Tensor]:
    """The pipeline's text arguments; each different text is encoded once, however many images it is for."""
    texts = list(dict.fromkeys([*prompts, *([] if negative_prompt is None else [negative_prompt])]))
    embeds, pooled = encode_captions(loaded.pipeline, texts, loaded.t5_tokens)
    rows = [texts.index(prompt) for prompt in prompts]
    arguments = {"prompt_embeds": embeds[rows], "pooled_prompt_embeds": pooled[rows]}
    if negative_prompt is not None:
        rows = [texts.index(negative_prompt)] * len(prompts)
        arguments |= {"negative_prompt_embeds": embeds[rows], "negative_pooled_prompt_embeds": pooled[rows]}
    return arguments


def _runner(loaded: Loaded, scheduler: str | None, *, image_to_image: bool) -> Any:
    """A pipeline over the same modules with a scheduler of its own: schedulers carry state between steps."""
    own = loaded.pipeline.scheduler
    if scheduler is None or isinstance(own, _SCHEDULERS[scheduler]):
        fresh = type(own).from_config(own.config)
    else:
        fresh = _SCHEDULERS[scheduler](num_train_timesteps=own.config.num_train_timesteps, shift=own.config.shift)
    pipeline_class: Any = StableDiffusion3Img2ImgPipeline if image_to_image else type(loaded.pipeline)
    runner = pipeline_class(**{**loaded.pipeline.components, "scheduler": fresh})
    runner.set_progress_bar_config(disable=True)
    return runner


@dataclass(frozen=True)
class Batched:
    """Images with the number made at once when all had been made."""

    images: list[Image.Image]
    batch_size: int


def generate_in_batches(
    count: int,
    batch_size: int,
    make: Callable[[range], list[Image.Image]],
    log: Callable[[str], None] = lambda message: None,
) -> Batched:
    """Make `count` images, `batch_size` at once, by `make(range of image numbers)`; half as many when out of
    memory.

    What was made stays; the part that failed is made again in smaller parts. Raises JobFailed `out_of_memory`
    when not even one image fits.
    """
    images: list[Image.Image] = []
    while len(images) < count:
        numbers = range(len(images), min(count, len(images) + batch_size))
        try:
            images += make(numbers)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except block: until it ends the exception keeps the failed call's tensors alive.
        free_memory()
        if len(numbers) == 1:
            raise _does_not_fit()
        batch_size = (len(numbers) + 1) // 2
        log(f"out of memory with {len(numbers)} images at once: trying {batch_size}")
    return Batched(images, batch_size)


def first_batch_size(count: int, width: int, height: int) -> int:
    """How many images to make at once before anything is known about memory."""
    return max(1, min(count, _LARGEST_BATCH, _BATCH_PIXELS // (width * height)))


def run(ctx: JobContext) -> HandlerResult:
    """The handler of `diffusion.generate`: `num_images` PNGs of one prompt; image i is made with seed + i."""
    spec = ctx.spec
    if not isinstance(spec, DiffusionGenerate):
        raise TypeError(f"diffusion.generate was given a {type(spec).__name__}")
    request = spec.input
    started = time.perf_counter()
    reset_peak_memory(ctx.device)
    loaded = load_pipeline(ctx, spec.model, request.adapters)
    ctx.check()
    load_seconds = time.perf_counter() - started
    started = time.perf_counter()
    made = _make_all(ctx, loaded, request)
    seconds = time.perf_counter() - started
    outputs = [_publish(ctx, image, number, _seed(request)) for number, image in enumerate(made.images)]
    result = {
        "model": spec.model,
        "adapters": [adapter.model_dump() for adapter in request.adapters],
        # A prompt longer than the model reads is cut by it: say so.
        "prompt_tokens": prompt_tokens(loaded, request.prompt),
        "max_prompt_tokens": max_prompt_tokens(loaded),
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "batch_size": made.batch_size,
        "load_seconds": round(load_seconds, 4),
        "seconds": round(seconds, 4),
        "seconds_per_image": round(seconds / request.num_images, 4),
        "peak_memory_bytes": peak_memory_bytes(ctx.device),
        "device": device_name(ctx.device),
    }
    return HandlerResult(outputs, result)


def prompt_tokens(loaded: Loaded, prompt: str) -> int:
    """The tokens of a prompt by the encoder that reads most of it, begin and end marks included."""
    pipeline = loaded.pipeline
    tokenizer = pipeline.tokenizer_3 if _t5_reads_more(loaded) else pipeline.tokenizer
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)


def max_prompt_tokens(loaded: Loaded) -> int:
    """How many tokens of a prompt the model reads."""
    return loaded.t5_tokens if _t5_reads_more(loaded) else int(loaded.pipeline.tokenizer_max_length)


def _t5_reads_more(loaded: Loaded) -> bool:
    return loaded.pipeline.text_encoder_3 is not None and loaded.t5_tokens > loaded.pipeline.tokenizer_max_length


def _make_all(ctx: JobContext, loaded: Loaded, request: DiffusionGenerateInput) -> Batched:
    width, height, steps = _complete(request.width), _complete(request.height), _complete(request.steps)
    init = None if request.init_image is None else open_init_image(ctx, request.init_image, width, height)

    def make(numbers: range) -> list[Image.Image]:
        def on_step(done: int, total: int) -> None:
            ctx.progress(numbers.start * total + done * len(numbers), request.num_images * total, "generating")
            ctx.check()

        return generate_images(
            loaded,
            [request.prompt] * len(numbers),
            [_seed(request) + number for number in numbers],
            width=width,
            height=height,
            steps=steps,
            guidance_scale=_complete(request.guidance_scale),
            negative_prompt=request.negative_prompt,
            scheduler=request.scheduler,
            init_images=None if init is None else [init] * len(numbers),
            strength=request.strength,
            on_step=on_step,
        )

    return generate_in_batches(request.num_images, first_batch_size(request.num_images, width, height), make, ctx.log)


def _publish(ctx: JobContext, image: Image.Image, number: int, seed: int) -> Output:
    name = f"image-{number:03d}.png"
    image.save(ctx.workdir / name)
    return Output(name, ctx.workdir / name, "image/png", width=image.width, height=image.height, seed=seed + number)


def _seed(request: DiffusionGenerateInput) -> int:
    return _complete(request.seed)


def _complete(value: T | None) -> T:
    """A field that submission fills in."""
    if value is None:
        raise ValueError("the spec is not complete: submission fills in size, steps, guidance and seed")
    return value


def _not_finite() -> JobFailed:
    return JobFailed(
        "numerical_error",
        "The model gave no numbers",
        "The latents are not finite after the last step. Try a lower guidance_scale or weaker adapters.",
        retryable=False,
    )


def _does_not_fit() -> JobFailed:
    return JobFailed(
        "out_of_memory",
        "Out of memory",
        "Not even one image at a time fits into memory. Ask for a smaller size, or use a larger device.",
        retryable=False,
    )
