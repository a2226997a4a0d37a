"""Archives that clients put into the object store by themselves, and what is collected afterwards."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from dataset_archives import captioned, keys, rows

from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.datasets import (
    DatasetLimits,
    collect_objects,
    complete_upload,
    create_upload,
    expire_uploads,
    find_dataset,
    import_archive,
)
from calotype.errors import Conflict, Invalid, NotFound
from calotype.settings import Settings
from calotype.tenants import Tenant

pytestmark = pytest.mark.usefixtures("scratch")

LIMITS = DatasetLimits.of(Settings())


@pytest.fixture
def owner(make_tenant: Callable[..., Tenant]) -> UUID:
    return make_tenant().id


@pytest.fixture
def other(make_tenant: Callable[..., Tenant]) -> UUID:
    return make_tenant().id


def test_an_archive_that_a_client_put_by_itself_becomes_a_dataset(
    engine: sa.Engine, store: ObjectStore, owner: UUID, other: UUID
) -> None:
    upload = create_upload(engine, store, owner, "brand")
    with pytest.raises(Conflict) as caught:
        complete_upload(engine, store, owner, upload.id, LIMITS)
    assert caught.value.code == "upload_missing"
    assert httpx.put(upload.url, content=captioned("red")).is_success
    with pytest.raises(NotFound):
        complete_upload(engine, store, other, upload.id, LIMITS)
    with transaction(engine) as conn, pytest.raises(NotFound):
        find_dataset(conn, owner, upload.id)
    made = complete_upload(engine, store, owner, upload.id, LIMITS)
    assert (made.id, made.name, made.images) == (upload.id, "brand", 1)
    assert complete_upload(engine, store, owner, upload.id, LIMITS) == made
    assert (rows(engine), keys(store)) == (1, [made.object_key])


def test_an_upload_of_known_content_gives_the_dataset_there_is(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    first = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    upload = create_upload(engine, store, owner, "again")
    httpx.put(upload.url, content=captioned("red"))
    assert complete_upload(engine, store, owner, upload.id, LIMITS) == first
    assert (rows(engine), keys(store)) == (1, [first.object_key])


def test_an_upload_that_is_refused_is_over(engine: sa.Engine, store: ObjectStore, owner: UUID) -> None:
    small = DatasetLimits.of(Settings(max_upload_bytes=1024))
    for content, code in ((b"no archive", "archive_unreadable"), (bytes(4096), "archive_too_large")):
        upload = create_upload(engine, store, owner, "brand")
        httpx.put(upload.url, content=content)
        with pytest.raises(Invalid) as caught:
            complete_upload(engine, store, owner, upload.id, small)
        assert caught.value.code == code
        assert (rows(engine), keys(store)) == (0, [])
        with pytest.raises(NotFound):
            complete_upload(engine, store, owner, upload.id, LIMITS)


def test_an_upload_completed_twice_at_once_is_one_dataset(engine: sa.Engine, store: ObjectStore, owner: UUID) -> None:
    upload = create_upload(engine, store, owner, "brand")
    httpx.put(upload.url, content=captioned("red"))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(complete_upload, engine, store, owner, upload.id, LIMITS) for _ in range(2)]
        assert {call.result().id for call in calls} == {upload.id}
    assert (rows(engine), len(keys(store))) == (1, 1)


def test_uploads_that_nobody_completes_are_collected(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    made = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    upload = create_upload(engine, store, owner, "late")
    httpx.put(upload.url, content=captioned("blue"))
    assert expire_uploads(engine, store, 3600.0) == 0
    assert expire_uploads(engine, store, 0.0) == 1
    assert (rows(engine), keys(store)) == (1, [made.object_key])


def test_objects_that_no_row_names_are_collected_when_they_are_old(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    made = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    orphan = f"tenants/{owner}/datasets/{'0' * 64}.zip"
    foreign = f"tenants/{owner}/jobs/x/1/image.png"
    for key in (orphan, foreign):
        store.put_bytes(key, b"x")
    assert collect_objects(engine, store, 3600.0) == 0
    assert collect_objects(engine, store, -60.0) == 1
    assert keys(store) == sorted([made.object_key, foreign])
