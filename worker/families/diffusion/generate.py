"""The handler of `diffusion.generate`: text to image and image to image, for one job or for several in one call.

Jobs that share a call agree in everything but prompt, negative prompt, seed and the image to start from; these each
image has of its own. The images of all jobs stand in one list, which is made in as few calls as memory allows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from PIL import Image

from calotype import keys
from calotype.specs import DiffusionGenerate, DiffusionGenerateInput
from worker.batch import Batch
from worker.context import HandlerResult, JobContext, Output
from worker.families.diffusion.init_image import open_init_image
from worker.families.diffusion.load import Loaded, Plan, load, plan
from worker.families.diffusion.memory import device_name, peak_memory_bytes, reset_peak_memory
from worker.families.diffusion.sampling import OnStep, Sampling, Wanted, not_finite, sample
from worker.families.parts import in_parts

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Task:
    """One job's images, wanted and made."""

    ctx: JobContext
    spec: DiffusionGenerate
    wanted: list[Wanted]
    prompt_tokens: int
    made: list[Image.Image] = field(default_factory=list)
    #: Images of the largest call that made some of this job's.
    batch_size: int = 0
    #: Where in its call the job's first image stood, from 0.
    batch_position: int = 0
    #: How long the calls took, and which part of that was for this job's images.
    seconds: float = 0.0
    own_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return len(self.made) == len(self.wanted)


#: A job with the number of one of its images.
Item = tuple[Task, int]


class _UnwantedError(Exception):
    """Those who wanted the images of a call have all left; others of the batch wait for theirs."""


def run_batch(batch: Batch) -> None:
    """Make `num_images` PNGs of each job's prompt; image i is made with seed + i."""
    planned = _planned(batch)
    # Submission gave them one key because they want the same files laid over each other: this is one group.
    planned.sort(key=lambda pair: pair[0].key)
    for _, group in groupby(planned, key=lambda pair: pair[0].key):
        alike = list(group)
        _run_alike(batch, alike[0][0], [ctx for _, ctx in alike])


def _planned(batch: Batch) -> list[tuple[Plan, JobContext]]:
    """Each job with the files that its own tenant means; one for which they cannot be found fails here."""
    plans: dict[Any, Plan] = {}
    planned = []
    for ctx in batch.contexts:
        with batch.own(ctx):
            spec = _spec(ctx)
            asked = (ctx.job.tenant_id, spec.model, spec.input.adapters)
            if asked not in plans:
                plans[asked] = plan(ctx, spec.model, spec.input.adapters)
            planned.append((plans[asked], ctx))
    return planned


def _run_alike(batch: Batch, files: Plan, contexts: Sequence[JobContext]) -> None:
    first = contexts[0]
    reset_peak_memory(first.device)
    started = time.perf_counter()
    loaded = load(first, files)
    load_seconds = time.perf_counter() - started
    batch.check()
    tasks = _tasks(batch, loaded, contexts)
    if not tasks:
        return
    request = tasks[0].spec.input
    sampling = Sampling(
        width=_complete(request.width),
        height=_complete(request.height),
        steps=_complete(request.steps),
        guidance_scale=_complete(request.guidance_scale),
        scheduler=request.scheduler,
        strength=request.strength,
    )

    def make(part: Sequence[Item]) -> None:
        _call(batch, loaded, sampling, part)
        for task in _tasks_of(part):
            if task.complete and batch.is_open(task.ctx):
                batch.finish(task.ctx, partial(_publish, task, _result(task, loaded, load_seconds)))

    def log(message: str) -> None:
        for ctx in batch.contexts:
            ctx.log(message)

    in_parts(
        [(task, number) for task in tasks for number in range(len(task.wanted))],
        keys.batch_limit(sampling.width, sampling.height),
        make,
        wanted=lambda item: batch.is_open(item[0].ctx),
        log=log,
    )


def _tasks(batch: Batch, loaded: Loaded, contexts: Sequence[JobContext]) -> list[Task]:
    """What each job wants; one whose image to start from cannot be had, or whose prompt cannot be read, fails here."""
    tasks = []
    for ctx in contexts:
        if batch.is_open(ctx):
            with batch.own(ctx):
                tasks.append(_task(ctx, loaded))
    return tasks


def _task(ctx: JobContext, loaded: Loaded) -> Task:
    spec = _spec(ctx)
    request = spec.input
    init = None
    if request.init_image is not None:
        init = open_init_image(ctx, request.init_image, _complete(request.width), _complete(request.height))
    wanted = [
        Wanted(prompt=request.prompt, negative_prompt=request.negative_prompt, seed=seed, init_image=init)
        for seed in _seeds(request)
    ]
    return Task(ctx=ctx, spec=spec, wanted=wanted, prompt_tokens=prompt_tokens(loaded, request.prompt))


def _call(batch: Batch, loaded: Loaded, sampling: Sampling, part: Sequence[Item]) -> None:
    """One call of the model. Jobs may leave meanwhile; when all of them have, the call stops."""
    started = time.perf_counter()
    wanted = [task.wanted[number] for task, number in part]

    def is_wanted(place: int) -> bool:
        return batch.is_open(part[place][0].ctx)

    try:
        images = sample(loaded, wanted, sampling, _on_step(batch, part), is_wanted)
    except _UnwantedError:
        return
    seconds = time.perf_counter() - started
    for task in _tasks_of(part):
        positions = [position for position, (owner, _) in enumerate(part) if owner is task]
        _take(batch, task, [images[position] for position in positions])
        if not task.batch_size:
            task.batch_position = positions[0]
        task.batch_size = max(task.batch_size, len(part))
        task.seconds += seconds
        task.own_seconds += seconds * len(positions) / len(part)


def _on_step(batch: Batch, part: Sequence[Item]) -> OnStep:
    tasks = _tasks_of(part)
    counts = {task: sum(owner is task for owner, _ in part) for task in tasks}

    def on_step(done: int, total: int) -> None:
        for task in tasks:
            if batch.is_open(task.ctx):
                steps = len(task.made) * total + done * counts[task]
                task.ctx.progress(steps, len(task.wanted) * total, "generating")
        batch.check()
        if not any(batch.is_open(task.ctx) for task in tasks):
            raise _UnwantedError

    return on_step


def _take(batch: Batch, task: Task, images: Sequence[Image.Image | None]) -> None:
    good = [image for image in images if image is not None]
    task.made += good
    if len(good) < len(images) and batch.is_open(task.ctx):
        batch.fail(task.ctx, not_finite())


def _tasks_of(part: Sequence[Item]) -> list[Task]:
    return list(dict.fromkeys(task for task, _ in part))


def _result(task: Task, loaded: Loaded, load_seconds: float) -> dict[str, Any]:
    """What the job is told. Of others it learns how many images were made beside its own, and no more."""
    request = task.spec.input
    return {
        "model": task.spec.model,
        "adapters": [adapter.model_dump() for adapter in request.adapters],
        # A prompt longer than the model reads is cut by it: say so.
        "prompt_tokens": task.prompt_tokens,
        "max_prompt_tokens": max_prompt_tokens(loaded),
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "batch_size": task.batch_size,
        "batch_position": task.batch_position,
        "load_seconds": round(load_seconds, 4),
        "seconds": round(task.seconds, 4),
        "seconds_per_image": round(task.own_seconds / len(task.wanted), 4),
        "peak_memory_bytes": peak_memory_bytes(loaded.device),
        "device": device_name(loaded.device),
    }


def _publish(task: Task, result: dict[str, Any]) -> HandlerResult:
    outputs = [_save(task.ctx, image, number, task.wanted[number].seed) for number, image in enumerate(task.made)]
    return HandlerResult(outputs, result)


def _save(ctx: JobContext, image: Image.Image, number: int, seed: int) -> Output:
    name = f"image-{number:03d}.png"
    image.save(ctx.workdir / name)
    return Output(name, ctx.workdir / name, "image/png", width=image.width, height=image.height, seed=seed)


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


def _spec(ctx: JobContext) -> DiffusionGenerate:
    if not isinstance(ctx.spec, DiffusionGenerate):
        raise TypeError(f"diffusion.generate was given a {type(ctx.spec).__name__}")
    return ctx.spec


def _seeds(request: DiffusionGenerateInput) -> range:
    seed = _complete(request.seed)
    return range(seed, seed + request.num_images)


def _complete(value: T | None) -> T:
    """A field that submission fills in."""
    if value is None:
        raise ValueError("the spec is not complete: submission fills in size, steps, guidance and seed")
    return value
