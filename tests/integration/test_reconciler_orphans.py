"""Objects that no row refers to are collected; everything that somebody may still need is spared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from calotype import queue
from calotype.artifacts import Artifact, ObjectStore, job_prefix
from calotype.database import transaction
from calotype.jobs import Family, Job
from calotype.queue import Outcome
from calotype.registry import ModelFile, NewVersion
from worker import orphans

QUEUE = "diffusion.generate"
#: Older than objects that are yet to be made: no margin.
AT_ONCE = -60.0


@pytest.fixture
def claim(engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]) -> Callable[[], Job]:
    """A job that a worker holds."""

    def take() -> Job:
        make_job()
        with transaction(engine) as conn:
            job = queue.claim(conn, make_worker(), [QUEUE], 60.0)
        assert job is not None
        return job

    return take


@pytest.fixture
def put(store: ObjectStore) -> Callable[..., str]:
    """Puts an object under a job's prefix and gives its key."""

    def make(job: Job, name: str, epoch: int | None = None) -> str:
        key = f"{job_prefix(job.tenant_id, job.id, job.epoch if epoch is None else epoch)}{name}"
        store.put_bytes(key, b"bytes")
        return key

    return make


def keys(store: ObjectStore) -> set[str]:
    return {stored.key for stored in store.list_keys("tenants/")}


def published(key: str) -> Artifact:
    return Artifact(name=key.rsplit("/", 1)[-1], object_key=key, content_type="image/png", bytes=5, sha256="a" * 64)


def test_what_an_unfinished_epoch_uploads_is_spared_and_what_a_lost_one_left_is_collected(
    engine: Engine, store: ObjectStore, claim: Callable[[], Job], put: Callable[..., str]
) -> None:
    job = claim()
    live, lost = put(job, "image-0.png"), put(job, "image-0.png", epoch=0)
    assert orphans.collect(engine, store, AT_ONCE) == 1
    assert keys(store) == {live}
    assert lost not in keys(store)


def test_artifacts_models_and_checkpoints_are_spared_and_the_rest_of_a_finished_job_is_collected(
    engine: Engine, store: ObjectStore, claim: Callable[[], Job], put: Callable[..., str]
) -> None:
    job, released = claim(), claim()
    image, weights, scratch = (
        put(job, "image-0.png"),
        put(job, "model/w.safetensors"),
        put(job, "checkpoints/1-a/state"),
    )
    state = put(released, "checkpoints/1-b/state")
    version = NewVersion(
        name="my-brand",
        tenant_id=job.tenant_id,
        family=Family.DIFFUSION,
        architecture="lora",
        files=[ModelFile(path="w.safetensors", object_key=weights, bytes=5, sha256="a" * 64)],
        source={"type": "train"},
    )
    record: dict[str, Any] = {
        "step": 1,
        "epoch": released.epoch,
        "directory": False,
        "objects": [{"name": "state", "key": state, "bytes": 5, "sha256": "a" * 64}],
    }
    with transaction(engine) as conn:
        queue.finish(conn, job.id, job.epoch, Outcome(result={}, artifacts=[published(image)], model=version))
        queue.checkpoint(conn, released.id, released.epoch, record)
        queue.release(conn, released.id, released.epoch)
    assert orphans.collect(engine, store, AT_ONCE) == 1
    assert keys(store) == {image, weights, state}
    assert scratch not in keys(store)


def test_a_young_orphan_and_an_object_of_another_kind_are_left_alone(
    engine: Engine, store: ObjectStore, claim: Callable[[], Job], put: Callable[..., str]
) -> None:
    job = claim()
    put(job, "late.png", epoch=0)
    store.put_bytes(f"tenants/{job.tenant_id}/datasets/{'a' * 64}.zip", b"bytes")
    before = keys(store)
    assert orphans.collect(engine, store, older_than=3600.0) == 0
    assert keys(store) == before
    assert orphans.collect(engine, store, AT_ONCE) == 1


def test_more_orphans_than_one_batch_are_collected_and_those_of_a_deleted_job_too(
    engine: Engine,
    store: ObjectStore,
    claim: Callable[[], Job],
    put: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orphans, "BATCH", 2)
    job = claim()
    for number in range(5):
        put(job, f"{number}.png")
    with transaction(engine) as conn:
        queue.finish(conn, job.id, job.epoch, Outcome(result={}))
        queue.delete(conn, job.tenant_id, job.id)
    assert orphans.collect(engine, store, AT_ONCE) == 5
    assert keys(store) == set()
