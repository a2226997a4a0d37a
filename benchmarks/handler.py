"""The handler of `diffusion.generate` in measurements: the stand-in's work, and small images."""

from __future__ import annotations

import io
from functools import cache, partial
from typing import Any

from PIL import Image

from benchmarks.standin import Plan, work
from calotype.specs import DiffusionGenerate
from worker.batch import Batch
from worker.context import HandlerResult, JobContext, Output

SIDE = 64


def run_batch(batch: Batch) -> None:
    """One call for all jobs, as long as the longest of their plans says; lets jobs go between two steps."""
    contexts = batch.contexts
    plan = max((Plan.read(_spec(ctx).input.prompt) for ctx in contexts), key=lambda plan: plan.seconds)
    result = {**work(plan, batch.check), "jobs": len(contexts)}
    for ctx in batch.contexts:
        batch.finish(ctx, partial(_publish, ctx, result))


def _publish(ctx: JobContext, result: dict[str, Any]) -> HandlerResult:
    return HandlerResult([_image(ctx, number) for number in range(_spec(ctx).input.num_images)], dict(result))


def _spec(ctx: JobContext) -> DiffusionGenerate:
    if not isinstance(ctx.spec, DiffusionGenerate):
        raise TypeError(f"diffusion.generate was given a {type(ctx.spec).__name__}")
    return ctx.spec


def _image(ctx: JobContext, number: int) -> Output:
    path = ctx.workdir / f"image-{number:03d}.png"
    path.write_bytes(_png())
    return Output(path.name, path, "image/png", width=SIDE, height=SIDE, seed=number)


@cache
def _png() -> bytes:
    """A picture as large as those of the starter model, some kilobytes."""
    buffer = io.BytesIO()
    Image.effect_noise((SIDE, SIDE), 40.0).convert("RGB").save(buffer, "png")
    return buffer.getvalue()
