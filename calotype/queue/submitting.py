"""Into the queue: new jobs, and jobs tried once more."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import request_cache, tables
from calotype.errors import Conflict, LimitExceeded
from calotype.ids import new_id
from calotype.jobs import TERMINAL, Job, State, queue_name
from calotype.queue import accounts, followers
from calotype.queue.rows import interval, jobs, lock_own
from calotype.queue.values import NewJob
from calotype.scheduling import head_start

#: After a refusal for too many waiting jobs.
RETRY_AFTER_SECONDS = 10.0


def submit(conn: sa.Connection, new: NewJob) -> Job:
    """Inserts a job: succeeded when an equal one has the result, waiting for one that is on its way, else queued.

    Raises:
        LimitExceeded: as many jobs of the tenant wait as may.
    """
    equal = request_cache.find(conn, new.tenant_id, new.cache, new.cache_key, new.any_seed_key)
    if equal is not None and equal.finished:
        (job,) = followers.answer(conn, equal.job, [_insert(conn, new).id])
        accounts.add_usage(conn, job, cached=1)
        return job
    _check_limit(conn, new.tenant_id)
    open_queue(conn, queue_name(new.family, new.kind), new.tenant_id)
    job = _insert(conn, new, leader_id=followers.leader_for(equal))
    if equal is not None:
        followers.join(conn, equal, job)
    return job


def _insert(conn: sa.Connection, new: NewJob, leader_id: UUID | None = None) -> Job:
    values = {name: getattr(new, name) for name in _AS_GIVEN}
    values |= {
        "id": new_id(),
        "queue": queue_name(new.family, new.kind),
        "state": State.QUEUED,
        "leader_id": leader_id,
        "event_seq": 1,
        "head_start": head_start(new.priority),
        "deadline": None if new.deadline_seconds is None else interval(new.deadline_seconds),
    }
    job = Job.from_row(conn.execute(_INSERT, values).mappings().one())
    said = {"job_id": job.id, "seq": 1, "type": "state", "data": {"state": job.state, "attempt": 0}}
    conn.execute(tables.events.insert(), said)
    return job


# Columns that are fields of NewJob, too.
_AS_GIVEN = tuple(name for name in NewJob.__dataclass_fields__ if name in jobs.c)
# Built once: a statement of forty columns costs more to build than to run.
_INSERT = (
    jobs.insert()
    .values(
        **{
            name: sa.bindparam(name, type_=jobs.c[name].type)
            for name in (*_AS_GIVEN, "id", "queue", "state", "leader_id", "event_seq")
        },
        rank=sa.func.now() - sa.bindparam("head_start", type_=sa.Interval),
        expires_at=sa.func.now() + sa.bindparam("deadline", type_=sa.Interval),
    )
    .returning(jobs)
)


def open_queue(conn: sa.Connection, queue: str, tenant_id: UUID) -> None:
    """Puts the tenant on the list that claims walk, and keeps it there until the job's row is visible.

    The share lock is what the remover of empty entries waits for; other submits and claims do not.
    """
    table = tables.tenant_queues
    mine = sa.and_(table.c.queue == queue, table.c.tenant_id == tenant_id)
    held = sa.select(sa.literal(1)).where(mine).with_for_update(read=True, key_share=True)
    while conn.execute(held).one_or_none() is None:
        conn.execute(pg.insert(table).values(queue=queue, tenant_id=tenant_id).on_conflict_do_nothing())


def retry(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> Job:
    """Submits an ended job again, as a new one with ``retried_from``; the spec, seed included, is the same.

    Calling it twice gives the same new job as long as that one has not ended.

    Raises:
        NotFound: the tenant has no such job.
        Conflict: the job has not ended.
    """
    old = lock_own(conn, tenant_id, job_id)
    if not old.state.terminal:
        raise Conflict(f"Job {job_id} is {old.state}; only a job that has ended can be retried. Cancel it first.")
    open_retry = (
        conn.execute(
            sa.select(jobs)
            .where(jobs.c.retried_from == job_id, jobs.c.state.notin_([str(state) for state in TERMINAL]))
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    if open_retry is not None:
        return Job.from_row(open_retry)
    return submit(conn, _again(old))


def _again(old: Job) -> NewJob:
    deadline = (old.expires_at - old.created_at).total_seconds() if old.expires_at is not None else None
    return NewJob(
        tenant_id=old.tenant_id,
        kind=old.kind,
        family=old.family,
        model=old.model,
        spec=old.spec,
        priority=old.priority,
        max_attempts=old.max_attempts,
        deadline_seconds=deadline,
        timeout_seconds=old.timeout_seconds,
        metadata=old.metadata,
        retried_from=old.id,
        model_key=old.model_key,
        batch_key=old.batch_key,
        units=old.units,
        batch_limit=old.batch_limit,
        work=old.work,
        webhook=old.webhook,
        cache_key=old.cache_key,
        any_seed_key=old.any_seed_key,
        # Who repeats a job that succeeded wants it run, not shown again.
        cache="bypass" if old.state is State.SUCCEEDED else old.spec.get("cache", "use"),
        retain_seconds=old.retain_seconds,
    )


def _check_limit(conn: sa.Connection, tenant_id: UUID) -> None:
    tenants = tables.tenants
    limit = conn.execute(sa.select(tenants.c.max_queued).where(tenants.c.id == tenant_id)).scalar_one()
    if limit is None:
        return
    # One submission of this tenant at a time, or two that count together both slip under the limit.
    lock = sa.func.hashtextextended(f"max_queued:{tenant_id}", 0)
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
    own = sa.and_(jobs.c.tenant_id == tenant_id, jobs.c.state == State.QUEUED)
    waiting = conn.execute(sa.select(sa.func.count()).select_from(jobs).where(own)).scalar_one()
    if waiting >= limit:
        raise LimitExceeded(
            f"{waiting} jobs of this tenant wait already and {limit} may; try again when some have started.",
            retry_after=RETRY_AFTER_SECONDS,
        )
