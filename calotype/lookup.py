"""Reading jobs: one, many, their artifacts, and how deep the queues are. Moves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.errors import NotFound
from calotype.jobs import HELD, SERVED_QUEUES, Artifact, Family, Job, Kind, State
from calotype.pauses import Pause, list_pauses

T = TypeVar("T")
jobs = tables.jobs


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """A part of a list; ``has_more`` when it goes on after the last item."""

    items: list[T]
    has_more: bool


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs of a tenant; None and empty mean all."""

    states: tuple[State, ...] = ()
    kind: Kind | None = None
    family: Family | None = None
    #: ``name`` (any version) or ``name@version``.
    model: str | None = None
    #: Submitted at or after.
    since: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """How a queue stands."""

    queue: str
    #: Queued jobs, waiting out a backoff or for an equal one, or not.
    depth: int
    #: Queued jobs that may start now.
    runnable: int
    #: Jobs that a worker holds.
    running: int
    #: Seconds the longest-waiting runnable job has been waiting; 0 when there is none.
    oldest_wait_seconds: float
    #: Workers that serve it and were seen lately.
    workers: int
    #: Set while nothing is claimed from it.
    pause: Pause | None = None


def get(conn: sa.Connection, tenant_id: UUID, job_id: UUID, *, hold: bool = False) -> Job:
    """One job. ``hold`` keeps it from being deleted until the transaction ends: for a job that is about to name it.

    Raises:
        NotFound: the tenant has no such job.
    """
    statement = sa.select(jobs).where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id)
    if hold:
        statement = statement.with_for_update(read=True, key_share=True)
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id}.")
    return Job.from_row(row)


def list_jobs(conn: sa.Connection, tenant_id: UUID, wanted: JobFilter, cursor: str | None, limit: int) -> Page[Job]:
    """A tenant's jobs, newest first; ``cursor`` is the id of the last job of the page before."""
    conditions: list[sa.ColumnElement[bool]] = [jobs.c.tenant_id == tenant_id]
    if wanted.states:
        conditions.append(jobs.c.state.in_([str(state) for state in wanted.states]))
    if wanted.kind is not None:
        conditions.append(jobs.c.kind == wanted.kind)
    if wanted.family is not None:
        conditions.append(jobs.c.family == wanted.family)
    if wanted.model is not None:
        pinned = "@" in wanted.model
        conditions.append(
            jobs.c.model == wanted.model if pinned else sa.func.split_part(jobs.c.model, "@", 1) == wanted.model
        )
    if wanted.since is not None:
        conditions.append(jobs.c.created_at >= wanted.since)
    if cursor is not None:
        conditions.append(jobs.c.id < UUID(cursor))
    statement = sa.select(jobs).where(*conditions).order_by(jobs.c.id.desc()).limit(limit + 1)
    found = [Job.from_row(row) for row in conn.execute(statement).mappings()]
    return Page(items=found[:limit], has_more=len(found) > limit)


def artifacts_of(conn: sa.Connection, job_ids: Sequence[UUID]) -> dict[UUID, list[Artifact]]:
    """The published artifacts of each job, in their order; jobs without any are left out."""
    if not job_ids:
        return {}
    table = tables.artifacts
    statement = sa.select(table).where(table.c.job_id.in_(job_ids)).order_by(table.c.position, table.c.name)
    found: dict[UUID, list[Artifact]] = {}
    for row in conn.execute(statement).mappings():
        values: dict[str, Any] = {key: value for key, value in row.items() if key != "job_id"}
        found.setdefault(row["job_id"], []).append(Artifact(**values))
    return found


def queue_stats(
    conn: sa.Connection,
    queues: Iterable[str] = SERVED_QUEUES,
    *,
    tenant_id: UUID | None = None,
    seen_within_seconds: float = 60.0,
) -> list[QueueStats]:
    """How each queue stands; the jobs of one tenant only when ``tenant_id`` is given."""
    counts = {row.queue: row for row in conn.execute(_counts(tenant_id)).all()}
    serving, paused = _serving(conn, seen_within_seconds), list_pauses(conn)
    return [
        QueueStats(
            queue=queue,
            depth=counts[queue].depth if queue in counts else 0,
            runnable=counts[queue].runnable if queue in counts else 0,
            running=counts[queue].running if queue in counts else 0,
            oldest_wait_seconds=float(counts[queue].oldest or 0.0) if queue in counts else 0.0,
            workers=serving.get(queue, 0),
            pause=paused.get(queue),
        )
        for queue in queues
    ]


def _counts(tenant_id: UUID | None) -> sa.Select[Any]:
    queued = jobs.c.state == State.QUEUED
    runnable = sa.and_(queued, jobs.c.leader_id.is_(None), jobs.c.available_at <= sa.func.now())
    held = [str(state) for state in HELD]
    statement = sa.select(
        jobs.c.queue,
        sa.func.count().filter(queued).label("depth"),
        sa.func.count().filter(runnable).label("runnable"),
        sa.func.count().filter(jobs.c.state.in_(held)).label("running"),
        sa.func.extract("epoch", sa.func.now() - sa.func.min(jobs.c.available_at).filter(runnable)).label("oldest"),
    ).where(jobs.c.state.in_([str(State.QUEUED), *held]))
    if tenant_id is not None:
        statement = statement.where(jobs.c.tenant_id == tenant_id)
    return statement.group_by(jobs.c.queue)


def _serving(conn: sa.Connection, seen_within_seconds: float) -> dict[str, int]:
    workers = tables.workers
    queue = sa.func.unnest(workers.c.queues).label("queue")
    seen = sa.func.now() - sa.func.make_interval(0, 0, 0, 0, 0, 0, seen_within_seconds)
    alive = sa.select(queue).where(workers.c.retired_at.is_(None), workers.c.seen_at > seen).subquery()
    rows = conn.execute(sa.select(alive.c.queue, sa.func.count()).group_by(alive.c.queue)).all()
    return {row[0]: row[1] for row in rows}
