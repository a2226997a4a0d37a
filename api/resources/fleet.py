"""Queues and workers: what runs, and how much waits for it."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Blueprint
from flask.typing import ResponseReturnValue

from api import paging, schemas
from api.auth import principal
from api.calls import Answer, call
from api.paging import PageQuery
from api.services import services
from calotype import queue, registry, workers
from calotype.database import transaction
from calotype.tenants import Scope

blueprint = Blueprint("fleet", __name__)


class QueueListQuery(PageQuery):
    """Which queues; by name."""


class WorkerListQuery(PageQuery):
    """Which workers; the newest first."""


@blueprint.get("/queues")
@call(
    "Fleet",
    "List queues",
    scope=Scope.JOBS_READ,
    query=QueueListQuery,
    description="The numbers are over all tenants.",
    answers=[Answer(status=200, description="Every queue that is served.", model=schemas.QueuePage)],
)
def list_queues(query: QueueListQuery) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = queue.queue_stats(conn)
    return paging.answer(found, query, key=lambda entry: entry.queue, render=_queue)


@blueprint.get("/workers")
@call(
    "Fleet",
    "List workers",
    scope=Scope.JOBS_READ,
    query=WorkerListQuery,
    answers=[Answer(status=200, description="Every live worker.", model=schemas.WorkerPage)],
)
def list_workers(query: WorkerListQuery) -> ResponseReturnValue:
    tenant_id = principal().tenant_id
    with transaction(services().engine) as conn:
        found = workers.list_workers(conn)
        visible = {version.key: version.ref for version in registry.list_models(conn, tenant_id)}
    return paging.answer(
        found,
        query,
        key=lambda worker: str(worker.id),
        render=lambda worker: _worker(worker, visible),
        descending=True,
    )


def _queue(entry: queue.QueueStats) -> schemas.Queue:
    return schemas.Queue(
        name=entry.queue,
        depth=entry.depth,
        runnable=entry.runnable,
        running=entry.running,
        oldest_wait_seconds=entry.oldest_wait_seconds,
        workers=entry.workers,
    )


def _worker(worker: workers.Worker, visible: Mapping[str, str]) -> schemas.Worker:
    return schemas.Worker(
        id=worker.id,
        name=worker.name,
        queues=list(worker.queues),
        state=worker.state.value,
        device=dict(worker.device),
        # A worker serves every tenant; the names of their models are their own.
        loaded_models=[visible[key] for key in worker.loaded_models if key in visible],
        version=worker.version,
        started_at=worker.started_at,
        last_seen_at=worker.seen_at,
    )
