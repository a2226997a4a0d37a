"""Handlers for tests of the worker: what to do is written, as JSON, in the prompt. No tensors."""

from __future__ import annotations

import errno
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from calotype.errors import DependencyDown, JobFailed
from calotype.specs import DiffusionGenerate
from worker.batch import Batch
from worker.context import HandlerResult, JobContext, NewModel, Output, ShuttingDown

QUEUE = "diffusion.generate"
HANDLER = "worker_handlers:run"
BATCH_HANDLER = "worker_handlers:run_batch"


def spec(do: str, **plan: Any) -> dict[str, Any]:
    """The spec of a job that does `do`."""
    text = json.dumps({"do": do, **plan}, default=str)
    return {
        "kind": "generate",
        "family": "diffusion",
        "model": "starter-diffusion@1",
        "input": {
            "prompt": text,
            "num_images": 1,
            "width": 64,
            "height": 64,
            "steps": 2,
            "guidance_scale": 3.5,
            "seed": 1,
        },
    }


def run(ctx: JobContext) -> HandlerResult:
    assert isinstance(ctx.spec, DiffusionGenerate)
    plan = json.loads(ctx.spec.input.prompt)
    result: HandlerResult = globals()[plan.pop("do")](ctx, **plan)
    return result


def run_batch(batch: Batch) -> None:
    """Share one call, which goes on until every job's file (`path`) is there; a job without one is done at once.

    `calls`: a file that gets a line with the number of jobs of each call. `prepare`: fails before the call. `poison`:
    the call fails for all. `hang`: it never comes back.
    """
    plans: dict[Any, dict[str, Any]] = {}
    for ctx in batch.contexts:
        with batch.own(ctx):
            plans[ctx.job.id] = _batch_plan(ctx)
    size = len(batch.contexts)
    for plan in plans.values():
        _begin(plan, size)
    while any("hang" in plan for plan in plans.values()):
        time.sleep(1.0)
    while batch.contexts:
        time.sleep(0.02)
        for ctx in batch.contexts:
            ctx.progress(1, 2, "sharing")
        batch.check()
        for ctx in batch.contexts:
            plan = plans[ctx.job.id]
            if "poison" in plan:
                raise error(ctx, plan["poison"])
            if "path" not in plan or Path(plan["path"]).exists():
                batch.finish(ctx, partial(_shared, ctx, size))


def _batch_plan(ctx: JobContext) -> dict[str, Any]:
    assert isinstance(ctx.spec, DiffusionGenerate)
    plan: dict[str, Any] = json.loads(ctx.spec.input.prompt)
    if "prepare" in plan:
        raise error(ctx, plan["prepare"])
    return plan


def _begin(plan: dict[str, Any], size: int) -> None:
    if "calls" in plan:
        with Path(plan["calls"]).open("a") as file:
            file.write(f"{size}\n")
    if "began" in plan:
        Path(plan["began"]).touch()


def _shared(ctx: JobContext, size: int) -> HandlerResult:
    made = image(ctx)
    made.result["size"] = size
    return made


def image(ctx: JobContext, text: str = "an image") -> HandlerResult:
    path = ctx.workdir / "image-0.png"
    path.write_text(text)
    output = Output("image-0.png", path, "image/png", 64, 64, 1)
    return HandlerResult([output], {"pid": os.getpid(), "epoch": ctx.job.epoch})


def model(ctx: JobContext, name: str) -> HandlerResult:
    folder = ctx.workdir / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"weights")
    new = NewModel(name, "diffusion", "sd3", None, "Apache-2.0", {"default_width": 64}, {"type": "train"}, folder)
    return HandlerResult([], {}, new)


def until(ctx: JobContext, path: str, began: str | None = None, deaf: bool = False) -> HandlerResult:
    """Work until a file appears; `deaf`: without looking whether to stop."""
    if began is not None:
        Path(began).write_text(str(os.getpid()))
    while not Path(path).exists():
        time.sleep(0.02)
        if not deaf:
            ctx.check()
    return image(ctx)


def count(ctx: JobContext, total: int, path: str, stop_at: int) -> HandlerResult:
    """Count to `total`, with a checkpoint at each step; wait at `stop_at` until a file appears."""
    found = ctx.load_checkpoint()
    first = step = int((found[0] / "step").read_text()) if found is not None else 0
    folder = ctx.workdir / "state"
    folder.mkdir()
    while step < total:
        try:
            ctx.check()
        except ShuttingDown:
            (folder / "step").write_text(str(step))
            ctx.save_checkpoint(folder, step)
            raise
        if step == stop_at and not Path(path).exists():
            time.sleep(0.02)
            continue
        step += 1
        ctx.progress(step, total, "counting")
    done = image(ctx)
    done.result["first"] = first
    return done


def save_each(ctx: JobContext, steps: int) -> HandlerResult:
    for step in range(1, steps + 1):
        path = ctx.workdir / "state.bin"
        path.write_text(str(step))
        ctx.save_checkpoint(path, step)
    return image(ctx)


def fail(ctx: JobContext, how: str, times: int = 1_000) -> HandlerResult:
    """Raise something, on the first `times` attempts."""
    if ctx.job.attempt > times:
        return image(ctx)
    raise error(ctx, how)


def error(ctx: JobContext, how: str) -> Exception:
    return {
        "bad_input": JobFailed("bad_input", "Bad input", "The image is no image.", retryable=False),
        "unknown": KeyError("no such thing"),
        "leak": RuntimeError(f"cannot reach {ctx.settings.database_url} with {ctx.settings.s3_secret_key}"),
        "memory": MemoryError(),
        "disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "dependency": DependencyDown("The model hub is away."),
        "device": RuntimeError("CUDA error: an illegal memory access was encountered"),
    }[how]


def talk(ctx: JobContext, lines: list[str], times: int = 1, path: str | None = None) -> HandlerResult:
    """Say something, wait until a file appears, say one thing more."""
    for number in range(times):
        for line in lines:
            ctx.log(line.replace("NUMBER", str(number)))
    ctx.metrics({"step": 1, "loss": 0.5, "norm": float("inf"), "unknown": None})
    while path is not None and not Path(path).exists():
        time.sleep(0.02)
        ctx.check()
    ctx.log("the last word")
    return image(ctx)


def hang(ctx: JobContext, began: str) -> HandlerResult:
    """Never come back."""
    Path(began).touch()
    while True:
        time.sleep(1.0)
