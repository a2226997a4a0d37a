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
from calotype.jobs import SERVED_QUEUES, Artifact, Family, Job, Kind, State
from calotype.pauses import Pause, list_pauses
from calotype.tables import WAITS

T = TypeVar("T")
jobs = tables.jobs
#: Waiting jobs of a queue that are counted, of each sort: that may start, that are put off, that wait for another.
MOST_COUNTED = 100_000


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
    #: Queued jobs, waiting out a backoff or for an equal one, or not. See :attr:`at_least`.
    depth: int
    #: Queued jobs that may start now.
    runnable: int
    #: Jobs that a worker holds.
    running: int
    #: Seconds the longest-waiting runnable job has been waiting; 0 when there is none.
    oldest_wait_seconds: float
    #: Workers that serve it and were seen lately.
    workers: int
    #: There may be more than the depth and the runnable jobs say: they are counted up to :data:`MOST_COUNTED` only.
    at_least: bool = False
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


# A job waits exactly when nobody holds it and it has not ended: so the constraints say, and so its index says it, which
# thereby serves these counts and no other statement. It is in the order of the leader, even where that is none.
_WAITS = f"{WAITS} AND j.queue = q.queue"
_AT_MOST = "LIMIT :most) AS counted"
_COUNTS = sa.text(f"""
SELECT q.queue,
    (SELECT count(*) FROM (SELECT FROM jobs j WHERE {_WAITS} AND j.leader_id IS NULL AND j.available_at <= now()
        {_AT_MOST}) AS runnable,
    (SELECT count(*) FROM (SELECT FROM jobs j WHERE {_WAITS} AND j.leader_id IS NULL AND j.available_at > now()
        {_AT_MOST}) AS put_off,
    (SELECT count(*) FROM (SELECT FROM jobs j WHERE {_WAITS} AND j.leader_id IS NOT NULL {_AT_MOST}) AS following,
    (SELECT count(*) FROM jobs j WHERE j.state IN ('running', 'canceling') AND j.queue = q.queue) AS running,
    greatest(0, extract(epoch FROM now() - (
        SELECT j.available_at FROM jobs j WHERE {_WAITS} AND j.leader_id IS NULL
        ORDER BY j.leader_id, j.available_at LIMIT 1)))::float AS oldest
FROM unnest(CAST(:queues AS text[])) AS q(queue)
""")  # noqa: S608 - fixed texts


def queue_stats(
    conn: sa.Connection, queues: Iterable[str] = SERVED_QUEUES, *, seen_within_seconds: float = 60.0
) -> list[QueueStats]:
    """How each queue stands, over all tenants. The cost does not grow with the number of waiting jobs."""
    counts = conn.execute(_COUNTS, {"queues": list(queues), "most": MOST_COUNTED}).all()
    serving, paused = _serving(conn, seen_within_seconds), list_pauses(conn)
    return [
        QueueStats(
            queue=row.queue,
            depth=row.runnable + row.put_off + row.following,
            runnable=row.runnable,
            running=row.running,
            oldest_wait_seconds=row.oldest,
            workers=serving.get(row.queue, 0),
            at_least=MOST_COUNTED in (row.runnable, row.put_off, row.following),
            pause=paused.get(row.queue),
        )
        for row in counts
    ]


def _serving(conn: sa.Connection, seen_within_seconds: float) -> dict[str, int]:
    workers = tables.workers
    queue = sa.func.unnest(workers.c.queues).label("queue")
    seen = sa.func.now() - sa.func.make_interval(0, 0, 0, 0, 0, 0, seen_within_seconds)
    alive = sa.select(queue).where(workers.c.retired_at.is_(None), workers.c.seen_at > seen).subquery()
    rows = conn.execute(sa.select(alive.c.queue, sa.func.count()).group_by(alive.c.queue)).all()
    return {row[0]: row[1] for row in rows}
