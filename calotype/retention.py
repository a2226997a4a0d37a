"""What goes by itself: artifacts whose time is over, and the rows of jobs that ended long ago.

Rows first, objects after the commit: a crash in between leaves objects without a row, which the collector of orphans
finds, and never a row without its object. A model that a job made stays. Safe to run anywhere, and twice at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.queue.deleting import needed, unreferenced

log = logging.getLogger(__name__)

jobs, artifacts = tables.jobs, tables.artifacts

#: Jobs of one transaction.
BATCH = 100

# Not while a job that has not ended starts from an image of it; asked again once the rows are locked.
_UNNEEDED = f"""NOT EXISTS (
    SELECT FROM jobs WHERE {tables.STARTS_FROM_IMAGE} AND {tables.INIT_IMAGE_OF} = old.id::text)"""

# Jobs whose own time for their artifacts is over. A row that somebody holds waits for the next sweep.
_DUE = sa.text(f"""
SELECT old.id FROM jobs old
WHERE {tables.HAS_ARTIFACTS} AND retain_seconds IS NOT NULL
    AND {tables.ARTIFACTS_DUE} < (now() AT TIME ZONE 'UTC') AND {_UNNEEDED}
ORDER BY {tables.ARTIFACTS_DUE} LIMIT :most FOR UPDATE SKIP LOCKED
""")  # noqa: S608 - fixed texts

# Jobs that say nothing themselves, when the operator's time is over.
_DUE_BY_DEFAULT = sa.text(f"""
SELECT old.id FROM jobs old
WHERE {tables.HAS_ARTIFACTS} AND retain_seconds IS NULL
    AND finished_at < now() - make_interval(secs => :seconds) AND {_UNNEEDED}
ORDER BY finished_at LIMIT :most FOR UPDATE SKIP LOCKED
""")  # noqa: S608 - fixed texts

# Jobs that ended long ago. Whoever was promised his artifacts for longer keeps them, and the row.
_OLD = sa.text(f"""
SELECT old.id FROM jobs old
WHERE finished_at < now() - make_interval(secs => :seconds)
    AND (retain_seconds IS NULL OR artifacts_expired_at IS NOT NULL OR state <> 'succeeded') AND {_UNNEEDED}
ORDER BY finished_at LIMIT :most FOR UPDATE SKIP LOCKED
""")  # noqa: S608 - fixed texts


@dataclass(frozen=True)
class Swept:
    """What one transaction found and removed."""

    #: Rows that were looked at; as many as were allowed when there may be more.
    found: int
    #: Jobs that lost their artifacts, or their row.
    jobs: int
    #: Objects to delete after the commit.
    objects: Sequence[str]


def sweep(engine: sa.Engine, store: ObjectStore, *, retain_seconds: float | None, keep_seconds: float) -> int:
    """Removes everything whose time is over, batch by batch; gives how many jobs lost their artifacts or their row.

    ``retain_seconds`` counts for jobs that say nothing themselves; None: their artifacts stay as long as the row.

    Raises:
        DependencyDown: Postgres is away. Objects that the store keeps are left to the collector.
    """
    expired = _batches(engine, store, lambda conn: expire_due(conn, BATCH))
    if retain_seconds is not None:
        expired += _batches(engine, store, lambda conn: expire_older(conn, retain_seconds, BATCH))
    forgotten = _batches(engine, store, lambda conn: forget_jobs(conn, keep_seconds, BATCH))
    if expired or forgotten:
        log.info("retention", extra={"artifacts_expired": expired, "jobs_forgotten": forgotten})
    return expired + forgotten


def expire_due(conn: sa.Connection, most: int) -> Swept:
    """Removes the artifacts of jobs whose ``retain_seconds`` are over."""
    return _expire(conn, conn.execute(_DUE, {"most": most}).scalars().all())


def expire_older(conn: sa.Connection, seconds: float, most: int) -> Swept:
    """Removes the artifacts of jobs that ended so long ago and say nothing about it themselves."""
    return _expire(conn, conn.execute(_DUE_BY_DEFAULT, {"most": most, "seconds": seconds}).scalars().all())


def forget_jobs(conn: sa.Connection, seconds: float, most: int) -> Swept:
    """Removes the rows of jobs that ended so long ago, with all that belongs to them."""
    found = conn.execute(_OLD, {"most": most, "seconds": seconds}).scalars().all()
    doomed = _unneeded(conn, found)
    keys = _remove_artifacts(conn, doomed)
    conn.execute(jobs.delete().where(jobs.c.id.in_(doomed)))
    return Swept(len(found), len(doomed), unreferenced(conn, keys))


def _expire(conn: sa.Connection, found: Sequence[UUID]) -> Swept:
    doomed = _unneeded(conn, found)
    keys = _remove_artifacts(conn, doomed)
    expired = {"artifacts_expired_at": sa.func.clock_timestamp(), "revision": jobs.c.revision + 1}
    conn.execute(jobs.update().where(jobs.c.id.in_(doomed)).values(expired))
    return Swept(len(found), len(doomed), unreferenced(conn, keys))


def _unneeded(conn: sa.Connection, job_ids: Sequence[UUID]) -> list[UUID]:
    """By a statement of its own, which sees what was submitted before the rows were locked."""
    wanted = needed(conn, job_ids) if job_ids else {}
    return [job_id for job_id in job_ids if job_id not in wanted]


def _remove_artifacts(conn: sa.Connection, job_ids: Sequence[UUID]) -> set[str]:
    statement = artifacts.delete().where(artifacts.c.job_id.in_(job_ids)).returning(artifacts.c.object_key)
    return set(conn.execute(statement).scalars())


def _batches(engine: sa.Engine, store: ObjectStore, step: Callable[[sa.Connection], Swept]) -> int:
    """Short transactions, until there is nothing left to find."""
    removed = 0
    while True:
        with transaction(engine) as conn:
            swept = step(conn)
        store.discard(swept.objects)
        removed += swept.jobs
        if swept.found < BATCH:
            return removed
