"""Uploads that clients make by themselves: the archive goes straight to the object store, then it is
imported.

``create_upload`` makes a row in state uploading and a presigned URL, ``complete_upload`` turns the row into a
dataset or removes it together with what was uploaded. What nobody completes is collected later.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from calotype.archive import megabytes, printable, refusal
from calotype.artifacts import ObjectStore, upload_key
from calotype.database import transaction
from calotype.datasets.catalogue import check_name, is_dataset_id
from calotype.datasets.importing import discard_or_leave, import_archive
from calotype.datasets.scratch import scratch
from calotype.datasets.values import Dataset, DatasetLimits, DatasetUpload
from calotype.errors import Conflict, Invalid, NotFound
from calotype.ids import new_dataset_id
from calotype.tables import datasets

_CHUNK = 1 << 20


def create_upload(engine: sa.Engine, store: ObjectStore, tenant_id: UUID, name: str) -> DatasetUpload:
    """A place to PUT an archive to; good for ``presign_seconds``.

    Raises:
        Invalid: the name.
    """
    check_name(name)
    dataset_id, key = new_dataset_id(), upload_key(tenant_id)
    url, expires_at = store.presign_put(key)
    row = {"id": dataset_id, "tenant_id": tenant_id, "name": name, "state": "uploading", "object_key": key}
    with transaction(engine) as conn:
        conn.execute(sa.insert(datasets).values(**row))
    return DatasetUpload(id=dataset_id, name=name, url=url, url_expires_at=expires_at)


def complete_upload(
    engine: sa.Engine, store: ObjectStore, tenant_id: UUID, upload_id: str, limits: DatasetLimits
) -> Dataset:
    """Imports what was uploaded; completing again gives the same dataset.

    When the archive is refused, the upload is over: neither its row nor its object is left. When a service is
    down both stay, and completing may be tried again.

    Raises:
        NotFound: the tenant has no such upload.
        Conflict: nothing was uploaded yet.
        Invalid: as :func:`~calotype.datasets.importing.import_archive`.
    """
    with transaction(engine) as conn:
        query = sa.select(datasets).where(datasets.c.id == upload_id, datasets.c.tenant_id == tenant_id)
        row = conn.execute(query).mappings().one_or_none() if is_dataset_id(upload_id) else None
    if row is None:
        raise NotFound(f"There is no upload '{printable(upload_id)}'; it may have expired. Begin a new one.")
    if row["state"] == "ready":
        return Dataset.from_row(row)
    key = row["object_key"]
    try:
        with scratch() as folder:
            path = folder / "upload"
            _download(store, key, path, limits)
            made = import_archive(engine, store, tenant_id, path, row["name"], limits, upload_id=upload_id)
    except Invalid:
        _abandon(engine, upload_id)
        discard_or_leave(engine, store, [key])
        raise
    discard_or_leave(engine, store, [key])
    return made


def _download(store: ObjectStore, key: str, path: Path, limits: DatasetLimits) -> None:
    """Fetches what was uploaded, and never more than is allowed."""
    most = limits.archive.archive_bytes
    if _uploaded_bytes(store, key) > most or _copy(store, key, path, most) > most:
        raise refusal(
            "archive_too_large",
            None,
            f"has more than the {megabytes(most)} that are taken",
            "Split it, or make the images smaller.",
        )


def _uploaded_bytes(store: ObjectStore, key: str) -> int:
    try:
        return store.stat(key).bytes
    except NotFound as exc:
        message = "Nothing was uploaded yet; PUT the archive to the URL first."
        raise Conflict(message, code="upload_missing") from exc


def _copy(store: ObjectStore, key: str, path: Path, most: int) -> int:
    """Copies to the end, or past ``most`` bytes: the URL still works, so there may be more by now."""
    with store.open_stream(key) as stream, path.open("wb") as file:
        while file.tell() <= most and (chunk := stream.read(_CHUNK)):
            file.write(chunk)
        return file.tell()


def _abandon(engine: sa.Engine, upload_id: str) -> None:
    with transaction(engine) as conn:
        conn.execute(sa.delete(datasets).where(datasets.c.id == upload_id, datasets.c.state == "uploading"))
