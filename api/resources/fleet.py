"""Queues and workers: what runs, how much waits for it, and what stops it for a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from flask import Blueprint
from flask.typing import ResponseReturnValue
from pydantic import Field, StringConstraints

from api import paging, reading, schemas, serialize
from api.auth import principal
from api.calls import Answer, JsonBody, call
from api.examples import PAUSE_EXAMPLE
from api.paging import PageQuery
from api.services import services
from calotype import pauses, queue, registry, workers
from calotype.database import transaction
from calotype.errors import NotFound
from calotype.tenants import Scope

blueprint = Blueprint("fleet", __name__)


class QueueListQuery(PageQuery):
    """Which queues; by name."""


class WorkerListQuery(PageQuery):
    """Which workers; the newest first."""


class PauseRequest(reading.Body):
    """Why a queue is paused."""

    reason: Annotated[str, StringConstraints(max_length=500)] = Field(
        default="", description="Shown to everybody who looks at the queue or asks why a job waits."
    )


@blueprint.get("/queues")
@call(
    "Fleet",
    "List queues",
    scope=Scope.JOBS_READ,
    query=QueueListQuery,
    description="The numbers are over all tenants. Waiting jobs are counted up to a bound.",
    answers=[Answer(status=200, description="Every queue that is served.", model=schemas.QueuePage)],
)
def list_queues(query: QueueListQuery) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = queue.queue_stats(conn)
    return paging.answer(found, query, key=lambda entry: entry.queue, render=_queue)


@blueprint.post("/queues/<queue>/pause")
@call(
    "Fleet",
    "Pause a queue",
    scope=Scope.ADMIN,
    description="Jobs are taken in, but none is started until it is resumed; what runs goes on. "
    "Pausing it again changes the reason.",
    body=JsonBody.of(PauseRequest, PAUSE_EXAMPLE, required=False),
    answers=[Answer(status=200, description="The queue.", model=schemas.Queue)],
)
def pause_queue(queue: str, body: PauseRequest) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        pauses.pause(conn, queue, body.reason)
        return serialize.answer(_queue(_stats_of(conn, queue)))


@blueprint.post("/queues/<queue>/resume")
@call(
    "Fleet",
    "Resume a queue",
    scope=Scope.ADMIN,
    description="Harmless when it is not paused.",
    answers=[Answer(status=200, description="The queue.", model=schemas.Queue)],
)
def resume_queue(queue: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        pauses.resume(conn, queue)
        found = _stats_of(conn, queue)
    services().doorbell.ring(queue)
    return serialize.answer(_queue(found))


@blueprint.get("/workers")
@call(
    "Fleet",
    "List workers",
    scope=Scope.JOBS_READ,
    query=WorkerListQuery,
    answers=[Answer(status=200, description="Every live worker.", model=schemas.WorkerPage)],
)
def list_workers(query: WorkerListQuery) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = workers.list_workers(conn)
        visible = _visible_models(conn)
    return paging.answer(
        found,
        query,
        key=lambda worker: str(worker.id),
        render=lambda worker: _worker(worker, visible),
        descending=True,
    )


@blueprint.post("/workers/<worker_id>/drain")
@call(
    "Fleet",
    "Drain a worker",
    scope=Scope.ADMIN,
    description="It ends what it has and takes no more jobs. It goes on running: stop it, or undrain it.",
    answers=[Answer(status=200, description="The worker.", model=schemas.Worker)],
)
def drain_worker(worker_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        worker = workers.drain(conn, _parse_worker_id(worker_id))
        return serialize.answer(_worker(worker, _visible_models(conn)))


@blueprint.post("/workers/<worker_id>/undrain")
@call(
    "Fleet",
    "Let a worker take jobs again",
    scope=Scope.ADMIN,
    answers=[Answer(status=200, description="The worker.", model=schemas.Worker)],
)
def undrain_worker(worker_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        worker = workers.undrain(conn, _parse_worker_id(worker_id))
        visible = _visible_models(conn)
    for name in worker.queues:
        services().doorbell.ring(name)
    return serialize.answer(_worker(worker, visible))


def _stats_of(conn: sa.Connection, name: str) -> queue.QueueStats:
    (found,) = queue.queue_stats(conn, [name])
    return found


def _parse_worker_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise NotFound(f"There is no worker {text!r}.") from exc


def _visible_models(conn: sa.Connection) -> Mapping[str, str]:
    """Names of the models that the caller may see, by what workers call them."""
    return {version.key: version.ref for version in registry.list_models(conn, principal().tenant_id)}


def _queue(entry: queue.QueueStats) -> schemas.Queue:
    return schemas.Queue(
        name=entry.queue,
        depth=entry.depth,
        runnable=entry.runnable,
        running=entry.running,
        oldest_wait_seconds=entry.oldest_wait_seconds,
        workers=entry.workers,
        at_least=entry.at_least,
        paused=entry.pause is not None,
        pause_reason=entry.pause.reason if entry.pause is not None else None,
        paused_at=entry.pause.paused_at if entry.pause is not None else None,
    )


def _worker(worker: workers.Worker, visible: Mapping[str, str]) -> schemas.Worker:
    return schemas.Worker(
        id=worker.id,
        name=worker.name,
        queues=list(worker.queues),
        pool=worker.pool,
        state=worker.state.value,
        draining=worker.draining,
        device=dict(worker.device),
        # A worker serves every tenant; the names of their models are their own.
        loaded_models=[visible[key] for key in worker.loaded_models if key in visible],
        version=worker.version,
        started_at=worker.started_at,
        last_seen_at=worker.seen_at,
        last_looked_at=worker.looked_at,
    )
