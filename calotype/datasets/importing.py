"""Importing: validate, store, then make the row; on any failure neither object nor row is left.

The object is stored before the row is committed, so that no row ever names an object that is not there. What
races with that (equal content imported twice at once, or deleted while it is imported) meets at an advisory
lock on the object's key, and the row is committed only after a look, under that lock, whether the object is
there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype.artifacts import ObjectStore, dataset_key
from calotype.database import transaction
from calotype.datasets.catalogue import check_name, is_referenced
from calotype.datasets.packing import Packed, pack
from calotype.datasets.scratch import scratch
from calotype.datasets.values import Dataset, DatasetLimits
from calotype.errors import DependencyDown, NotFound
from calotype.ids import new_dataset_id
from calotype.tables import datasets

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/zip"
#: How often an import stores its object again after a deletion took it away in between.
_ATTEMPTS = 3


class _VanishedError(Exception):
    """The object was deleted between being stored and being named by a row."""


def import_archive(
    engine: sa.Engine,
    store: ObjectStore,
    tenant_id: UUID | None,
    path: Path,
    name: str,
    limits: DatasetLimits,
    *,
    upload_id: str | None = None,
) -> Dataset:
    """Makes the archive at ``path`` a dataset of the tenant, or with ``tenant_id`` None one that all share.

    Content that the owner already has is not stored again: its dataset is given, under the name it has.
    ``upload_id`` is the row of an upload that becomes the dataset.

    Raises:
        Invalid: the archive or the name; names the file and the remedy.
        NotFound: the upload is gone.
        DependencyDown: Postgres, the store or the disk for temporary files; nothing is left.
    """
    check_name(name)
    if upload_id is None:
        # A canonical archive that comes back, such as a starter dataset at every start, need not be unpacked.
        known = _known(engine, store, tenant_id, _digest(path))
        if known is not None:
            return known
    with scratch() as folder:
        target = folder / "dataset.zip"
        packed = pack(path, target, limits)
        return _store(engine, store, target, _row(tenant_id, name, packed), upload_id)


def import_shared(engine: sa.Engine, store: ObjectStore, path: Path, name: str, limits: DatasetLimits) -> Dataset:
    """Makes an archive a dataset that every tenant sees; doing it again changes nothing."""
    return import_archive(engine, store, None, path, name, limits)


def discard_objects(engine: sa.Engine, store: ObjectStore, keys: Iterable[str]) -> None:
    """Deletes the objects among ``keys`` that no row refers to, also when an import is about to."""
    for key in keys:
        with transaction(engine) as conn:
            _lock(conn, key)
            if not is_referenced(conn, key):
                store.delete([key])


def discard_or_leave(engine: sa.Engine, store: ObjectStore, keys: Iterable[str]) -> None:
    """Like :func:`discard_objects`, but an outage is not told: what led here is, and the collector of orphans finds
    the objects later.
    """
    doomed = list(keys)
    try:
        discard_objects(engine, store, doomed)
    except DependencyDown as exc:
        log.warning("objects left behind for the collector", extra={"objects": doomed, "reason": exc.detail})


def _row(tenant_id: UUID | None, name: str, packed: Packed) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "name": name,
        "state": "ready",
        "digest": packed.digest,
        "object_key": dataset_key(tenant_id, packed.digest),
        "bytes": packed.bytes,
        "images": packed.images,
        "captions": packed.captions,
        "labels": list(packed.labels),
    }


def _known(engine: sa.Engine, store: ObjectStore, tenant_id: UUID | None, digest: str) -> Dataset | None:
    """The owner's dataset of this digest, if its object is there too."""
    with transaction(engine) as conn:
        found = _same(conn, tenant_id, digest)
    return found if found is not None and store.has(found.object_key) else None


def _store(engine: sa.Engine, store: ObjectStore, target: Path, row: dict[str, Any], upload_id: str | None) -> Dataset:
    key = row["object_key"]
    try:
        for _ in range(_ATTEMPTS):
            if _known(engine, store, row["tenant_id"], row["digest"]) is None:
                store.put_file(key, target, CONTENT_TYPE)
            try:
                return _commit(engine, store, row, upload_id)
            except _VanishedError:
                continue
    except BaseException:
        # Also on KeyboardInterrupt: whoever ends the process leaves nothing behind.
        discard_or_leave(engine, store, [key])
        raise
    raise DependencyDown(f"The object store lost {key} again and again while it was imported; try again later.")


def _commit(engine: sa.Engine, store: ObjectStore, row: dict[str, Any], upload_id: str | None) -> Dataset:
    """Makes the row, or finds the one there is; the object is there when it is visible."""
    with transaction(engine) as conn:
        _lock(conn, row["object_key"])
        if not store.has(row["object_key"]):
            raise _VanishedError
        found = _same(conn, row["tenant_id"], row["digest"])
        if found is None:
            return _insert(conn, row) if upload_id is None else _finish_upload(conn, row, upload_id)
        unfinished = datasets.c.id == upload_id, datasets.c.state == "uploading"
        conn.execute(sa.delete(datasets).where(*unfinished))
        return found


def _insert(conn: sa.Connection, row: dict[str, Any]) -> Dataset:
    statement = sa.insert(datasets).values(id=new_dataset_id(), **row).returning(datasets)
    return Dataset.from_row(conn.execute(statement).mappings().one())


def _finish_upload(conn: sa.Connection, row: dict[str, Any], upload_id: str) -> Dataset:
    """uploading → ready."""
    owner = datasets.c.tenant_id == row["tenant_id"]
    statement = sa.update(datasets).where(datasets.c.id == upload_id, datasets.c.state == "uploading", owner)
    made = conn.execute(statement.values(**row).returning(datasets)).mappings().first()
    if made is None:
        raise NotFound(f"There is no upload '{upload_id}' any more; begin a new one.")
    return Dataset.from_row(made)


def _same(conn: sa.Connection, tenant_id: UUID | None, digest: str) -> Dataset | None:
    query = sa.select(datasets).where(datasets.c.tenant_id.is_not_distinct_from(tenant_id), datasets.c.digest == digest)
    row = conn.execute(query).mappings().first()
    return None if row is None else Dataset.from_row(row)


def _lock(conn: sa.Connection, key: str) -> None:
    """Held until the transaction ends, by whoever makes or removes what the key names."""
    conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
