"""Out of the database: jobs that have ended."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.errors import Conflict
from calotype.queue.rows import jobs, lock_own


def delete(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> list[str]:
    """Removes the row of an ended job and its artifact rows; gives the object keys to delete after the commit.

    Objects that are another job's artifacts, too, stay. A model that the job made stays; so do its files.

    Raises:
        NotFound: the tenant has no such job.
        Conflict: the job has not ended, or one that has not ended starts from an image of it.
    """
    job = lock_own(conn, tenant_id, job_id)
    if not job.state.terminal:
        raise Conflict(f"Job {job_id} is {job.state}; cancel it and wait until it has ended, then delete it.")
    _check_unneeded(conn, job_id)
    artifacts = tables.artifacts
    keys = conn.execute(sa.select(artifacts.c.object_key).where(artifacts.c.job_id == job_id)).scalars().all()
    conn.execute(jobs.delete().where(jobs.c.id == job_id))
    return unreferenced(conn, keys)


def unreferenced(conn: sa.Connection, keys: Collection[str]) -> list[str]:
    """Which of these objects are no job's artifact any more, and no file of a model.

    Two transactions that remove jobs which share an object at the same moment each still see the other's: the object is
    left to the collector then. None gets a new reference meanwhile: that needs an old one, whose job is held.
    """
    if not keys:
        return []
    artifacts = tables.artifacts
    statement = sa.select(artifacts.c.object_key).where(artifacts.c.object_key.in_(list(keys)))
    left = set(keys) - set(conn.execute(statement).scalars())
    return sorted(left - files_of_models(conn, left)) if left else []


def files_of_models(conn: sa.Connection, keys: Collection[str]) -> set[str]:
    """Which of these objects are files of a model version."""
    models = tables.model_versions
    files = sa.func.jsonb_array_elements(models.c.files).table_valued("value", joins_implicitly=True)
    key = files.c.value.op("->>")("object_key")
    return set(conn.scalars(sa.select(key).select_from(models, files).where(key.in_(list(keys)))))


def needed(conn: sa.Connection, job_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """Which of these jobs gave the image that another one, which has not ended, starts from; each with such a job.

    Asked after the rows are locked: a submission holds the job that it names.
    """
    statement = sa.select(jobs.c.id, sa.literal_column(tables.INIT_IMAGE_OF).label("source")).where(
        # An init image of a job is named "<job>/<artifact>".
        sa.text(tables.STARTS_FROM_IMAGE),
        sa.literal_column(tables.INIT_IMAGE_OF).in_([str(job_id) for job_id in job_ids]),
    )
    return {UUID(row.source): row.id for row in conn.execute(statement)}


def _check_unneeded(conn: sa.Connection, job_id: UUID) -> None:
    needing = needed(conn, [job_id]).get(job_id)
    if needing is not None:
        raise Conflict(
            f"Job {needing} starts from an image of job {job_id} and has not ended; cancel it or wait for its end."
        )
