"""Collecting what nobody wants any more: uploads that were never completed, objects that no row refers to.

For the reconciler; safe to run anywhere, and twice at once.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.datasets.importing import discard_objects
from calotype.tables import datasets

#: As made by `calotype.artifacts.dataset_key` and `upload_key`.
_OBJECT = re.compile(r"(tenants/[0-9a-f-]{36}|shared)/(datasets/[0-9a-f]{64}\.zip|uploads/[0-9a-f-]{36})")

#: Objects asked about at once; Postgres takes 65,535 parameters a statement.
_BATCH = 500


def expire_uploads(engine: sa.Engine, store: ObjectStore, older_than_seconds: float, limit: int = 100) -> int:
    """Removes at most ``limit`` uploads that nobody completed; gives how many. Safe to run twice at once."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_seconds)
    lapsed = (
        sa.select(datasets.c.id)
        .where(datasets.c.state == "uploading", datasets.c.created_at < sa.func.now() - age)
        .order_by(datasets.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = sa.delete(datasets).where(datasets.c.id.in_(lapsed)).returning(datasets.c.object_key)
    with transaction(engine) as conn:
        keys = list(conn.execute(statement).scalars())
    # Lost in between, they are orphans like any other and are collected as such.
    discard_objects(engine, store, keys)
    return len(keys)


def collect_objects(engine: sa.Engine, store: ObjectStore, older_than_seconds: float) -> int:
    """Removes objects of datasets and uploads that are old and that no row names; gives how many.

    They are rare: an import that lost Postgres and the store together, or whose process was killed in the middle.
    """
    horizon = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    old = [
        stored.key
        for prefix in ("tenants/", "shared/")
        for stored in store.list_keys(prefix)
        if stored.modified < horizon and _OBJECT.fullmatch(stored.key)
    ]
    orphans: list[str] = []
    for start in range(0, len(old), _BATCH):
        keys = old[start : start + _BATCH]
        with transaction(engine) as conn:
            query = sa.select(datasets.c.object_key).where(datasets.c.object_key.in_(keys))
            named = set(conn.execute(query).scalars())
        orphans += [key for key in keys if key not in named]
    discard_objects(engine, store, orphans)
    return len(orphans)
