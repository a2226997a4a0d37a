"""Out of a worker's hands, or out of the queue: finish, fail, release, cancel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.errors import CancelRequested, Conflict, JobFailed
from calotype.jobs import Artifact, Job, JobError, State
from calotype.queue import accounts, followers
from calotype.queue.rows import Held, end, jobs, lock_held, lock_own, move_one, put_off, requeue, trimmed
from calotype.queue.values import Outcome
from calotype.registry import register_version


def finish(conn: sa.Connection, job_id: UUID, epoch: int, outcome: Outcome) -> Job:
    """Publishes: artifact rows, model version, result, charge and final state together, its followers' too.

    What a job that is being canceled made goes to the jobs that wait for it; it ends canceled, without a result. Ids of
    the jobs that ended with it are in ``answered``.

    Raises:
        LeaseLost: the epoch is stale; nothing is published.
        CancelRequested: a user canceled the job, and no other waits for it; nothing is published. Acknowledge with
            :func:`acknowledge_cancel`.
    """
    held = lock_held(conn, job_id, epoch)
    if held.job.state is State.CANCELING:
        return _hand_over(conn, held, outcome)
    if held.job.attempt == 1 and held.job.gpu_seconds == 0.0:
        # Before the shares are locked, for which claims wait.
        accounts.observe(conn, held.job, held.seconds)
    return _leave(conn, held, State.SUCCEEDED, result=_publish(conn, job_id, outcome))


def _publish(conn: sa.Connection, job_id: UUID, outcome: Outcome) -> dict[str, Any]:
    """Writes what a job made; gives its result."""
    result = dict(outcome.result)
    if outcome.model is not None:
        result["model"] = register_version(conn, outcome.model).ref
    if outcome.artifacts:
        rows = [{"job_id": job_id, **artifact_row(artifact)} for artifact in outcome.artifacts]
        conn.execute(tables.artifacts.insert(), rows)
    return result


def _hand_over(conn: sa.Connection, held: Held, outcome: Outcome) -> Job:
    """The first of those that wait gets the result as its own."""
    heir = followers.promote(conn, held.job)
    if heir is None:
        raise CancelRequested(f"Job {held.job.id} is being canceled; its result was not stored.")
    result, key = _publish(conn, heir.id, outcome), followers.key_of_images(held.job.cache_key)
    made, *answered = followers.end_with_followers(conn, heir.id, State.SUCCEEDED, result=result, cache_key=key)
    job = end(conn, held.job.id, State.CANCELED, gpu_seconds=jobs.c.gpu_seconds + held.seconds)
    accounts.settle(conn, [(held, job)])
    accounts.add_usage(conn, made, images=made.units)
    return _with(conn, job, answered, made)


def fail(conn: sa.Connection, job_id: UUID, epoch: int, error: JobError, retry_in: float | None = None) -> Job:
    """Ends the job with ``error``, or queues it again after ``retry_in`` seconds.

    It is queued again when the error is retryable, ``retry_in`` is given and attempts remain. A job that is being
    canceled ends canceled.

    Raises:
        LeaseLost: the epoch is stale.
    """
    held = lock_held(conn, job_id, epoch)
    if held.job.state is State.CANCELING:
        return _leave(conn, held, State.CANCELED)
    if error.retryable and retry_in is not None and held.job.attempt < held.job.max_attempts:
        job = put_off(conn, held.job, retry_in, error, gpu_seconds=jobs.c.gpu_seconds + held.seconds)
        accounts.settle(conn, [(held, job)])
        return job
    return _leave(conn, held, State.FAILED, error=trimmed(error))


def release(conn: sa.Connection, job_id: UUID, epoch: int) -> Job:
    """Gives the job back unharmed; costs no attempt. A job that is being canceled ends canceled.

    Raises:
        LeaseLost: the epoch is stale.
    """
    held = lock_held(conn, job_id, epoch)
    if held.job.state is State.CANCELING:
        return _leave(conn, held, State.CANCELED)
    gpu_seconds = jobs.c.gpu_seconds + held.seconds
    job = requeue(conn, job_id, "released", attempt=jobs.c.attempt - 1, gpu_seconds=gpu_seconds)
    accounts.settle(conn, [(held, job)])
    return job


def acknowledge_cancel(conn: sa.Connection, job_id: UUID, epoch: int) -> Job:
    """Ends a job that is being canceled, once its worker has stopped.

    Raises:
        LeaseLost: the epoch is stale.
        Conflict: nobody asked to cancel it.
    """
    held = lock_held(conn, job_id, epoch)
    if held.job.state is not State.CANCELING:
        raise Conflict(f"Job {job_id} is {held.job.state}; nobody asked to cancel it.")
    return _leave(conn, held, State.CANCELED)


def cancel(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> Job:
    """Cancels at a user's wish; a job that ended stays as it is, so that calling twice is harmless.

    Raises:
        NotFound: the tenant has no such job.
    """
    job = lock_own(conn, tenant_id, job_id)
    if job.state is State.QUEUED:
        ended, *_ = followers.end_with_followers(conn, job_id, State.CANCELED)
        accounts.note_idle(conn, tenant_id)
        accounts.add_usage(conn, ended)
        return ended
    if job.state is State.RUNNING:
        return move_one(conn, job_id, {"state": State.CANCELING})
    return job


def job_error(failure: JobFailed) -> JobError:
    """A handler's verdict as the job's error."""
    return JobError(code=failure.code, title=failure.job_title, detail=failure.detail, retryable=failure.retryable)


def _leave(conn: sa.Connection, held: Held, state: State, *, error: JobError | None = None, **values: Any) -> Job:
    """From a worker's hands to its end, charged."""
    gpu_seconds = jobs.c.gpu_seconds + held.seconds
    job, *answered = followers.end_with_followers(
        conn, held.job.id, state, error=error, gpu_seconds=gpu_seconds, **values
    )
    accounts.settle(conn, [(held, job)])
    return _with(conn, job, answered)


def _with(conn: sa.Connection, job: Job, answered: Sequence[Job], *made: Job) -> Job:
    """Counts the jobs that ended with it, once all shares are settled: rows are locked in that order."""
    if answered:
        accounts.add_usage(conn, answered[0], jobs=len(answered), cached=len(answered))
    return replace(job, answered=tuple(one.id for one in (*made, *answered)))


def artifact_row(artifact: Artifact) -> dict[str, Any]:
    """The columns of an artifact, without its job."""
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
