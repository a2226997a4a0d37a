"""What the reconciler moves: lapsed leases, passed deadlines, empty entries of the walk."""

from __future__ import annotations

import sqlalchemy as sa

from calotype.jobs import Job, JobError, State
from calotype.queue import accounts, followers
from calotype.queue.rows import HELD_STATES, Held, jobs, requeue

LOST = JobError(
    code="worker_lost",
    title="Worker lost",
    detail="The worker stopped answering and no attempt remains. Submit the job again with /retry, or allow more "
    "attempts with max_attempts if it runs on nodes that go away.",
    retryable=True,
)
PASSED = JobError(
    code="deadline_passed",
    title="Deadline passed",
    detail="The job did not start before its deadline. Give it more time with deadline_seconds, or a higher priority.",
    retryable=True,
)


def reap(conn: sa.Connection, limit: int = 100) -> list[Job]:
    """Takes jobs whose lease lapsed from their workers: queued again while attempts remain, else ended.

    Locked rows are passed over: their worker is writing right now, or a second reconciler has them. A lapsed lease is
    charged to its end, for nobody worked after it.
    """
    lapsed = (
        sa.select(jobs, jobs.c.lease_expires_at.label("now"))
        .where(jobs.c.state.in_(HELD_STATES), jobs.c.lease_expires_at < sa.func.now())
        .order_by(jobs.c.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    held = [Held(Job.from_row(row), row["now"]) for row in conn.execute(lapsed).mappings().all()]
    reaped = [(one, _reap_one(conn, one)) for one in held]
    accounts.settle(conn, reaped)
    return [job for _, job in reaped]


def _reap_one(conn: sa.Connection, held: Held) -> Job:
    job, gpu_seconds = held.job, jobs.c.gpu_seconds + held.seconds
    if job.state is State.CANCELING:
        return followers.end_with_followers(conn, job.id, State.CANCELED, gpu_seconds=gpu_seconds)[0]
    if job.attempt < job.max_attempts:
        return requeue(conn, job.id, "worker_lost", gpu_seconds=gpu_seconds)
    return followers.end_with_followers(conn, job.id, State.FAILED, error=LOST, gpu_seconds=gpu_seconds)[0]


def expire(conn: sa.Connection, limit: int = 100) -> list[Job]:
    """Ends queued jobs whose deadline passed before they started.

    A job that waits for the result of one that runs counts as started.
    """
    leaders = jobs.alias("leaders")
    started = sa.exists().where(leaders.c.id == jobs.c.leader_id, leaders.c.state.in_(HELD_STATES))
    passed = (
        sa.select(jobs.c.id)
        .where(jobs.c.state == State.QUEUED, jobs.c.expires_at < sa.func.now(), jobs.c.started_at.is_(None), ~started)
        .order_by(jobs.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = conn.execute(passed).scalars().all()
    expired = [followers.end_with_followers(conn, job_id, State.EXPIRED, error=PASSED)[0] for job_id in ids]
    for job in sorted(expired, key=lambda one: (one.tenant_id, one.queue)):
        accounts.add_usage(conn, job)
    return expired


# Entries of the walk whose tenant has no job in the queue that waits or runs.
_EMPTY = """
NOT EXISTS (SELECT FROM jobs j WHERE j.queue = tq.queue AND j.tenant_id = tq.tenant_id
    AND j.state = 'queued' AND j.leader_id IS NULL)
AND NOT EXISTS (SELECT FROM jobs j WHERE j.queue = tq.queue AND j.tenant_id = tq.tenant_id
    AND j.state IN ('running', 'canceling'))"""

_LOCK_EMPTY = sa.text(f"""
SELECT tq.queue, tq.tenant_id FROM tenant_queues tq WHERE {_EMPTY} LIMIT :most FOR UPDATE OF tq SKIP LOCKED
""")  # noqa: S608 - fixed texts

_REMOVE_EMPTY = sa.text(f"""
DELETE FROM tenant_queues tq WHERE tq.queue = :queue AND tq.tenant_id = :tenant_id AND {_EMPTY}
""")  # noqa: S608 - fixed texts


def tidy(conn: sa.Connection, limit: int = 100) -> int:
    """Takes tenants without an open job off the list that claims walk, and marks them idle; gives how many entries.

    An entry is locked first and looked at afterwards, by a second statement that sees what was committed meanwhile: a
    submit holds a share of the lock until its job is visible.
    """
    accounts.note_idle(conn)
    entries = conn.execute(_LOCK_EMPTY, {"most": limit}).all()
    return sum(
        conn.execute(_REMOVE_EMPTY, {"queue": queue, "tenant_id": tenant_id}).rowcount for queue, tenant_id in entries
    )
