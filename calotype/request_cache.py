"""The request cache: an equal job of the same tenant, finished or on its way, that a new one need not repeat.

Equal is what has the same key (:func:`calotype.keys.cache_keys`). Finding only looks and locks; what then becomes of
the new job is for :mod:`calotype.queue`. What is found is held `FOR KEY SHARE`: whoever ends, deletes or expires a job
locks its row `FOR UPDATE` first, so that it waits for us or we for it, while heartbeats pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.jobs import CacheMode, Job, State

#: Looks at most: each time another transaction ended or removed what was found before it could be held.
MOST_LOOKS = 10

# The words of the indexes; a job whose images are gone, or that made none, is not in them.
_LISTED = "artifacts_expired_at IS NULL AND state IN ('queued', 'running', 'canceling', 'succeeded')"

# Its images are there, and may be shown for a while yet.
_ANSWERS = """state = 'succeeded' AND artifacts_expired_at IS NULL
    AND (retain_seconds IS NULL OR finished_at + make_interval(secs => retain_seconds) > clock_timestamp())"""

# It will have a result, and waits for no other itself. One that is being canceled is worked on for those that wait.
_LEADS = """leader_id IS NULL AND (state IN ('queued', 'running')
    OR (state = 'canceling' AND EXISTS (SELECT FROM jobs f WHERE f.leader_id = jobs.id)))"""


def _candidate(key: str) -> sa.TextClause:
    # One statement, one snapshot: a job that finishes between two would be missed by both. The newest result lasts
    # longest; the oldest on its way is there first.
    own = f"tenant_id = :tenant_id AND {key} = :key AND {_LISTED}"
    return sa.text(f"""
SELECT coalesce(
    (SELECT id FROM jobs WHERE {own} AND {_ANSWERS} ORDER BY id DESC LIMIT 1),
    (SELECT id FROM jobs WHERE {own} AND {_LEADS} ORDER BY id LIMIT 1))
""")  # noqa: S608 - fixed texts


_BY_KEY = _candidate("cache_key")
_BY_ANY_SEED = _candidate("any_seed_key")

# Waits for whoever is just changing the row, then looks at it as it is now.
_HOLD = sa.text(f"""
SELECT jobs.*, state = 'queued' AND available_at > clock_timestamp() AS put_off FROM jobs
WHERE id = :job_id AND (({_ANSWERS}) OR ({_LEADS})) FOR KEY SHARE
""")  # noqa: S608 - fixed texts

_COLUMNS = ", ".join(column.name for column in tables.artifacts.columns if column.name != "job_id")
_SHARE = sa.text(f"""
INSERT INTO artifacts (job_id, {_COLUMNS})
SELECT receiver, {_COLUMNS} FROM artifacts CROSS JOIN unnest(CAST(:job_ids AS uuid[])) AS receiver
WHERE job_id = :source_id
""")  # noqa: S608 - fixed texts


@dataclass(frozen=True)
class Equal:
    """A job that gives what another asks for; it neither ends nor goes until the transaction ends."""

    job: Job
    #: It failed and waits out a backoff.
    put_off: bool

    @property
    def finished(self) -> bool:
        return self.job.state is State.SUCCEEDED


def find(
    conn: sa.Connection, tenant_id: UUID, mode: CacheMode, cache_key: str | None, any_seed_key: str | None
) -> Equal | None:
    """The job that may answer one with these keys, held; None: there is none, or the job is not for the cache.

    Of two equal submissions at once the second waits here for the first to commit, and then finds it.
    """
    if mode == "bypass" or cache_key is None or any_seed_key is None:
        return None
    if mode == "any_seed":
        # This lock before the other, everywhere.
        _lock(conn, tenant_id, any_seed_key)
    _lock(conn, tenant_id, cache_key)
    for _ in range(MOST_LOOKS):
        found = _look(conn, tenant_id, mode, cache_key, any_seed_key)
        if found is None:
            return None
        row = conn.execute(_HOLD, {"job_id": found}).mappings().one_or_none()
        if row is not None:
            return Equal(Job.from_row(row), row["put_off"])
    return None


def _look(conn: sa.Connection, tenant_id: UUID, mode: CacheMode, cache_key: str, any_seed_key: str) -> UUID | None:
    found: UUID | None = conn.execute(_BY_KEY, {"tenant_id": tenant_id, "key": cache_key}).scalar_one()
    if found is None and mode == "any_seed":
        found = conn.execute(_BY_ANY_SEED, {"tenant_id": tenant_id, "key": any_seed_key}).scalar_one()
    return found


def _lock(conn: sa.Connection, tenant_id: UUID, key: str) -> None:
    lock = sa.func.hashtextextended(f"request_cache:{tenant_id}:{key}", 0)
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def result_of(source: Job) -> dict[str, Any]:
    """The result of a job that is answered from ``source``."""
    found: Mapping[str, Any] = source.result or {}
    return {**found, "cached": True, "cached_from": str(source.id)}


def share_artifacts(conn: sa.Connection, source_id: UUID, job_ids: Sequence[UUID]) -> None:
    """Makes the artifacts of one job artifacts of others, too: the same objects, which stay until the last row goes."""
    conn.execute(_SHARE, {"source_id": source_id, "job_ids": list(job_ids)})
