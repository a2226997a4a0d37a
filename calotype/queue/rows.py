"""Reading, guarding and moving job rows: what the transitions are written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import tables
from calotype.errors import LeaseLost, NotFound
from calotype.jobs import HELD, Job, JobError, State
from calotype.scheduling import head_start
from calotype.webhooks import outbox

jobs = tables.jobs
HELD_STATES = [str(state) for state in HELD]
#: The clock of the database; the only one that decides.
NOW = sa.func.clock_timestamp()
#: The longest chain of words that a row keeps of an error.
MAX_DETAIL = 4000


@dataclass(frozen=True)
class Held:
    """A job that a worker holds, its row locked by this transaction."""

    job: Job
    #: Of the database: until when the worker had it.
    now: datetime

    @property
    def seconds(self) -> float:
        """Device-seconds since the claim: all of the time, or its part of a batch's."""
        if self.job.started_at is None:
            return 0.0
        return max(0.0, (self.now - self.job.started_at).total_seconds()) * self.job.batch_share


def interval(seconds: float | None) -> timedelta:
    return timedelta(seconds=seconds or 0.0)


def lock_held(conn: sa.Connection, job_id: UUID, epoch: int) -> Held:
    """Locks a job that this epoch holds. Raises LeaseLost when it is stale."""
    statement = (
        sa.select(jobs, NOW.label("now"))
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(HELD_STATES))
        .with_for_update(of=jobs)
    )
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise LeaseLost(job_id, epoch)
    return Held(Job.from_row(row), row["now"])


def lock_own(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> Job:
    """Locks a job of a tenant. Raises NotFound when it has no such job."""
    statement = sa.select(jobs).where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id).with_for_update()
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id}.")
    return Job.from_row(row)


def move_one(
    conn: sa.Connection, job_id: UUID, values: Mapping[str, Any], event: Mapping[str, Any] | None = None
) -> Job:
    """Changes the state of a row that this transaction has locked and checked, and records the event of it.

    ``event`` is added to the state and attempt that every such event has.
    """
    return _move(conn, jobs.c.id == job_id, values, event)[0]


def _move(
    conn: sa.Connection, where: sa.ColumnElement[bool], values: Mapping[str, Any], event: Mapping[str, Any] | None
) -> list[Job]:
    # Two statements: one with both would cost more to build than a second one costs to run.
    moved = (
        jobs.update()
        .where(where)
        .values(revision=jobs.c.revision + 1, event_seq=jobs.c.event_seq + 1, **values)
        .returning(jobs)
    )
    found = [Job.from_row(row) for row in conn.execute(moved).mappings()]
    told = [
        {"job_id": job.id, "seq": job.event_seq, "data": {"state": job.state, "attempt": job.attempt, **(event or {})}}
        for job in found
    ]
    conn.execute(_SAID, told)
    return found


_SAID = tables.events.insert().values(
    job_id=sa.bindparam("job_id"),
    seq=sa.bindparam("seq"),
    type="state",
    data=sa.bindparam("data", type_=pg.JSONB),
    created_at=NOW,
)


def requeue(conn: sa.Connection, job_id: UUID, reason: str, **values: Any) -> Job:
    """Without a wait the job keeps its place: it has waited already."""
    values = {"state": State.QUEUED, "worker_id": None, "lease_expires_at": None, **values}
    job = move_one(conn, job_id, values, {"reason": reason})
    lift(conn, job_id)
    return job


def put_off(conn: sa.Connection, job: Job, seconds: float, error: JobError, **values: Any) -> Job:
    """Queues a job again, not to be claimed before so many seconds have passed."""
    available = NOW + interval(seconds)
    values = {
        "state": State.QUEUED,
        "worker_id": None,
        "lease_expires_at": None,
        "available_at": available,
        "rank": available - head_start(job.priority),
        **values,
    }
    told = {"reason": "retry", "retry_in_seconds": round(seconds, 3), "error": trimmed(error).as_dict()}
    queued = move_one(conn, job.id, values, told)
    lift(conn, job.id)
    return queued


def lift(conn: sa.Connection, job_id: UUID) -> None:
    """Ranks a queued job no lower than the best of those that wait for its result."""
    best = sa.select(sa.func.min(jobs.c.rank).label("rank")).where(jobs.c.leader_id == job_id).subquery()
    statement = jobs.update().where(jobs.c.id == job_id, jobs.c.state == State.QUEUED, jobs.c.rank > best.c.rank)
    conn.execute(statement.values(rank=best.c.rank))


def end(conn: sa.Connection, job_id: UUID, state: State, *, error: JobError | None = None, **values: Any) -> Job:
    """Writes the final state of a row that this transaction has locked and checked, and what is to be told of it."""
    return end_all(conn, jobs.c.id == job_id, state, error=error, **values)[0]


def end_all(
    conn: sa.Connection, where: sa.ColumnElement[bool], state: State, *, error: JobError | None = None, **values: Any
) -> list[Job]:
    """Like :func:`end`, for rows that end alike."""
    told = {"error": error.as_dict()} if error is not None else None
    values = {
        "state": state,
        "finished_at": NOW,
        "lease_expires_at": None,
        "leader_id": None,
        # Nobody resumes it any more: its objects, gigabytes perhaps, are left to the collector.
        "checkpoint": None,
        "error": error.as_dict() if error is not None else None,
        **values,
    }
    ended = _move(conn, where, values, told)
    for job in ended:
        outbox.put(conn, job)
    return ended


def trimmed(error: JobError) -> JobError:
    """As the row keeps it."""
    detail = error.detail if len(error.detail) <= MAX_DETAIL else error.detail[:MAX_DETAIL] + "…"
    # Postgres' JSON cannot hold a NUL.
    return JobError(code=error.code, title=error.title, detail=detail.replace("\x00", "�"), retryable=error.retryable)
