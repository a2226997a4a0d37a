"""Into the queue: new jobs, and jobs tried once more.

A job is written by one statement together with its first event and the client's key. In the common case, a tenant
without a limit that has had jobs in this queue before, that statement is all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import idempotency, request_cache, tables
from calotype.errors import Conflict, LimitExceeded
from calotype.ids import new_id
from calotype.jobs import TERMINAL, Job, State, queue_name
from calotype.queue import accounts, followers
from calotype.queue.rows import interval, jobs, lock_own
from calotype.queue.values import NewJob
from calotype.registry import ModelVersion, parse_ref
from calotype.scheduling import head_start

#: After a refusal for too many waiting jobs.
RETRY_AFTER_SECONDS = 10.0


def submit(conn: sa.Connection, new: NewJob) -> Job:
    """Inserts a job: succeeded when an equal one has the result, waiting for one that is on its way, else queued.

    Raises:
        LimitExceeded: as many jobs of the tenant wait as may.
        KeyUsed: the client's key has made a job before.
    """
    equal = request_cache.find(conn, new.tenant_id, new.cache, new.cache_key, new.any_seed_key)
    if equal is not None and equal.finished:
        (job,) = followers.answer(conn, equal.job, [_insert(conn, new, limited=False).id])
        accounts.add_usage(conn, job, cached=1)
        return job
    job = _insert(conn, new, leader_id=followers.leader_for(equal))
    if equal is not None:
        followers.join(conn, equal, job)
    return job


def submit_at_once(conn: sa.Connection, new: NewJob, versions: Mapping[str, ModelVersion]) -> Job | None:
    """Inserts a job by one statement, which may be a transaction of its own; None, and nothing is done, when that does
    not do.

    ``versions`` is what each model reference of the request was taken to mean: compared with what it means now, and
    held. A job that may be answered by an equal one is for :func:`submit`; so is one of a tenant with a limit, or one
    whose key was used.
    """
    if new.cache != "bypass":
        return None
    # In one order: of several versions each is held.
    refs = sorted(((*parse_ref(ref), version.id) for ref, version in versions.items()), key=lambda ref: ref[-1])
    names, numbers, ids = zip(*refs, strict=True) if refs else ((), (), ())
    values = _values(new, leader_id=None, limited=True)
    values |= {"names": list(names), "numbers": list(numbers), "ids": list(ids)}
    times = conn.execute(_INSERT, values).one_or_none()
    return _new_job(values, times) if times is not None else None


def _insert(conn: sa.Connection, new: NewJob, *, leader_id: UUID | None = None, limited: bool = True) -> Job:
    values = _values(new, leader_id=leader_id, limited=limited)
    while (times := conn.execute(_INSERT, values).one_or_none()) is None:
        _clear_the_way(conn, new, limited=limited)
        values["may"] = True
    return _new_job(values, times)


def _values(new: NewJob, *, leader_id: UUID | None, limited: bool) -> dict[str, Any]:
    given = new.request_key
    values: dict[str, Any] = {name: getattr(new, name) for name in _AS_GIVEN}
    return values | {
        "id": new_id(),
        "queue": queue_name(new.family, new.kind),
        "leader_id": leader_id,
        "head_start": head_start(new.priority),
        "deadline": None if new.deadline_seconds is None else interval(new.deadline_seconds),
        "key": given.key if given is not None else None,
        "body_sha256": given.body_sha256 if given is not None else None,
        "may": not limited,
        # Names of models to compare; those that were looked up in this transaction need none.
        "names": [],
        "numbers": [],
        "ids": [],
    }


def _new_job(values: Mapping[str, Any], times: sa.Row[Any]) -> Job:
    """The job as its row holds it. Only what Postgres gave it is read: the whole would cost a tenth of a request."""
    given = {name: values[name] for name in _GIVEN}
    return Job(
        **_AT_FIRST,
        **given,
        created_at=times.created_at,
        available_at=times.available_at,
        expires_at=times.expires_at,
    )


def _clear_the_way(conn: sa.Connection, new: NewJob, *, limited: bool) -> None:
    """Finds out why :data:`_INSERT` did nothing."""
    if new.request_key is not None and idempotency.recall(conn, new.tenant_id, new.request_key) is not None:
        raise idempotency.KeyUsed("This Idempotency-Key has made a job before.")
    if limited:
        _check_limit(conn, new.tenant_id)
    open_queue(conn, queue_name(new.family, new.kind), new.tenant_id)


# Columns that are fields of NewJob, too.
_AS_GIVEN = tuple(name for name in NewJob.__dataclass_fields__ if name in jobs.c)
_GIVEN = (*_AS_GIVEN, "id", "queue", "leader_id")
# With what each row begins, beside what is given.
_AT_FIRST: Mapping[str, Any] = {
    "state": State.QUEUED,
    "attempt": 0,
    "epoch": 0,
    "event_seq": 1,
    **dict.fromkeys(
        ("worker_id", "started_at", "finished_at", "lease_expires_at", "progress", "checkpoint", "result", "error")
    ),
}

# A job, its key and its first event; or nothing, when the tenant is not on the list of the queue yet, when it has a
# limit that is to be looked at first, when a model's name means another version, or when the key was used. The lock on
# the list is that of open_queue; that on a version is that of registry.find_version, of whose search this is a copy. A
# key that another transaction is just using is waited for.
_INSERT_TEXT = sa.text(f"""
WITH place AS MATERIALIZED (
    SELECT FROM tenant_queues q JOIN tenants t ON t.id = q.tenant_id
    WHERE q.queue = :queue AND q.tenant_id = :tenant_id AND (:may OR t.max_queued IS NULL) AND NOT EXISTS (
        SELECT FROM unnest(CAST(:names AS text[]), CAST(:numbers AS integer[]), CAST(:ids AS uuid[]))
            AS named(name, number, id)
        WHERE named.id IS DISTINCT FROM (
            SELECT m.id FROM model_versions m
            WHERE (m.tenant_id = :tenant_id OR m.tenant_id IS NULL) AND m.name = named.name
                AND (named.number IS NULL OR m.version = named.number)
            ORDER BY m.tenant_id IS NULL, m.version DESC LIMIT 1 FOR KEY SHARE))
    FOR KEY SHARE OF q),
used AS (
    INSERT INTO idempotency_keys (tenant_id, key, body_sha256, job_id)
    SELECT :tenant_id, :key, CAST(:body_sha256 AS bytea), :id FROM place WHERE :key IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING 1),
job AS (
    INSERT INTO jobs ({", ".join(_GIVEN)}, state, event_seq, rank, expires_at)
    SELECT {", ".join(f":{name}" for name in _GIVEN)}, 'queued', 1, now() - :head_start, now() + :deadline
    FROM place WHERE :key IS NULL OR EXISTS (SELECT FROM used) RETURNING *),
said AS (
    INSERT INTO events (job_id, seq, type, data)
    SELECT id, 1, 'state', jsonb_build_object('state', state, 'attempt', attempt) FROM job)
SELECT created_at, available_at, expires_at FROM job
""")  # noqa: S608 - fixed texts
_INSERT = _INSERT_TEXT.columns(jobs.c.created_at, jobs.c.available_at, jobs.c.expires_at).bindparams(
    *[sa.bindparam(name, type_=jobs.c[name].type) for name in _GIVEN],
    sa.bindparam("key", type_=sa.Text),
    sa.bindparam("may", type_=sa.Boolean),
    sa.bindparam("head_start", type_=sa.Interval),
    sa.bindparam("deadline", type_=sa.Interval),
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
    # Counted as far as the limit, and no further.
    own = (
        sa.select(jobs.c.id).where(jobs.c.tenant_id == tenant_id, jobs.c.state == State.QUEUED).limit(limit).subquery()
    )
    if conn.execute(sa.select(sa.func.count()).select_from(own)).scalar_one() >= limit:
        raise LimitExceeded(
            f"{limit} jobs of this tenant may wait, and as many do; try again when some have started.",
            retry_after=RETRY_AFTER_SECONDS,
        )
