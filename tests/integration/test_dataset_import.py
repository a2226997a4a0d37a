"""Importing datasets: all of it, or nothing, and equal content once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from dataset_archives import captioned, keys, png, rows, zip_bytes

from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.datasets import (
    DatasetArchive,
    DatasetLimits,
    discard_objects,
    find_dataset,
    import_archive,
)
from calotype.errors import DependencyDown, Invalid
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


def test_an_imported_dataset_can_be_found_fetched_and_read(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path], tmp_path: Path
) -> None:
    made = import_archive(engine, store, owner, saved(captioned("red", "blue")), "brand", LIMITS)
    assert made.object_key == f"tenants/{owner}/datasets/{made.digest}.zip"
    assert (made.images, made.captions, made.labels) == (2, True, ("blue", "red"))
    with transaction(engine) as conn:
        assert find_dataset(conn, owner, made.id) == find_dataset(conn, owner, "brand") == made
    store.fetch_file(made.object_key, tmp_path / "fetched.zip")
    assert (tmp_path / "fetched.zip").stat().st_size == made.bytes
    with DatasetArchive(tmp_path / "fetched.zip") as dataset:
        assert [(item.file_name, item.text, item.label) for item in dataset.items] == [
            ("blue.png", "a blue square", "blue"),
            ("red.png", "a red square", "red"),
        ]
        assert dataset.open_image("red.png").getpixel((0, 0)) == (255, 0, 0)


def test_a_zip_of_nvidias_tools_is_imported_with_its_labels(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path], tmp_path: Path
) -> None:
    names = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png"]
    images = dict(zip(names, map(png, ("red", "green", "blue")), strict=True))
    described = json.dumps({"labels": [[names[0], 3], [names[1], 0], [names[2], 3]]}).encode()
    made = import_archive(engine, store, owner, saved(zip_bytes({"dataset.json": described, **images})), "x", LIMITS)
    assert (made.images, made.captions, made.labels) == (3, False, ("0", "3"))
    store.fetch_file(made.object_key, tmp_path / "fetched.zip")
    with DatasetArchive(tmp_path / "fetched.zip") as dataset:
        found = [(item.file_name, item.label) for item in dataset.items]
        assert found == list(zip(names, ("3", "0", "3"), strict=True))
        assert dataset.open_image(names[2]).getpixel((0, 0)) == (0, 0, 255)


def test_a_refused_archive_leaves_nothing(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    hostile: list[tuple[dict[str, bytes], str]] = [
        ({"a.png": b"no image"}, "not_an_image"),
        ({"../a.png": b""}, "path_escapes"),
        ({"metadata.jsonl": b"{", "a.png": png("red")}, "metadata_invalid"),
        ({"dataset.json": b'{"labels": [["b.png", 0]]}', "a.png": png("red")}, "missing_image"),
        ({"dataset.json": b'{"labels": 5}', "a.png": png("red")}, "metadata_invalid"),
        ({}, "empty_dataset"),
    ]
    for entries, code in hostile:
        with pytest.raises(Invalid) as caught:
            import_archive(engine, store, owner, saved(zip_bytes(entries)), "brand", LIMITS)
        assert caught.value.code == code
        assert (rows(engine), keys(store)) == (0, [])


def test_a_failing_transaction_takes_the_object_with_it(
    engine: sa.Engine, store: ObjectStore, saved: Callable[[bytes], Path]
) -> None:
    nobody = UUID(int=1)
    with pytest.raises(sa.exc.IntegrityError):
        import_archive(engine, store, nobody, saved(captioned("red")), "brand", LIMITS)
    assert (rows(engine), keys(store)) == (0, [])


def test_a_store_that_is_away_leaves_no_row(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path], settings: Settings
) -> None:
    away = ObjectStore(
        Settings(s3_endpoint="http://127.0.0.1:9", s3_access_key="x", s3_secret_key="y", s3_bucket=settings.s3_bucket)
    )
    with pytest.raises(DependencyDown):
        import_archive(engine, away, owner, saved(captioned("red")), "brand", LIMITS)
    assert (rows(engine), keys(store)) == (0, [])


def test_equal_content_is_one_dataset_of_a_tenant(
    engine: sa.Engine, store: ObjectStore, owner: UUID, other: UUID, saved: Callable[[bytes], Path]
) -> None:
    first = import_archive(engine, store, owner, saved(captioned("red", "blue")), "brand", LIMITS)
    assert import_archive(engine, store, owner, saved(captioned("blue", "red")), "again", LIMITS) == first
    rival = import_archive(engine, store, other, saved(captioned("red", "blue")), "brand", LIMITS)
    assert rival.digest == first.digest
    assert rival.id != first.id
    assert (rows(engine), len(keys(store))) == (2, 2)


def test_a_stored_dataset_sent_again_is_recognised_without_unpacking(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    first = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    canonical = saved(store.get_bytes(first.object_key))
    nothing = DatasetLimits(archive=LIMITS.archive, images=0, pixels=0)
    assert import_archive(engine, store, owner, canonical, "brand", nothing) == first


def test_equal_content_imported_at_once_is_one_row_and_one_object(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    path = saved(captioned("red", "blue"))
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(import_archive, engine, store, owner, path, f"brand-{n}", LIMITS) for n in range(4)]
        made = {call.result().id for call in calls}
    assert len(made) == 1
    assert (rows(engine), len(keys(store))) == (1, 1)


def test_an_object_that_vanishes_before_its_row_is_made_is_stored_again(
    engine: sa.Engine,
    store: ObjectStore,
    owner: UUID,
    saved: Callable[[bytes], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = ObjectStore.put_file
    puts: list[str] = []

    def put_and_lose(self: ObjectStore, key: str, path: Path, content_type: str) -> None:
        put(self, key, path, content_type)
        puts.append(key)
        if len(puts) == 1:
            # What another import's clean-up does in this very moment.
            discard_objects(engine, store, [key])

    monkeypatch.setattr(ObjectStore, "put_file", put_and_lose)
    made = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    assert puts == [made.object_key] * 2
    assert keys(store) == [made.object_key]


def test_a_dataset_whose_object_was_lost_is_healed_by_importing_it_again(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    path = saved(captioned("red"))
    first = import_archive(engine, store, owner, path, "brand", LIMITS)
    store.delete([first.object_key])
    assert import_archive(engine, store, owner, path, "brand", LIMITS) == first
    assert keys(store) == [first.object_key]


def test_an_object_that_a_row_names_is_not_discarded(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    made = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    discard_objects(engine, store, [made.object_key])
    assert keys(store) == [made.object_key]
