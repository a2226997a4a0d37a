"""Handlers for the fault tests: those of `worker_handlers`, with a written beginning and a signed result."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from calotype import queue, registry
from calotype.database import transaction
from calotype.errors import CalotypeError
from calotype.jobs import Progress
from calotype.specs import DiffusionGenerate
from tests.integration import worker_handlers
from worker.batch import Batch
from worker.context import HandlerResult, JobContext

QUEUE = worker_handlers.QUEUE
HANDLER = f"{__name__}:run"
BATCH_HANDLER = f"{__name__}:run_batch"

#: Where beginnings are written; set by the worker process.
beginnings = Path()


def run(ctx: JobContext) -> HandlerResult:
    """Does what the prompt says, between a written beginning and a signature under every output."""
    assert isinstance(ctx.spec, DiffusionGenerate)
    _note_beginning(ctx)
    plan = json.loads(ctx.spec.input.prompt)
    what = plan.pop("do")
    return _sign(ctx, (globals().get(what) or getattr(worker_handlers, what))(ctx, **plan))


def run_batch(batch: Batch) -> None:
    """Share one call, in which each job is done when its `seconds` are over and the file at its `path` is there.

    `room`: the call runs out of memory when it has more jobs than the least of these.
    """
    plans: dict[UUID, dict[str, Any]] = {}
    for ctx in batch.contexts:
        assert isinstance(ctx.spec, DiffusionGenerate)
        plans[ctx.job.id] = json.loads(ctx.spec.input.prompt)
        _note_beginning(ctx)
    size = len(plans)
    if size > min(plan.get("room", size) for plan in plans.values()):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB")
    for plan in plans.values():
        if "began" in plan:
            Path(plan["began"]).write_text(str(size))
    began = time.monotonic()
    while batch.contexts:
        time.sleep(0.02)
        batch.check()
        for ctx in batch.contexts:
            plan = plans[ctx.job.id]
            if time.monotonic() - began >= plan.get("seconds", 0.0) and Path(plan.get("path", "/")).exists():
                batch.finish(ctx, partial(_shared, ctx, size))


def _shared(ctx: JobContext, size: int) -> HandlerResult:
    made = _sign(ctx, worker_handlers.image(ctx))
    made.result["size"] = size
    return made


def _sign(ctx: JobContext, made: HandlerResult) -> HandlerResult:
    for output in made.outputs:
        with output.path.open("a") as file:
            file.write("\n" + json.dumps({"job": str(ctx.job.id), "epoch": ctx.job.epoch}))
    made.result.update(pid=os.getpid(), epoch=ctx.job.epoch, names=[output.name for output in made.outputs])
    return made


def _note_beginning(ctx: JobContext) -> None:
    line = json.dumps({"epoch": ctx.job.epoch, "pid": os.getpid()}) + "\n"
    # One write in append mode: beginnings of two processes do not mix.
    file = os.open(beginnings / str(ctx.job.id), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def work(ctx: JobContext, seconds: float, steps: int = 10, text: str = "") -> HandlerResult:
    """Take a while, step by step, with progress."""
    for step in range(steps):
        ctx.check()
        time.sleep(seconds / steps)
        ctx.progress(step + 1, steps, "working")
    return worker_handlers.image(ctx, text)


def large(ctx: JobContext, megabytes: int, nonce: int) -> HandlerResult:
    """An artifact whose upload takes a while."""
    return worker_handlers.image(ctx, f"{nonce:07}\n" * (megabytes << 17))


def stubborn(ctx: JobContext, path: str, began: str, answers: str) -> HandlerResult:
    """In its first epoch: wait, deaf to any wish to stop, then try every write of a worker and note the answers."""
    if ctx.job.epoch > 1:
        return worker_handlers.image(ctx, "in time")
    Path(began).touch()
    while not Path(path).exists():
        ctx.signals.alive()
        time.sleep(0.02)
    job, epoch = ctx.job.id, ctx.job.epoch
    record = {"step": 1, "epoch": epoch, "directory": False, "objects": []}
    tries: dict[str, Any] = {
        "heartbeat": lambda conn: queue.heartbeat(conn, job, epoch, ctx.settings.lease_seconds),
        "look": lambda conn: queue.look(conn, job, epoch),
        "progress": lambda conn: queue.progress(conn, job, epoch, Progress(fraction=1, step=1, total=1, stage="late")),
        "checkpoint": lambda conn: queue.checkpoint(conn, job, epoch, record),
        "release": lambda conn: queue.release(conn, job, epoch),
    }
    Path(answers).write_text(json.dumps({name: _answer(ctx, move) for name, move in tries.items()}))
    return worker_handlers.image(ctx, "too late")


def _answer(ctx: JobContext, move: Any) -> str:
    try:
        with transaction(ctx.engine) as conn:
            return f"accepted: {move(conn)}"
    except CalotypeError as exc:
        return type(exc).__name__


def load(ctx: JobContext, model: str) -> HandlerResult:
    """Fetch a model's files into the cache of this node, as generating does."""
    with transaction(ctx.engine) as conn:
        version = registry.find_version(conn, ctx.job.tenant_id, model)
    folder = ctx.models.directory(version)
    return worker_handlers.image(ctx, (folder / "weights.safetensors").read_bytes().hex()[:16])
