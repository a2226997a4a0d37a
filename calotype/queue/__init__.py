"""Every statement that moves a job: one function a transition of :data:`calotype.jobs.TRANSITIONS`.

All take a connection inside a transaction that the caller commits, and use the clock of the database only. The guard
lives in the UPDATE: state, and for a worker's writes the epoch, stand in its WHERE, so that a write that comes too late
changes nothing and says so. No lock is held while a job runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.errors import CancelRequested, Conflict, JobFailed, LeaseLost, LimitExceeded, NotFound
from calotype.ids import new_id
from calotype.jobs import HELD, TERMINAL, Artifact, Family, Job, JobError, Kind, Progress, State, queue_name
from calotype.lookup import JobFilter, Page, QueueStats, artifacts_of, get, list_jobs, queue_stats
from calotype.registry import NewVersion, register_version
from calotype.scheduling import DEFAULT_PRIORITY, head_start

#: Reading goes through the same name, so that callers know one module.
__all__ = [
    "JobFilter",
    "NewJob",
    "Outcome",
    "Page",
    "QueueStats",
    "acknowledge_cancel",
    "artifacts_of",
    "backoff",
    "cancel",
    "checkpoint",
    "claim",
    "delete",
    "expire",
    "fail",
    "finish",
    "get",
    "heartbeat",
    "job_error",
    "list_jobs",
    "look",
    "progress",
    "queue_stats",
    "reap",
    "release",
    "retry",
    "submit",
]

jobs = tables.jobs
_HELD = [str(state) for state in HELD]
_NOW = sa.func.clock_timestamp()
#: After a refusal for too many waiting jobs.
RETRY_AFTER_SECONDS = 10.0
#: The longest chain of words that a row keeps of an error.
MAX_DETAIL = 4000

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


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What :func:`submit` writes. ``spec`` is complete: references pinned, defaults filled in, seed drawn."""

    tenant_id: UUID
    kind: Kind
    family: Family
    model: str | None
    spec: Mapping[str, Any]
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = 3
    deadline_seconds: float | None = None
    timeout_seconds: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    retried_from: UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished job publishes, all of it in one transaction."""

    result: Mapping[str, Any]
    artifacts: Sequence[Artifact] = ()
    #: The version a train job made.
    model: NewVersion | None = None


def submit(conn: sa.Connection, new: NewJob) -> Job:
    """Inserts a queued job.

    Raises:
        LimitExceeded: as many jobs of the tenant wait as may.
    """
    _check_limit(conn, new.tenant_id)
    created = sa.func.now()
    deadline = created + _interval(new.deadline_seconds) if new.deadline_seconds is not None else None
    statement = (
        jobs.insert()
        .values(
            id=new_id(),
            tenant_id=new.tenant_id,
            kind=new.kind,
            family=new.family,
            queue=queue_name(new.family, new.kind),
            model=new.model,
            spec=dict(new.spec),
            state=State.QUEUED,
            priority=new.priority,
            rank=created - head_start(new.priority),
            max_attempts=new.max_attempts,
            expires_at=deadline,
            timeout_seconds=new.timeout_seconds,
            metadata=dict(new.metadata),
            retried_from=new.retried_from,
        )
        .returning(jobs)
    )
    return Job.from_row(conn.execute(statement).mappings().one())


def claim(conn: sa.Connection, worker_id: UUID, queues: Sequence[str], lease_seconds: float) -> Job | None:
    """Takes the best-ranked runnable job of any of ``queues``, or None when there is none.

    Each queue is walked in the order of its own index and only the best of the queues' firsts is taken; jobs that
    another claim has locked are passed over.
    """
    firsts = [_first_of(queue) for queue in queues]
    if not firsts:
        return None
    candidates = sa.union_all(*[sa.select(first.subquery()) for first in firsts]).subquery()
    best = sa.select(candidates.c.id).order_by(candidates.c.rank, candidates.c.id).limit(1).scalar_subquery()
    statement = (
        jobs.update()
        .where(jobs.c.id == best, jobs.c.state == State.QUEUED)
        .values(
            state=State.RUNNING,
            worker_id=worker_id,
            epoch=jobs.c.epoch + 1,
            attempt=jobs.c.attempt + 1,
            started_at=_NOW,
            lease_expires_at=_NOW + _interval(lease_seconds),
            progress=None,
            revision=jobs.c.revision + 1,
        )
        .returning(jobs)
    )
    row = conn.execute(statement).mappings().one_or_none()
    return Job.from_row(row) if row is not None else None


def heartbeat(conn: sa.Connection, job_id: UUID, epoch: int, lease_seconds: float) -> State:
    """Renews the lease; says whether the job is to be canceled.

    Raises:
        LeaseLost: the epoch is stale.
    """
    values = {"lease_expires_at": _NOW + _interval(lease_seconds)}
    return _write_held(conn, job_id, epoch, values)


def look(conn: sa.Connection, job_id: UUID, epoch: int) -> State:
    """Like :func:`heartbeat`, without a write: running or canceling.

    Raises:
        LeaseLost: the epoch is stale.
    """
    state = conn.execute(
        sa.select(jobs.c.state).where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(_HELD))
    ).scalar_one_or_none()
    if state is None:
        raise LeaseLost(job_id, epoch)
    return State(state)


def progress(conn: sa.Connection, job_id: UUID, epoch: int, value: Progress) -> State:
    """Writes how far the job is.

    Raises:
        LeaseLost: the epoch is stale.
    """
    values = {"progress": value.as_dict(), "revision": jobs.c.revision + 1}
    return _write_held(conn, job_id, epoch, values)


def checkpoint(conn: sa.Connection, job_id: UUID, epoch: int, value: Mapping[str, Any]) -> State:
    """Writes from where another worker can go on; the objects it names are uploaded before.

    Raises:
        LeaseLost: the epoch is stale.
    """
    values = {"checkpoint": dict(value), "revision": jobs.c.revision + 1}
    return _write_held(conn, job_id, epoch, values)


def finish(conn: sa.Connection, job_id: UUID, epoch: int, outcome: Outcome) -> Job:
    """Publishes: artifact rows, model version, result and final state together.

    Raises:
        LeaseLost: the epoch is stale; nothing is published.
        CancelRequested: a user canceled the job; nothing is published. Acknowledge with
            :func:`acknowledge_cancel`.
    """
    held = _lock_held(conn, job_id, epoch)
    if held.state is State.CANCELING:
        raise CancelRequested(f"Job {job_id} is being canceled; its result was not stored.")
    result = dict(outcome.result)
    if outcome.model is not None:
        result["model"] = register_version(conn, outcome.model).ref
    if outcome.artifacts:
        rows = [{"job_id": job_id, **_artifact_row(artifact)} for artifact in outcome.artifacts]
        conn.execute(tables.artifacts.insert(), rows)
    return _end(conn, job_id, State.SUCCEEDED, result=result)


def fail(conn: sa.Connection, job_id: UUID, epoch: int, error: JobError, retry_in: float | None = None) -> Job:
    """Ends the job with ``error``, or queues it again after ``retry_in`` seconds.

    It is queued again when the error is retryable, ``retry_in`` is given and attempts remain. A job that is being
    canceled ends canceled.

    Raises:
        LeaseLost: the epoch is stale.
    """
    held = _lock_held(conn, job_id, epoch)
    if held.state is State.CANCELING:
        return _end(conn, job_id, State.CANCELED)
    if error.retryable and retry_in is not None and held.attempt < held.max_attempts:
        return _put_off(conn, held, retry_in)
    return _end(conn, job_id, State.FAILED, error=_trimmed(error))


def release(conn: sa.Connection, job_id: UUID, epoch: int) -> Job:
    """Gives the job back unharmed; costs no attempt. A job that is being canceled ends canceled.

    Raises:
        LeaseLost: the epoch is stale.
    """
    held = _lock_held(conn, job_id, epoch)
    if held.state is State.CANCELING:
        return _end(conn, job_id, State.CANCELED)
    return _requeue(conn, job_id, attempt=jobs.c.attempt - 1)


def acknowledge_cancel(conn: sa.Connection, job_id: UUID, epoch: int) -> Job:
    """Ends a job that is being canceled, once its worker has stopped.

    Raises:
        LeaseLost: the epoch is stale.
        Conflict: nobody asked to cancel it.
    """
    held = _lock_held(conn, job_id, epoch)
    if held.state is not State.CANCELING:
        raise Conflict(f"Job {job_id} is {held.state}; nobody asked to cancel it.")
    return _end(conn, job_id, State.CANCELED)


def cancel(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> Job:
    """Cancels at a user's wish; a job that ended stays as it is, so that calling twice is harmless.

    Raises:
        NotFound: the tenant has no such job.
    """
    job = _lock_own(conn, tenant_id, job_id)
    if job.state is State.QUEUED:
        return _end(conn, job_id, State.CANCELED)
    if job.state is State.RUNNING:
        return _update(conn, job_id, state=State.CANCELING)
    return job


def reap(conn: sa.Connection, limit: int = 100) -> list[Job]:
    """Takes jobs whose lease lapsed from their workers: queued again while attempts remain, else failed.

    Locked rows are passed over: their worker is writing right now, or a second reconciler has them.
    """
    lapsed = (
        sa.select(jobs.c.id, jobs.c.state, jobs.c.attempt, jobs.c.max_attempts)
        .where(jobs.c.state.in_(_HELD), jobs.c.lease_expires_at < _NOW)
        .order_by(jobs.c.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    reaped = []
    for row in conn.execute(lapsed).all():
        if row.state == State.CANCELING:
            reaped.append(_end(conn, row.id, State.CANCELED))
        elif row.attempt < row.max_attempts:
            reaped.append(_requeue(conn, row.id))
        else:
            reaped.append(_end(conn, row.id, State.FAILED, error=LOST))
    return reaped


def expire(conn: sa.Connection, limit: int = 100) -> list[Job]:
    """Ends queued jobs whose deadline passed before they started."""
    passed = (
        sa.select(jobs.c.id)
        .where(jobs.c.state == State.QUEUED, jobs.c.expires_at < _NOW, jobs.c.started_at.is_(None))
        .order_by(jobs.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = conn.execute(passed).scalars().all()
    return [_end(conn, job_id, State.EXPIRED, error=PASSED) for job_id in ids]


def retry(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> Job:
    """Submits an ended job again, as a new one with ``retried_from``; the spec, seed included, is the same.

    Calling it twice gives the same new job as long as that one has not ended.

    Raises:
        NotFound: the tenant has no such job.
        Conflict: the job has not ended.
    """
    old = _lock_own(conn, tenant_id, job_id)
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
    deadline = (old.expires_at - old.created_at).total_seconds() if old.expires_at is not None else None
    return submit(
        conn,
        NewJob(
            tenant_id=tenant_id,
            kind=old.kind,
            family=old.family,
            model=old.model,
            spec=old.spec,
            priority=old.priority,
            max_attempts=old.max_attempts,
            deadline_seconds=deadline,
            timeout_seconds=old.timeout_seconds,
            metadata=old.metadata,
            retried_from=job_id,
        ),
    )


def delete(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> list[str]:
    """Removes the row of an ended job and its artifact rows; gives the object keys to delete after the commit.

    A model that the job made stays; so do its files.

    Raises:
        NotFound: the tenant has no such job.
        Conflict: the job has not ended, or one that has not ended starts from an image of it.
    """
    job = _lock_own(conn, tenant_id, job_id)
    if not job.state.terminal:
        raise Conflict(f"Job {job_id} is {job.state}; cancel it and wait until it has ended, then delete it.")
    _check_unneeded(conn, tenant_id, job_id)
    artifacts = tables.artifacts
    keys = conn.execute(sa.select(artifacts.c.object_key).where(artifacts.c.job_id == job_id)).scalars().all()
    conn.execute(jobs.delete().where(jobs.c.id == job_id))
    return list(keys)


def backoff(attempt: int, first_seconds: float, jitter: float) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 1): doubling, at most an hour.

    ``jitter`` in [0, 1) spreads retries that failed together over half to all of the wait.
    """
    wait = min(first_seconds * 2.0 ** (attempt - 1), 3600.0)
    return float(wait * (0.5 + jitter / 2))


def job_error(failure: JobFailed) -> JobError:
    """A handler's verdict as the job's error."""
    return JobError(code=failure.code, title=failure.job_title, detail=failure.detail, retryable=failure.retryable)


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


def _check_unneeded(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> None:
    # An init image is named "<job>/<artifact>".
    source = sa.func.split_part(jobs.c.spec["input"]["init_image"].astext, "/", 1)
    active = jobs.c.state.notin_([str(state) for state in TERMINAL])
    statement = sa.select(jobs.c.id).where(jobs.c.tenant_id == tenant_id, active, source == str(job_id)).limit(1)
    needing = conn.execute(statement).scalar_one_or_none()
    if needing is not None:
        raise Conflict(
            f"Job {needing} starts from an image of job {job_id} and has not ended; cancel it or wait for its end."
        )


def _first_of(queue: str) -> sa.Select[Any]:
    return (
        sa.select(jobs.c.id, jobs.c.rank)
        .where(
            jobs.c.queue == queue,
            jobs.c.state == State.QUEUED,
            jobs.c.available_at <= sa.func.now(),
            sa.or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > sa.func.now(), jobs.c.started_at.is_not(None)),
        )
        .order_by(jobs.c.rank, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def _interval(seconds: float | None) -> timedelta:
    return timedelta(seconds=seconds or 0.0)


def _write_held(conn: sa.Connection, job_id: UUID, epoch: int, values: Mapping[str, Any]) -> State:
    # The state only: a spec may hold an image, and this runs every second.
    statement = (
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(_HELD))
        .values(**values)
        .returning(jobs.c.state)
    )
    state = conn.execute(statement).scalar_one_or_none()
    if state is None:
        raise LeaseLost(job_id, epoch)
    return State(state)


def _lock_held(conn: sa.Connection, job_id: UUID, epoch: int) -> Job:
    statement = (
        sa.select(jobs).where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(_HELD)).with_for_update()
    )
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise LeaseLost(job_id, epoch)
    return Job.from_row(row)


def _lock_own(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> Job:
    statement = sa.select(jobs).where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id).with_for_update()
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id}.")
    return Job.from_row(row)


def _update(conn: sa.Connection, job_id: UUID, **values: Any) -> Job:
    """Writes to a row that this transaction has locked and checked."""
    statement = jobs.update().where(jobs.c.id == job_id).values(revision=jobs.c.revision + 1, **values).returning(jobs)
    return Job.from_row(conn.execute(statement).mappings().one())


def _requeue(conn: sa.Connection, job_id: UUID, **values: Any) -> Job:
    """Without a wait the job keeps its place: it has waited already."""
    return _update(conn, job_id, state=State.QUEUED, worker_id=None, lease_expires_at=None, **values)


def _put_off(conn: sa.Connection, job: Job, seconds: float) -> Job:
    available = _NOW + _interval(seconds)
    return _requeue(conn, job.id, available_at=available, rank=available - head_start(job.priority))


def _end(conn: sa.Connection, job_id: UUID, state: State, *, error: JobError | None = None, **values: Any) -> Job:
    return _update(
        conn,
        job_id,
        state=state,
        finished_at=_NOW,
        lease_expires_at=None,
        # Nobody resumes it any more: its objects, gigabytes perhaps, are left to the collector.
        checkpoint=None,
        error=error.as_dict() if error is not None else None,
        **values,
    )


def _trimmed(error: JobError) -> JobError:
    detail = error.detail if len(error.detail) <= MAX_DETAIL else error.detail[:MAX_DETAIL] + "…"
    # Postgres' JSON cannot hold a NUL.
    return JobError(code=error.code, title=error.title, detail=detail.replace("\x00", "�"), retryable=error.retryable)


def _artifact_row(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "object_key": artifact.object_key,
        "content_type": artifact.content_type,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "position": artifact.position,
        "width": artifact.width,
        "height": artifact.height,
        "seed": artifact.seed,
    }
