"""The handler of `gan.generate`: images of one generator, for one job or for several in one call.

Whatever jobs ask for — truncation, label, mixed styles, the frames of an animation — becomes one point an image
(`plan.py`), and a call takes the points of any jobs. They are made in as few calls as memory allows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from calotype import keys
from calotype.errors import JobFailed
from calotype.registry import ModelVersion
from calotype.specs import GanGenerate
from worker.batch import Batch
from worker.context import HandlerResult, JobContext, Output
from worker.families.diffusion.memory import device_name, peak_memory_bytes, reset_peak_memory
from worker.families.gan.animation import ANIMATION, save_animation
from worker.families.gan.load import Loaded, load
from worker.families.gan.plan import Plan, plan
from worker.families.gan.sampling import to_images
from worker.families.parts import in_parts


@dataclass(kw_only=True, eq=False)
class Task:
    """One job's images, wanted and made."""

    ctx: JobContext
    spec: GanGenerate
    plan: Plan
    #: In the order of the plan's points.
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
        return len(self.made) == len(self.plan.points)


#: A job with the number of one of its points.
Item = tuple[Task, int]


def run_batch(batch: Batch) -> None:
    """Make `num_images` PNGs for each job, image i with seed + i, and its animation."""
    found = _versions(batch)
    # Submission gave them one key because they want the same files: this is one group.
    found.sort(key=lambda pair: pair[0].key)
    for _, group in groupby(found, key=lambda pair: pair[0].key):
        alike = list(group)
        _run_alike(batch, alike[0][0], [ctx for _, ctx in alike])


def _versions(batch: Batch) -> list[tuple[ModelVersion, JobContext]]:
    """Each job with the version that its own tenant means; one for which there is none fails here."""
    found = []
    for ctx in batch.contexts:
        with batch.own(ctx):
            found.append((ctx.resolve(_spec(ctx).model), ctx))
    return found


def _run_alike(batch: Batch, version: ModelVersion, contexts: Sequence[JobContext]) -> None:
    reset_peak_memory(contexts[0].device)
    started = time.perf_counter()
    loaded = load(contexts[0], version)
    load_seconds = time.perf_counter() - started
    batch.check()
    tasks = _tasks(batch, loaded, contexts)

    def make(part: Sequence[Item]) -> None:
        _call(batch, loaded, part)
        for task in _tasks_of(part):
            if task.complete and batch.is_open(task.ctx):
                batch.finish(task.ctx, partial(_publish, task, _result(task, loaded, load_seconds)))
        # A call is too short to be stopped half-way; jobs leave between two.
        batch.look_after(batch.contexts)

    def log(message: str) -> None:
        for ctx in batch.contexts:
            ctx.log(message)

    in_parts(
        [(task, number) for task in tasks for number in range(len(task.plan.points))],
        keys.batch_limit(loaded.stored.resolution, loaded.stored.resolution),
        make,
        wanted=lambda item: batch.is_open(item[0].ctx),
        log=log,
    )


def _tasks(batch: Batch, loaded: Loaded, contexts: Sequence[JobContext]) -> list[Task]:
    """What each job wants; one that wants what the model does not have fails here."""
    tasks = []
    for ctx in contexts:
        if batch.is_open(ctx):
            with batch.own(ctx):
                spec = _spec(ctx)
                tasks.append(Task(ctx=ctx, spec=spec, plan=plan(loaded, spec.input)))
    return tasks


def _call(batch: Batch, loaded: Loaded, part: Sequence[Item]) -> None:
    """One call of the network."""
    started = time.perf_counter()
    points = torch.stack([task.plan.points[number] for task, number in part])
    images = to_images(loaded.sampler.images(points))
    seconds = time.perf_counter() - started
    for task in _tasks_of(part):
        positions = [position for position, (owner, _) in enumerate(part) if owner is task]
        if not task.batch_size:
            task.batch_position = positions[0]
        task.batch_size = max(task.batch_size, len(part))
        task.seconds += seconds
        task.own_seconds += seconds * len(positions) / len(part)
        _take(batch, task, [images[position] for position in positions])


def _take(batch: Batch, task: Task, images: Sequence[Image.Image | None]) -> None:
    good = [image for image in images if image is not None]
    task.made += good
    if len(good) < len(images):
        batch.fail(task.ctx, _not_finite())
        return
    task.ctx.progress(len(task.made), len(task.plan.points), "generating")


def _tasks_of(part: Sequence[Item]) -> list[Task]:
    return list(dict.fromkeys(task for task, _ in part))


def _result(task: Task, loaded: Loaded, load_seconds: float) -> dict[str, Any]:
    """What the job is told. Of others it learns how many images were made beside its own, and no more."""
    return {
        "model": task.spec.model,
        "truncation_psi": task.spec.input.truncation_psi,
        "labels": task.plan.labels,
        "frames": task.plan.num_frames,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "compiled": loaded.compiled,
        "batch_size": task.batch_size,
        "batch_position": task.batch_position,
        "load_seconds": round(load_seconds, 4),
        "seconds": round(task.seconds, 4),
        "seconds_per_image": round(task.own_seconds / len(task.plan.points), 5),
        "peak_memory_bytes": peak_memory_bytes(loaded.device),
        "device": device_name(loaded.device),
    }


def _publish(task: Task, result: dict[str, Any]) -> HandlerResult:
    images, frames = task.made[: task.plan.num_images], task.plan.frames_of(task.made)
    outputs = [
        _save(task.ctx, image, number, seed)
        for number, (image, seed) in enumerate(zip(images, task.plan.seeds, strict=True))
    ]
    interpolation = task.spec.input.interpolation
    if interpolation is not None:
        path = task.ctx.workdir / ANIMATION
        save_animation(path, frames, interpolation.frames_per_second, loop=interpolation.loop)
        width, height = frames[0].size
        outputs.append(Output(ANIMATION, path, "image/webp", width=width, height=height, seed=task.plan.seeds[0]))
    return HandlerResult(outputs, result)


def _save(ctx: JobContext, image: Image.Image, number: int, seed: int) -> Output:
    name = f"image-{number:03d}.png"
    image.save(ctx.workdir / name)
    return Output(name, ctx.workdir / name, "image/png", width=image.width, height=image.height, seed=seed)


def _not_finite() -> JobFailed:
    return JobFailed(
        "numerical_error",
        "The model gave no numbers",
        "An image of the generator is not finite. Its weights are damaged, or it was trained too far: use an earlier "
        "version of the model.",
        retryable=False,
    )


def _spec(ctx: JobContext) -> GanGenerate:
    if not isinstance(ctx.spec, GanGenerate):
        raise TypeError(f"gan.generate was given a {type(ctx.spec).__name__}")
    return ctx.spec
