"""Jobs that wait for the result of an equal one, their leader, instead of running.

A follower is queued with a ``leader_id``; claims pass it over. The transaction that ends the leader decides about it:
the result is its result, too, or it, or one that waits with it, takes the leader's place. So no follower ever waits for
a job that has ended. Rows are locked leader first.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype import request_cache
from calotype.jobs import Job, JobError, State
from calotype.queue.rows import NOW, end, end_all, jobs, lift
from calotype.request_cache import Equal


def end_with_followers(
    conn: sa.Connection, job_id: UUID, state: State, *, error: JobError | None = None, **values: Any
) -> list[Job]:
    """Like :func:`calotype.queue.rows.end`, and decides about the job's followers; gives it and those that it ended."""
    job = end(conn, job_id, state, error=error, **values)
    if job.any_seed_key is None:
        # Nobody can have found it.
        return [job]
    if state is State.SUCCEEDED:
        waiting = [row.id for row in _lock_followers(conn, job.id)]
        return [job, *answer(conn, job, waiting)]
    promote(conn, job)
    return [job]


def answer(conn: sa.Connection, source: Job, job_ids: list[UUID]) -> list[Job]:
    """Ends queued jobs, locked here, with the result and the artifacts of an equal one that succeeded."""
    if not job_ids:
        return []
    request_cache.share_artifacts(conn, source.id, job_ids)
    result, key = request_cache.result_of(source), key_of_images(source.cache_key)
    return end_all(conn, jobs.c.id.in_(job_ids), State.SUCCEEDED, result=result, cache_key=key)


def key_of_images(cache_key: str | None) -> sa.ColumnElement[str | None]:
    """What a job's key becomes when it gets images of the job with this key.

    None, where the seed is another: by its own key it would give others the images of a seed that they did not name.
    """
    return sa.case((jobs.c.cache_key == cache_key, jobs.c.cache_key), else_=None)


def promote(conn: sa.Connection, leader: Job) -> Job | None:
    """Lets the first follower take the leader's place, and the others wait for it; None when there are none.

    First is who can give all others what they want, then who may run at once, then the best-ranked.
    """
    waiting = _lock_followers(conn, leader.id)
    if not waiting:
        return None
    heir = min(waiting, key=lambda row: (row.cache_key != leader.cache_key, row.late, row.rank, row.id)).id
    chosen = jobs.c.id == heir
    statement = (
        jobs.update()
        .where(jobs.c.leader_id == leader.id)
        .values(
            leader_id=sa.case((chosen, None), else_=heir),
            rank=sa.case((chosen, min(row.rank for row in waiting)), else_=jobs.c.rank),
        )
    )
    conn.execute(statement)
    return Job.from_row(conn.execute(sa.select(jobs).where(chosen)).mappings().one())


def leader_for(equal: Equal | None) -> UUID | None:
    """Whom a new job waits for, if for anybody."""
    # It could run now, which is better than to wait out another's backoff.
    return equal.job.id if equal is not None and not equal.put_off else None


def join(conn: sa.Connection, equal: Equal, job: Job) -> None:
    """Links a new job with the one that :func:`calotype.request_cache.find` gave.

    It may hurry its leader; or it runs in the stead of one that waits out a backoff, which then waits for it.
    """
    if job.leader_id is not None:
        lift(conn, job.leader_id)
    elif equal.job.cache_key == job.cache_key:
        own = sa.or_(jobs.c.id == equal.job.id, jobs.c.leader_id == equal.job.id)
        conn.execute(jobs.update().where(own, jobs.c.state == State.QUEUED).values(leader_id=job.id))
        lift(conn, job.id)


def _lock_followers(conn: sa.Connection, leader_id: UUID) -> list[sa.Row[Any]]:
    # All of them, by a statement without a limit: one that ends just now falls out, and a limit would then give none.
    late = sa.or_(jobs.c.available_at > NOW, sa.func.coalesce(jobs.c.expires_at <= NOW, sa.false()))
    statement = (
        sa.select(jobs.c.id, jobs.c.cache_key, jobs.c.rank, late.label("late"))
        .where(jobs.c.leader_id == leader_id)
        .order_by(jobs.c.id)
        .with_for_update()
    )
    return list(conn.execute(statement))
