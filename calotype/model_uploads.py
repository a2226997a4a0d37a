"""Files of models that clients put into the object store by themselves, to be registered then.

An upload has no row: its id is in the keys of its files, below its tenant's prefix, so that the id of another tenant's
upload names nothing. Its files are its own until a version names them, which they do for good. What no version names
after a while is collected. Whoever registers an upload and whoever removes it meet at an advisory lock on its prefix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from uuid import UUID

import sqlalchemy as sa

from calotype.artifacts import ObjectStore, model_upload_prefix
from calotype.database import transaction
from calotype.errors import Conflict
from calotype.ids import new_id
from calotype.queue.deleting import files_of_models
from calotype.registry import ModelFile

#: As made by `calotype.artifacts.model_upload_prefix`.
_OBJECT = re.compile(r"(?P<prefix>tenants/[0-9a-f-]{36}/model-uploads/[0-9a-f-]{36}/).+")
#: Uploads asked about at once; each has a handful of files.
_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class FileUpload:
    """Where one file is put."""

    path: str
    url: str


@dataclass(frozen=True, kw_only=True)
class ModelUpload:
    """Places for the files of a model."""

    id: UUID
    files: Sequence[FileUpload]
    url_expires_at: datetime


def create_upload(store: ObjectStore, tenant_id: UUID, paths: Sequence[str]) -> ModelUpload:
    """A place to PUT each of these files to; good for ``presign_seconds``."""
    upload_id = new_id()
    prefix = model_upload_prefix(tenant_id, upload_id)
    signed = [(path, *store.presign_put(prefix + path)) for path in paths]
    return ModelUpload(
        id=upload_id,
        files=[FileUpload(path=path, url=url) for path, url, _ in signed],
        url_expires_at=min(expires_at for *_, expires_at in signed),
    )


def hold_upload(
    conn: sa.Connection, store: ObjectStore, tenant_id: UUID, upload_id: UUID, files: Sequence[ModelFile]
) -> None:
    """Keeps an upload from being removed until the transaction ends, in which a version is to name its files.

    Raises:
        Conflict: a version names them already, or they were removed since they were read.
    """
    _lock(conn, model_upload_prefix(tenant_id, upload_id))
    keys = [file.object_key for file in files]
    if files_of_models(conn, keys):
        raise Conflict(f"The files of upload {upload_id} are a registered model already; begin another upload.")
    if not all(store.has(key) for key in keys):
        raise Conflict(f"The files of upload {upload_id} were removed meanwhile; begin another upload.")


def remove_upload(engine: sa.Engine, store: ObjectStore, tenant_id: UUID, upload_id: UUID) -> None:
    """Removes what was put into an upload that was not registered. Nothing there is fine.

    Raises:
        Conflict: a version names its files.
    """
    prefix = model_upload_prefix(tenant_id, upload_id)
    with transaction(engine) as conn:
        _lock(conn, prefix)
        keys = [stored.key for stored in store.list_keys(prefix)]
        if files_of_models(conn, keys):
            raise Conflict(f"Upload {upload_id} is a registered model now; delete that instead.")
        store.delete(keys)


def collect_uploads(engine: sa.Engine, store: ObjectStore, older_than_seconds: float) -> int:
    """Removes the uploads of which every file is old and none is a version's; gives how many.

    For the reconciler; safe to run anywhere, and twice at once. What a deleted version left behind goes, too.
    """
    horizon = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    old = list(_older(store, horizon))
    removed = 0
    for start in range(0, len(old), _BATCH):
        uploads = old[start : start + _BATCH]
        with transaction(engine) as conn:
            named = files_of_models(conn, [key for _, keys in uploads for key in keys])
        for prefix, keys in uploads:
            if not named & set(keys) and _remove(engine, store, prefix, keys):
                removed += 1
    return removed


def _older(store: ObjectStore, horizon: datetime) -> Iterator[tuple[str, list[str]]]:
    """Prefixes of uploads that were last written before ``horizon``, with the keys below each."""
    ours = ((match["prefix"], one) for one in store.list_keys("tenants/") if (match := _OBJECT.fullmatch(one.key)))
    for prefix, found in groupby(ours, key=lambda pair: pair[0]):
        files = [stored for _, stored in found]
        if max(stored.modified for stored in files) < horizon:
            yield prefix, [stored.key for stored in files]


def _remove(engine: sa.Engine, store: ObjectStore, prefix: str, keys: Collection[str]) -> bool:
    with transaction(engine) as conn:
        _lock(conn, prefix)
        # Asked again under the lock: it may have been registered since.
        if files_of_models(conn, keys):
            return False
        store.delete(keys)
        return True


def _lock(conn: sa.Connection, prefix: str) -> None:
    conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:prefix, 0))"), {"prefix": prefix})
