"""Collects objects that no row refers to: uploads of epochs that were lost, checkpoints that were replaced.

Listing comes first, the question to Postgres second. An object is spared if its job is held under the epoch in its
key, or if an artifact, a checkpoint or a model version names it. An epoch that is over never becomes live again and
nothing new is ever referenced under it, so what is found dead stays dead. The age margin on top covers clocks and
listings that lag.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from calotype import tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.jobs import HELD
from calotype.queue.deleting import files_of_models

log = logging.getLogger(__name__)

#: As made by `calotype.artifacts.job_prefix`.
JOB_OBJECT = re.compile(r"tenants/[0-9a-f-]{36}/jobs/(?P<job>[0-9a-f-]{36})/(?P<epoch>\d+)/.+")
#: Objects asked about, and deleted, at once.
BATCH = 500


def collect(engine: Engine, store: ObjectStore, older_than: float) -> int:
    """Delete the orphaned objects of jobs that are older than `older_than` seconds; returns how many.

    Raises DependencyDown; what was deleted until then stays deleted, the rest is found next time.
    """
    horizon = datetime.now(UTC) - timedelta(seconds=older_than)
    old = (
        stored.key
        for stored in store.list_keys("tenants/")
        if stored.modified < horizon and JOB_OBJECT.fullmatch(stored.key)
    )
    collected = 0
    for keys in _batches(old):
        with transaction(engine) as conn:
            orphans = sorted(unreferenced(conn, keys))
        if orphans:
            store.delete(orphans)
            collected += len(orphans)
            log.info("orphans collected", extra={"objects": len(orphans), "first": orphans[0]})
    return collected


def unreferenced(conn: Connection, keys: Collection[str]) -> set[str]:
    """Those of `keys`, object keys of jobs, that no row refers to and no held epoch may still refer to."""
    epochs = {key: _job_and_epoch(key) for key in keys}
    jobs = {job for job, _ in epochs.values()}
    live = _live_epochs(conn, jobs)
    candidates = {key for key, job_and_epoch in epochs.items() if job_and_epoch not in live}
    return candidates - _referenced(conn, candidates, jobs)


def _live_epochs(conn: Connection, jobs: Collection[UUID]) -> set[tuple[UUID, int]]:
    """The (job, epoch) pairs whose worker may still be uploading."""
    table = tables.jobs
    query = sa.select(table.c.id, table.c.epoch).where(table.c.id.in_(jobs), table.c.state.in_(sorted(HELD)))
    return {(row.id, row.epoch) for row in conn.execute(query)}


def _referenced(conn: Connection, keys: Collection[str], jobs: Collection[UUID]) -> set[str]:
    """Those of `keys` that an artifact, a checkpoint of `jobs`, or a model version names."""
    named = set(conn.scalars(sa.select(tables.artifacts.c.object_key).where(tables.artifacts.c.object_key.in_(keys))))
    checkpoints = sa.select(tables.jobs.c.checkpoint).where(
        tables.jobs.c.id.in_(jobs), tables.jobs.c.checkpoint.is_not(None)
    )
    for checkpoint in conn.scalars(checkpoints):
        named.update(item["key"] for item in checkpoint["objects"])
    return (named | files_of_models(conn, keys)) & set(keys)


def _job_and_epoch(key: str) -> tuple[UUID, int]:
    match = JOB_OBJECT.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is not the object of a job")
    return UUID(match["job"]), int(match["epoch"])


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(keys)
    while batch := list(islice(iterator, BATCH)):
        yield batch
