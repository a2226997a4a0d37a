"""The pipeline call: from prompts and seeds to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from PIL import Image

from calotype.errors import JobFailed
from worker.families.diffusion.cache import encode_captions
from worker.families.diffusion.load import Loaded

#: Called after each denoising step with (steps done, steps in all); may raise to stop.
OnStep = Callable[[int, int], None]

_DEFAULT_STRENGTH: Final = 0.6

#: What a text-to-image pipeline has a row of for each image.
_PER_ROW: Final = ("latents", "prompt_embeds", "pooled_prompt_embeds")

_SCHEDULERS: Final[dict[str, Any]] = {
    "flow-match-euler": FlowMatchEulerDiscreteScheduler,
    "flow-match-heun": FlowMatchHeunDiscreteScheduler,
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One image to make: what it has of its own."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    #: RGB, of the size asked for: then it is image to image.
    init_image: Image.Image | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are made: what all of a call have in common."""

    #: Pixels.
    width: int
    height: int
    steps: int
    guidance_scale: float
    #: The model's own when None.
    scheduler: str | None = None
    #: How much of the images to start from is replaced.
    strength: float | None = None


def sample(
    loaded: Loaded,
    images: Sequence[Wanted],
    sampling: Sampling,
    on_step: OnStep = lambda done, total: None,
    wanted: Callable[[int], bool] = lambda number: True,
) -> list[Image.Image | None]:
    """One pipeline call: an RGB image for each in the list, all at once; None where the model gave no numbers.

    Every image has a generator of its own, seeded with its seed, so that it does not depend on the others in
    the call beyond floating-point rounding; the generators live on the CPU, so that it does not depend on the
    device either. Either all start from an image or none does. Images that are not `wanted` any more, by their
    place in the list, may be left out from the next step on; they are None, too.

    Raises the device's own error when out of memory.
    """
    runner = _runner(loaded, sampling.scheduler, image_to_image=images[0].init_image is not None)
    guided = sampling.guidance_scale > 1
    rows = _Rows(len(images))

    def after_step(pipeline: Any, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        last = step + 1 == pipeline.num_timesteps
        if last:
            tensors["latents"] = rows.judge(tensors["latents"])
        on_step(step + 1, pipeline.num_timesteps)
        return rows.narrow(tensors, wanted, guided=guided) if _can_narrow(pipeline) and not last else tensors

    result = runner(
        **_text(loaded, images, guided=guided),
        **_start(images, sampling),
        width=sampling.width,
        height=sampling.height,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(image.seed) for image in images],
        max_sequence_length=loaded.t5_tokens,
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=list(_PER_ROW) if _can_narrow(runner) else ["latents"],
    )
    made = dict(zip(rows.numbers, result.images, strict=True))
    return [made[number] if number in rows.good else None for number in range(len(images))]


class _Rows:
    """Which image each row of a running call's tensors is, and which images came out well."""

    def __init__(self, count: int) -> None:
        self.numbers = list(range(count))
        self.good: set[int] = set()

    def judge(self, latents: torch.Tensor) -> torch.Tensor:
        """Note which are numbers; the decoder gets zeros for the others, since what it made of them is for nobody."""
        finite = torch.isfinite(latents).flatten(1).all(dim=1)
        self.good = {number for number, fine in zip(self.numbers, finite.tolist(), strict=True) if fine}
        return torch.where(finite[:, None, None, None], latents, 0.0)

    def narrow(self, tensors: dict[str, Any], wanted: Callable[[int], bool], *, guided: bool) -> dict[str, Any]:
        """Take out the rows that nobody wants; with guidance the text has the negative prompts' rows before."""
        keep = [place for place, number in enumerate(self.numbers) if wanted(number)]
        count = len(self.numbers)
        if not keep or len(keep) == count:
            return tensors
        self.numbers = [self.numbers[place] for place in keep]
        texts = [*keep, *(count + place for place in keep)] if guided else keep
        return {name: value[keep if name == "latents" else texts] for name, value in tensors.items()}


def generate_images(
    loaded: Loaded,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    width: int,
    height: int,
    steps: int,
    guidance_scale: float,
    on_step: OnStep = lambda done, total: None,
) -> list[Image.Image]:
    """Text to image in one call, by the rules of `sample`. Raises JobFailed `numerical_error`."""
    wanted = [Wanted(prompt=prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    sampling = Sampling(width=width, height=height, steps=steps, guidance_scale=guidance_scale)
    made = [image for image in sample(loaded, wanted, sampling, on_step) if image is not None]
    if len(made) < len(wanted):
        raise not_finite()
    return made


def _can_narrow(runner: Any) -> bool:
    """Whether rows can be taken out between two steps: the pipeline lets all of its tensors be replaced, and the
    scheduler keeps none."""
    scheduler = runner.scheduler
    return isinstance(runner, StableDiffusion3Pipeline) and isinstance(scheduler, FlowMatchEulerDiscreteScheduler)


def _text(loaded: Loaded, images: Sequence[Wanted], *, guided: bool) -> dict[str, torch.Tensor]:
    """The pipeline's text arguments; each different text is encoded once, however many images it is for."""
    prompts, negative = [image.prompt for image in images], [image.negative_prompt for image in images]
    texts = list(dict.fromkeys([*prompts, *(negative if guided else [])]))
    embeds, pooled = encode_captions(loaded.pipeline, texts, loaded.t5_tokens)
    rows = [texts.index(prompt) for prompt in prompts]
    arguments = {"prompt_embeds": embeds[rows], "pooled_prompt_embeds": pooled[rows]}
    if guided:
        rows = [texts.index(prompt) for prompt in negative]
        arguments |= {"negative_prompt_embeds": embeds[rows], "negative_pooled_prompt_embeds": pooled[rows]}
    return arguments


def _start(images: Sequence[Wanted], sampling: Sampling) -> dict[str, Any]:
    """The pipeline's arguments for images to start from."""
    start = [image.init_image for image in images if image.init_image is not None]
    if not start:
        return {}
    return {"image": start, "strength": _DEFAULT_STRENGTH if sampling.strength is None else sampling.strength}


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


def not_finite() -> JobFailed:
    return JobFailed(
        "numerical_error",
        "The model gave no numbers",
        "The latents are not finite after the last step. Try a lower guidance_scale or weaker adapters.",
        retryable=False,
    )
