"""What happened to a job, in order: reading its events, and dropping those that say nothing any more.

They are written by the transitions and by workers (:mod:`calotype.queue`). The sequence number is assigned under the
lock of the job's row: whoever sees number n sees all before it, so that reading on from a number misses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import tables
from calotype.errors import NotFound
from calotype.jobs import TERMINAL, State

#: The most events that are read at once.
MAX_EVENTS = 1000


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened to a job."""

    #: From 1, in the order of what happened.
    seq: int
    #: state, progress, checkpoint, metrics or log
    type: str
    data: Mapping[str, Any]
    created_at: datetime

    @property
    def final(self) -> bool:
        """Whether it is the end of the job: no event follows."""
        return self.type == "state" and self.data.get("state") in TERMINAL


class Version(NamedTuple):
    """Tells whether a job has changed: any visible change or event makes another one."""

    revision: int
    event_seq: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Events of a job, and where it stood when they were read."""

    events: tuple[Event, ...]
    #: Whether there were more than were asked for.
    has_more: bool
    #: Whether the job has ended and these are its last events.
    ended: bool
    version: Version


def list_events(conn: sa.Connection, tenant_id: UUID, job_id: UUID, after: int = 0, limit: int = MAX_EVENTS) -> Reading:
    """The events of a job whose number is greater than ``after``, oldest first, at most ``limit``.

    Raises:
        NotFound: the tenant has no such job.
    """
    jobs = tables.jobs
    # The job first: one that has ended gets no more events, so that the second look then sees all there will be.
    own = sa.select(jobs.c.state, jobs.c.revision, jobs.c.event_seq).where(
        jobs.c.id == job_id, jobs.c.tenant_id == tenant_id
    )
    job = conn.execute(own).one_or_none()
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    rows = conn.execute(_after(job_id, after, limit + 1)).mappings().all()
    has_more = len(rows) > limit
    return Reading(
        events=tuple(Event(**row) for row in rows[:limit]),
        has_more=has_more,
        ended=State(job.state).terminal and not has_more,
        version=Version(job.revision, job.event_seq),
    )


def versions(conn: sa.Connection, job_ids: Collection[UUID]) -> dict[UUID, Version]:
    """How far each of these jobs is; those that are gone are left out."""
    jobs = tables.jobs
    wanted = sa.literal(list(job_ids), pg.ARRAY(pg.UUID(as_uuid=True)))
    rows = conn.execute(sa.select(jobs.c.id, jobs.c.revision, jobs.c.event_seq).where(jobs.c.id == sa.any_(wanted)))
    return {row.id: Version(row.revision, row.event_seq) for row in rows}


def thin(conn: sa.Connection, older_than_seconds: float, limit: int = 1000) -> int:
    """Drops progress events of jobs that ended so long ago; gives how many.

    The end of the job has superseded them, and its row keeps the last progress. States, checkpoints, metrics and log
    lines stay as long as the job.
    """
    events, jobs = tables.events, tables.jobs
    before = sa.func.now() - timedelta(seconds=older_than_seconds)
    superseded = (
        sa.select(events.c.job_id, events.c.seq)
        .join(jobs, jobs.c.id == events.c.job_id)
        # An event is older than the end of its job: the first condition is implied, and has the index.
        .where(events.c.type == "progress", events.c.created_at < before, jobs.c.finished_at < before)
        .limit(limit)
        .cte("superseded")
    )
    mine = sa.and_(events.c.job_id == superseded.c.job_id, events.c.seq == superseded.c.seq)
    return conn.execute(events.delete().where(mine)).rowcount


def _after(job_id: UUID, after: int, limit: int) -> sa.Select[Any]:
    events = tables.events
    return (
        sa.select(events.c.seq, events.c.type, events.c.data, events.c.created_at)
        .where(events.c.job_id == job_id, events.c.seq > after)
        .order_by(events.c.seq)
        .limit(limit)
    )
